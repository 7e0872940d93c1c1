"""What devices that share a batch send each other in a train step, from the compiled programs.

Question: does a step exchange the gradient and nothing else, and does anything grow with the number
  of devices?
Papers: a gradient summed over devices, as in arXiv:1706.02677; ring all-reduce as in
  arXiv:1802.05799.
Command: ./launch.sh communication
Expected: experiments/results/communication.csv as committed; the README says what grows.
Cost: 2 minutes on 2 cores; nothing runs, and no accelerator is needed.

Programs are compiled by XLA for virtual devices of a CPU, one process for each number of devices,
with the forms of layers that run on GPUs and TPUs. XLA partitions a program in the same way for all
kinds of devices, but each kind joins its all-reduces in a way of its own: bytes carry over, the
number of operations need not.
"""

import json
import os
import pathlib
import subprocess
import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
OWN = ('models', 'devices', 'output', 'worker')
RESULTS = pathlib.Path(__file__).parent / 'results' / 'communication.csv'
EXAMPLES = 8  # on each device
# One of each family: the shape of an example, and how many classes or characters there are.
SHAPES = dict(
    mlp=((28, 28, 1), 10), lenet5=((28, 28, 1), 10), conv6=((32, 32, 3), 10),
    resnet20=((32, 32, 3), 10), resnet18=((32, 32, 3), 10), mobilenet_v1=((224, 224, 3), 1000),
    text_cnn=((40,), 2), elman_classifier=((28, 28, 1), 10), gru_classifier=((28, 28, 1), 10),
    lstm_classifier=((28, 28, 1), 10), lstm_tagger=((28, 28, 1), 10), lstm_lm=((40,), 65))
WORDS = 10_000
# Programs are compiled and never run, so nothing is spent on fast machine code.
QUICK = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'


def main(config):
  del config
  models = FLAGS.models.split(',')
  if not set(models) <= set(SHAPES):
    raise UserError(f'--models={FLAGS.models}: allowed are {", ".join(SHAPES)}')
  if FLAGS.worker:
    return work(models, FLAGS.worker)
  from lepton_jax.report import markdown, tables
  lines = []
  for devices in FLAGS.devices.split(','):
    environment = dict(os.environ, JAX_PLATFORMS='cpu',
                       XLA_FLAGS=f'{os.environ.get("XLA_FLAGS", "")} {QUICK}'.strip())
    command = [sys.executable, '-m', 'experiments.communication', f'--worker={devices}',
               f'--models={FLAGS.models}']
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    lines += [json.loads(line) for line in done.stdout.splitlines()]
  lines.sort(key=lambda line: (models.index(line['model']), line['devices']))
  tables.print_rows(lines)
  markdown.write_rows(FLAGS.output, lines)
  return 0


def work(models, devices):
  """Prints a line of JSON for each model, in a process that has so many devices."""
  import jax
  jax.config.update('jax_num_cpu_devices', devices)
  from lepton_jax import communication
  from lepton_jax.config import Config
  for model in models:
    config = Config().replace(model=model, batch_size=EXAMPLES, buckets=1,
                              sequence_length=SHAPES[model][0][0])
    found, parameters = communication.of_step(config, examples(model), devices)
    line = dict(model=model, devices=devices, examples=EXAMPLES * devices,
                parameter_bytes=sum(parameters), **communication.summary(found, parameters),
                jax=jax.__version__)
    print(json.dumps(line), flush=True)
  return 0


def examples(model):
  """A Dataset of as many examples as one device gets: zeros of the model's shape."""
  import numpy as np

  from lepton_jax.data.dataset import Dataset
  shape, classes = SHAPES.get(model, ((32, 32, 3), 10))
  names, number = tuple(map(str, range(classes))), np.ones(1, np.float32)
  facts = dict(name='zeros', version='1', classes=names, columns=(), mean=number, std=number)
  label = np.zeros((EXAMPLES, shape[0]) if model.endswith('_tagger') else EXAMPLES, np.int32)
  if model.endswith('_regressor'):
    facts, label = dict(facts, classes=()), label.astype(np.float32)
  part = np.zeros((EXAMPLES, *shape), np.uint8), label
  if model == 'lstm_lm':
    text = np.zeros(EXAMPLES * shape[0] + 1, np.int32)
    part, facts = (text, text), dict(facts, vocabulary=names, stream=True)
  elif model == 'text_cnn':
    part = np.ones((EXAMPLES, *shape), np.int32), label
    facts = dict(facts, vocabulary=tuple(map(str, range(WORDS))))
  return Dataset(splits=dict.fromkeys(('train', 'validation', 'test'), part), **facts)


if __name__ == '__main__':
  absl_flags.DEFINE_string('models', ','.join(SHAPES), 'models, comma-separated')
  absl_flags.DEFINE_string('devices', '8,64,512', 'numbers of devices, comma-separated')
  absl_flags.DEFINE_string('output', str(RESULTS), 'CSV file to write')
  absl_flags.DEFINE_integer('worker', 0, 'print lines of JSON for this number of devices, in this '
                                         'process; the script starts itself so', lower_bound=0)
  sys.exit(flags.run(main, __doc__, OWN))
