"""What the rounding of each kernel of a finished run costs, and bits for each under a budget.

Question: which layers bear few bits, and how are bits best spent?
Papers: one layer at a time as in HAWQ's and HAQ's comparisons (arXiv:1905.03696, arXiv:1811.08886).
Command: ./launch.sh sensitivity --run=runs/lenet5-mnist5k-0123456789 --budget_kb=200
Expected: a table and a picture in the run folder's sensitivity/, and a value of --quantize_layers.
Cost: kernels times widths evaluations of the validation part; a minute for lenet5 on mnist5k.

One program serves all kernels and widths. Nothing is trained, and the test part is not read.
"""

import pathlib
import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
OWN = ('run', 'bits', 'budget_kb', 'data_dir', 'output')


def main(config):
  del config
  from lepton_jax import folder
  from lepton_jax.compress.quantize import sensitivity
  from lepton_jax.report import tables
  if not FLAGS.run:
    raise UserError('--run=FOLDER names the finished run to look at')
  if not all(text.isdecimal() and 2 <= int(text) <= 16 for text in FLAGS.bits):
    raise UserError(f'--bits={",".join(FLAGS.bits)}: allowed are whole numbers from 2 to 16')
  widths = sorted(map(int, FLAGS.bits))
  trained = folder.load(FLAGS.run, **(dict(data_dir=FLAGS.data_dir) if FLAGS.data_dir else {}))
  names, sizes, measure = measurement(trained)
  whole = measure([sensitivity.WHOLE] * len(names))
  found = sensitivity.one_at_a_time(names, widths, measure)
  rows = []
  for name in names:
    columns = {f'{what} at {width} bits': found[name][width][what]
               for what in dict.fromkeys(('loss', trained.data.measure)) for width in widths}
    rows.append(dict(kernel=name, entries=sizes[name], **columns))
  tables.print_rows(rows)
  print(f'not rounded: loss {whole["loss"]:.4f}')
  write(pathlib.Path(FLAGS.output or f'{FLAGS.run}/sensitivity'), rows, found, whole['loss'])
  if FLAGS.budget_kb:
    costs = {name: {width: found[name][width]['loss'] - whole['loss'] for width in widths}
             for name in names}
    chosen = sensitivity.allocate(costs, sizes, 1000 * FLAGS.budget_kb)
    if chosen is None:
      least = sum(sizes.values()) * widths[0] / 8000
      raise UserError(f'--budget_kb={FLAGS.budget_kb}: {widths[0]} bits of all kernels take '
                      f'{least:.1f} kB')
    together = measure([chosen[name] for name in names])
    used = sum(sizes[name] * bits for name, bits in chosen.items()) / 8000
    print(f'{used:.1f} kB of kernels: loss {together["loss"]:.4f}, {trained.data.measure} '
          f'{together[trained.data.measure]:.4f} on validation')
    print(f"--quantize_layers='{sensitivity.as_flag(chosen)}'")
  return 0


def measurement(trained):
  """(kernel names, {kernel: entries}, bits of all kernels -> measurements on validation)."""
  import jax.numpy as jnp

  from lepton_jax import build_network, evaluation, trees
  from lepton_jax.train import parallel
  compression = trained.network.compression
  if compression.sites or any(method.rounds for method in compression.methods):
    raise UserError(f'{FLAGS.run} is rounded already; name a run in float')
  config = trained.config.replace(quantize_weight_bits=8, quantize_exclude='',
                                  quantize_weights='max')
  network = build_network.finished(config, trained.data, trained.weights,
                                   trained.network.widths)
  kernels = {n: leaf for n, leaf in trees.named(trained.weights['params']).items()
             if trees.is_kernel(n)}
  layout = parallel.make_parallel('jit', config.data.batch_size)
  stream = trained.data.stream
  predict = layout.predict(network.predict_stream if stream else network.predict)

  def measure(bits):
    hparams = dict(trained.hparams, weight_bits=jnp.asarray(bits, jnp.float32))
    return evaluation.evaluate_split(network, predict, trained.weights, hparams, trained.data,
                                     'validation', config.data.batch_size, layout)

  return list(kernels), {name: leaf.size for name, leaf in kernels.items()}, measure


def write(folder, rows, found, whole):
  """The table as CSV and the losses as a picture."""
  from lepton_jax.report import markdown, pictures
  folder.mkdir(parents=True, exist_ok=True)
  markdown.write_rows(folder / 'sensitivity.csv', rows)
  figure, axis = pictures.new_axes(7, 1.5 + 0.3 * len(found))
  places = range(len(found))[::-1]
  for width in next(iter(found.values())):
    losses = [found[name][width]['loss'] for name in found]
    axis.plot(losses, places, marker='o', markersize=4, label=f'{width} bits')
  axis.axvline(whole, color='0.4', linewidth=0.8, label='not rounded')
  axis.set_yticks(places, found, fontsize=7)
  axis.set(xlabel='validation loss with this kernel rounded')
  axis.grid(alpha=0.3)
  axis.legend(frameon=False, fontsize=7)
  pictures.save(figure, f'{folder}/sensitivity.png', f'{folder}/sensitivity.pdf')
  print(f'{folder} has the table as CSV and a picture')


if __name__ == '__main__':
  absl_flags.DEFINE_string('run', '', 'folder of a finished run in float')
  absl_flags.DEFINE_list('bits', '2,3,4,6,8', 'widths to try, comma-separated')
  absl_flags.DEFINE_float('budget_kb', 0, 'bytes of kernels, in kB, to choose bits for; 0: none')
  absl_flags.DEFINE_string('data_dir', '', 'folder of prepared TFDS data')
  absl_flags.DEFINE_string('output', '', 'folder of table and picture; empty: in the run folder')
  sys.exit(flags.run(main, __doc__, OWN))
