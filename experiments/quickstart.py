"""A CNN and an LSTM: trained, pruned, quantised, both, and packed into small files.

Question: what do pruning, quantising and packing make of a network, in accuracy, bytes and
  multiplications?
Papers: pruning arXiv:1710.01878, learned steps arXiv:1902.08153, the coder as in DeepCABAC
  (arXiv:1907.11900).
Command: ./launch.sh
Expected: a table and a picture in runs/quickstart; networks that are pruned and quantised take some
  fiftieth of the bytes and stay within two points of the dense ones.
Cost: under 3 minutes on 2 cores.

All ways have as many epochs. Every row is a run folder, and its file network.lepton is measured as
it is: bytes are those of the whole file, in which kernels that were not quantised are rounded to 8
bits. Flags of `train` that are given hold for all networks.
"""

import pathlib
import sys

from absl import flags as absl_flags

from lepton_jax import config as config_lib
from lepton_jax import flags

FLAGS = absl_flags.FLAGS
# Options, and how many epochs each further stage has.
NETWORKS = {
    'cnn_mnist': (dict(model='cnn_mnist', dropout=0.25, augment_crop=2, epochs=12), 6),
    'lstm_classifier': (dict(model='lstm_classifier', learning_rate=3e-3, epochs=20), 10)}
PRUNED = dict(prune_sparsity=0.9, prune_begin=0.0)
QUANTIZED = dict(quantize_weight_bits=4, quantize_activation_bits=8, quantize_weights='lsq',
                 quantize_granularity='tensor')
# Further stages; all networks are trained for as many epochs.
WAYS = {'dense': ({}, {}), 'pruned': (PRUNED, {}), 'quantised': ({}, QUANTIZED),
        'pruned, quantised': (PRUNED, QUANTIZED)}


def main(config):
  from lepton_jax.report import markdown, pictures, tables
  config = config.replace(runs_dir=FLAGS.runs_dir)
  output = pathlib.Path(config.run.runs_dir).expanduser()
  given = {name: value for name, value in config.flat().items() if FLAGS[name].present}
  rows = [one for name in NETWORKS for one in network(name, config, given)]
  tables.print_rows(rows)
  output.mkdir(parents=True, exist_ok=True)
  markdown.write_rows(output / 'quickstart.csv', rows)
  pictures.save(picture(rows), output / 'quickstart.png')
  print(f'{output}/quickstart.png shows them, {output}/quickstart.csv holds them')
  return 0


def network(name, config, given):
  """The rows of one network; each way starts from the dense run."""
  options, epochs = NETWORKS[name]
  quiet = dict(tensorboard=False, pictures=False, checkpoint_every=0)
  base = config_lib.Config().replace(**options | quiet | dict(
      runs_dir=config.run.runs_dir) | given)
  rows, done = [], {}
  for way, stages in WAYS.items():
    one = base
    for i, stage in enumerate(('start', *stages)):
      if i:
        one = base.replace(**stage, epochs=epochs, init_from=place_of(one))
      if one.name() not in done:
        print(f'{name}, {way}: {place_of(one)}', flush=True)
        done[one.name()] = trained(one)
    rows.append(row(name, way, one, done[one.name()]))
  return rows


def place_of(config):
  return f'{config.run.runs_dir}/{config.name()}'


def trained(config):
  """(result, seconds so far) of a run and those that it starts from."""
  from lepton_jax import folder, run
  result = run.train(config.check(), quiet=True)
  seconds = result['train_seconds']
  if config.training.init_from:
    seconds += folder.read_result(config.training.init_from)['train_seconds']
  return result, seconds


def row(name, way, config, found):
  """What the table says of a network; the dense one's bytes are those of its float32 numbers."""
  from lepton_jax.deploy import measure
  result, seconds = found
  size, accuracy = 4 * result['num_parameters'], result['test_accuracy']
  dense = size
  if way != 'dense':
    file = measure.packed(place_of(config))
    size, accuracy, dense = file['file_bytes'], file['test_accuracy'], file['dense_bytes']
  return {'network': name, 'way': way, 'test accuracy': accuracy, 'bytes': size,
          'times smaller': dense / size,
          'share of multiplications left': result['nonzero_macs'] / result['macs'],
          'seconds': round(seconds, 1)}


def picture(rows):
  """Accuracy against the bytes of the file, a colour a network."""
  from lepton_jax.report.pictures import new_axes
  figure, axis = new_axes(7, 3.8)
  for i, name in enumerate(NETWORKS):
    own = [one for one in rows if one['network'] == name]
    axis.plot([one['bytes'] / 1000 for one in own], [100 * one['test accuracy'] for one in own],
              'o', color=f'C{i}', label=name.replace('_', ' '))
    for one in own:
      axis.annotate(one['way'], (one['bytes'] / 1000, 100 * one['test accuracy']), (4, 5),
                    textcoords='offset points', fontsize=7, color=f'C{i}')
  axis.set(xscale='log', xlabel='bytes of the file (kB)', ylabel='test accuracy (%)')
  axis.xaxis.set_major_formatter('{x:g}')
  axis.margins(x=0.15, y=0.15)
  axis.grid(alpha=0.3, which='both')
  axis.legend(frameon=False, fontsize=8)
  return figure


if __name__ == '__main__':
  flags.define()
  absl_flags.FLAGS.set_default('runs_dir', 'runs/quickstart')
  sys.exit(flags.run(main, __doc__))
