"""The train step of every model, compiled for TPUs that are not here.

Question: does each model compile for a TPU slice, in what memory, and what do its chips send?
Paper: none; ahead-of-time compilation as in https://docs.jax.dev/en/latest/aot.html.
Command: pip install 'libtpu==0.0.42.*'; ./launch.sh tpu_programs
Expected: experiments/results/tpu_programs.csv as committed, seconds apart.
Cost: 5 minutes on 2 cores and 700 MB for libtpu, the compiler; no TPU.

What compiles here is the program that a slice would run, by the same compiler. How fast it runs is
not known.
"""

import collections
import pathlib
import re
import sys
import time

from absl import flags as absl_flags

from experiments import communication as shapes
from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
OWN = ('topology', 'models', 'output')
RESULTS = pathlib.Path(__file__).parent / 'results' / 'tpu_programs.csv'


def main(config):
  del config
  import jax
  jax.config.update('jax_platforms', 'cpu')  # libtpu would look for chips
  from lepton_jax.registry import MODELS
  from lepton_jax.report import markdown, tables
  models = FLAGS.models.split(',') if FLAGS.models else sorted(MODELS.names())
  devices, lines = slice_of(FLAGS.topology), []
  for model in models:
    lines.append(dict(topology=FLAGS.topology, **program(model, devices), jax=jax.__version__))
    print(lines[-1], flush=True)
  tables.print_rows(lines)
  markdown.write_rows(FLAGS.output, lines)
  return 0


def slice_of(topology):
  """The devices of a TPU slice such as v5e:2x4; raises UserError where it cannot be described."""
  from jax.experimental import topologies
  try:
    return list(topologies.get_topology_desc(topology, platform='tpu').devices)
  except Exception as error:  # of libtpu, which is not there or does not know it
    raise UserError(f"--topology={topology}: {str(error).splitlines()[0]}; it takes libtpu (pip "
                    f"install 'libtpu==0.0.42.*') and a slice such as v5e:2x4") from None


def program(model, devices):
  """What there is to say of a model's train step on these devices, 8 examples on each."""
  from lepton_jax import communication
  from lepton_jax.config import Config
  length = shapes.SHAPES.get(model, ((28,), 0))[0][0]
  config = Config().replace(model=model, batch_size=shapes.EXAMPLES, buckets=1,
                            sequence_length=length)
  began = time.monotonic()
  step, _ = communication.compiled(config, shapes.examples(model), devices)
  memory = step.memory_analysis()
  sent = collections.Counter(re.findall(rf' ({"|".join(communication.KINDS)})(?:-start)?\(',
                                        step.as_text()))
  rest = sum(sent.values()) - sent['all-reduce']
  return dict(model=model, chips=len(devices), all_reduces=sent['all-reduce'], other_exchanges=rest,
              gigaflops=round(step.cost_analysis()['flops'] / 1e9, 3),
              state_megabytes=round(memory.argument_size_in_bytes / 1e6, 1),
              scratch_megabytes=round(memory.temp_size_in_bytes / 1e6, 1),
              program_megabytes=round(memory.generated_code_size_in_bytes / 1e6, 1),
              compile_seconds=round(time.monotonic() - began, 1))


if __name__ == '__main__':
  absl_flags.DEFINE_string('topology', 'v5e:2x4', 'slice of TPU chips')
  absl_flags.DEFINE_string('models', '', "models, comma-separated; '': all")
  absl_flags.DEFINE_string('output', str(RESULTS), 'CSV file to write')
  sys.exit(flags.run(main, __doc__, OWN))
