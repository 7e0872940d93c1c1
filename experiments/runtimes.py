"""What exported networks are worth in ONNX Runtime: LSTM operators, whole numbers, fewer channels.

Question: does a network that was compressed here get smaller and faster where it runs?
Papers: LSQ+ (arXiv:2004.09576) for ranges, filters by L1 (arXiv:1608.08710); exporters that trace
  the loop of a recurrence unroll it (jax2onnx 0.17 has an LSTM of 50 steps in 237,805 bytes).
Command: ./launch.sh runtimes --data_dir=DIR
Expected: experiments/results/runtimes.csv as committed, times apart.
Cost: ten minutes on 2 cores.

lstm: 50 steps of 16 inputs, 64 units: MNIST's digits as images of 50 rows and 16 columns. Beside it
  the same weights in a graph of 50 unrolled steps.
cnn: cnn_mnist, and from it 8 bits for weights and inputs, the scales trained on.
channels: conv6 with half the multiply-accumulates, widths multiples of 8; times alone, so it is
  trained on few images.
"""

import dataclasses
import pathlib
import sys
import tempfile

from absl import flags as absl_flags

from experiments.tables import study
from lepton_jax import config as config_lib
from lepton_jax import flags, registry

FLAGS = absl_flags.FLAGS
OWN = ('data_dir', 'output', 'runs_dir', 'rounds', 'rows', 'seeds')
OUTPUT = pathlib.Path(__file__).parent / 'results' / 'runtimes.csv'
EIGHT = dict(quantize_weights='lsq', quantize_weight_bits=8, quantize_activation_bits=8)
ROWS = dict(
    lstm=(dict(model='lstm_classifier', dataset='digits_50x16', hidden=64, epochs=10,
               learning_rate=3e-3),
          dict(EIGHT, quantize_granularity='tensor', epochs=3, learning_rate=1e-3)),
    cnn=(dict(model='cnn_mnist', dataset='mnist', epochs=5),
         dict(EIGHT, epochs=2, learning_rate=3e-4)),
    channels=(dict(model='conv6', dataset='cifar10', train_limit=2000, epochs=1),
              dict(prune_structure='channels', prune_sparsity=0.3, prune_round=8)))
SHAPE = 50, 16


def main(config):
  del config
  from lepton_jax import machine
  from lepton_jax.report import markdown
  lines = []
  for name in FLAGS.rows.split(','):
    for seed in map(int, study.seeds()):
      with tempfile.TemporaryDirectory() as place:
        for row in measured(name, seed, pathlib.Path(place)):
          lines.append(dict(row=name, seed=seed) | {key: str(value) for key, value in row.items()}
                       | dict(git_revision=machine.git_revision()))
  columns = list(dict.fromkeys(column for line in lines for column in line))
  markdown.write_rows(FLAGS.output, [{c: line.get(c, '') for c in columns} for line in lines])
  return 0


def measured(name, seed, place):
  """A row of comparison.rows for each file of a row of the table, the dense network first."""
  from lepton_jax import folder, run
  from lepton_jax.deploy import comparison, exports
  from lepton_jax.report import tables
  options, changed = ROWS[name]
  base = config_lib.Config().replace(
      **options, seed=seed, data_dir=FLAGS.data_dir, runs_dir=FLAGS.runs_dir, tensorboard=False,
      pictures=False)
  dense = f'{FLAGS.runs_dir}/{base.check().name()}'
  run.train(base)
  small = base.replace(init_from=dense, **changed).check()
  run.train(small)
  files = []
  for kind, where in (('dense', dense), ('compressed', f'{FLAGS.runs_dir}/{small.name()}')):
    files.append(place / f'{kind}.onnx')
    trained = folder.load(where)
    found = exports.write(trained, 'onnx', files[-1])
    print(f'{name}, seed {seed}, {kind}: {found["bytes"]:,} bytes, error '
          f'{found["largest_error"]:.1e}, same decisions {found["same_decisions"]:.4f}', flush=True)
  if name == 'lstm':
    files.append(place / 'unrolled.onnx')
    files[-1].write_bytes(unrolled(folder.load(dense)))
  rows = comparison.rows(files, 'test', FLAGS.data_dir, [1, 8, 64], FLAGS.rounds, place)
  tables.print_rows(comparison.table(rows))
  return rows


@registry.DATASETS.register
def digits_50x16(cache_root, image_size):
  """5,000 of MNIST's digits as images of 50 rows and 16 columns: sequences of 50 steps."""
  import numpy as np
  from PIL import Image

  from lepton_jax.data import embedded
  found = embedded.mnist5k(cache_root, image_size)
  resize = lambda image: np.asarray(Image.fromarray(image[..., 0]).resize(SHAPE[::-1],
                                                                          Image.BILINEAR))
  splits = {split: (np.stack([resize(image) for image in inputs])[..., None], label)
            for split, (inputs, label) in found.splits.items()}
  return dataclasses.replace(found, splits=splits)


def unrolled(trained):
  """The bytes of a graph in which each step of an LSTM has operators of its own."""
  import jax
  import jax.numpy as jnp

  from lepton_jax.deploy import traced
  from lepton_jax.deploy.onnx import export

  def run(weights, inputs):
    params = weights['params']
    layer, head = params['forward1'], params['head']
    x = trained.network.scaling.inputs(inputs)[..., 0]
    h = cell = jnp.zeros((x.shape[0], layer['recurrent']['kernel'].shape[0]))
    for step in range(x.shape[1]):
      z = x[:, step] @ layer['input']['kernel'] + h @ layer['recurrent']['kernel']
      i, f, g, o = jnp.split(z + layer['recurrent']['bias'], 4, -1)
      cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
      h = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return (h @ head['kernel'] + head['bias'],)

  found = traced.trace(trained)
  return export.build(run, dict(params=found.weights['params']), found.inputs, found.outputs, {},
                      'unrolled', {})


if __name__ == '__main__':
  absl_flags.DEFINE_string('data_dir', '', 'folder of prepared TFDS data')
  absl_flags.DEFINE_string('rows', 'lstm,cnn,channels', 'rows, comma-separated')
  absl_flags.DEFINE_string('seeds', '0,1,2', 'seeds, comma-separated')
  absl_flags.DEFINE_integer('rounds', 25, 'turns that each file takes', lower_bound=3)
  absl_flags.DEFINE_string('runs_dir', 'runs/runtimes', 'the run folders are made here')
  absl_flags.DEFINE_string('output', str(OUTPUT), 'CSV file to write')
  sys.exit(flags.run(main, __doc__, OWN))
