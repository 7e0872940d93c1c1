"""What this machine has for training, what it lacks, and whether its devices compute rightly.

Question: which devices, libraries, memory and data are here, which command mends what is missing,
  and do three train steps on each device give the CPU's numbers?
Paper: none.
Command: ./launch.sh doctor --data_dir=DIR
Expected: every state ok or missing, none wrong; exit status 0. What is missing is optional.
Cost: 15 seconds on 2 cores, 3 once its programs are compiled; where the layers of a CPU were never
  compiled, that too.

On a TPU of several hosts start it on all of them at once, as every program there.
"""

import sys
import time

from absl import flags as absl_flags

from lepton_jax import flags, machine

FLAGS = absl_flags.FLAGS


def main(config):
  del config
  import jax

  from lepton_jax import doctor
  from lepton_jax.report import tables
  jax.config.update('jax_compilation_cache_dir', str(machine.cache_folder() / 'xla'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  findings = doctor.examine(FLAGS.data_dir)
  show(tables, findings)
  began = time.monotonic()
  tested = doctor.self_test()
  print(f'\nself-test: three train steps on each device, {time.monotonic() - began:.1f} s')
  show(tables, tested)
  return int(any(one.state != 'ok' for one in tested))


def show(tables, findings):
  """The findings as a table, and below it the command that mends each that is not ok."""
  rows = [dict(item=one.item, found=one.found, state=one.state) for one in findings]
  tables.print_rows(rows, justify='left')
  for one in findings:
    if one.mend:
      print(f'{one.item}: {one.mend}')


if __name__ == '__main__':
  absl_flags.DEFINE_string('data_dir', '', 'folder of prepared TFDS data; empty: $TFDS_DATA_DIR, '
                                           'else ~/tensorflow_datasets')
  sys.exit(flags.run(main, __doc__, ('data_dir',)))
