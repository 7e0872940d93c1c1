"""Shows what ran when in the steps that --profile looked at.

Question: what takes the time of a train step?
Paper: none; the trace is JAX's profiler's, https://docs.jax.dev/en/latest/profiling.html.
Command: ./launch.sh train --model=resnet8 --dataset=cifar10 --data_dir=DIR --profile=20-22
  ./launch.sh trace --run=runs/resnet8-cifar10-0123456789
Expected: a table of operations, and profile/trace.png in the run folder; of resnet8 on a CPU most
  of it are convolutions, ffi_call by oneDNN.
Cost: seconds.

TensorBoard (with its profile plugin) and https://ui.perfetto.dev show the same trace in full.
"""

import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
OWN = ('run', 'output')


def main(config):
  del config
  if not FLAGS.run:
    raise UserError('--run=DIR, a run folder trained with --profile, is missing')
  from lepton_jax.report import tables, trace
  spans = trace.read(FLAGS.run)
  output = FLAGS.output or f'{FLAGS.run.rstrip("/")}/profile/trace.png'
  trace.draw(spans, output, FLAGS.run.rstrip('/').rpartition('/')[2])
  tables.print_rows(trace.rows(spans))
  print(output)
  return 0


if __name__ == '__main__':
  absl_flags.DEFINE_string('run', '', 'run folder with a trace')
  absl_flags.DEFINE_string('output', '', "picture to write; '': profile/trace.png in it")
  sys.exit(flags.run(main, __doc__, OWN))
