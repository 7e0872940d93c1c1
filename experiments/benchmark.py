"""Times our training step against PyTorch's and plain Flax's for the same networks on one machine.

Question: does a user lose time by training with Lepton, and how far is a step from the machine's
  limit?
Peers: PyTorch eager, the better of NCHW and channels_last, on a GPU torch.compile as well; Flax and
  Optax as their guides write them, on one device. The contestants take turns. Some rows are in
  bfloat16 (PyTorch: autocast) where the machine has it; on a GPU one has 64 trials in one program.
Command: ./launch.sh benchmark
Expected: experiments/results/benchmark.md as committed, for that machine; ratios above 1 mean
  Lepton is faster.
Cost: 15 minutes on 2 cores with nothing else running. Synthetic data, nothing is downloaded.
"""

import importlib.util
import json
import os
import pathlib
import re
import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
OWN = ('networks', 'rounds', 'seconds', 'output', 'json')
RESULTS = pathlib.Path(__file__).parent / 'results'
BATCH = dict(lenet5=64, lstm_classifier=64, lenet_300_100=64)  # 128 for the others
NETWORKS = ('cnn_cifar', 'lenet5', 'resnet8', 'resnet20', 'lstm_classifier', 'lenet_300_100',
            'mobilenet_v1', 'resnet18')
SCALED = 'cnn_cifar'
HALF = ('cnn_cifar', 'resnet8')  # in bfloat16 on a CPU that has it


def main(config):
  del config
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # contestants share a card
  if importlib.util.find_spec('torch') is None:
    raise UserError('PyTorch is not installed: pip install -r requirements-bench.txt')
  import jax

  from experiments.peers import measure
  from lepton_jax.layers import platform
  gpu = jax.default_backend() == 'gpu'
  networks = [n for n in NETWORKS if gpu or n != 'resnet18']
  if FLAGS.networks:
    networks = FLAGS.networks.split(',')
  if not set(networks) <= set(NETWORKS):
    raise UserError(f'--networks={FLAGS.networks}: allowed are {", ".join(NETWORKS)}')
  # A measurement of some networks alone does not replace the results of all.
  folder = FLAGS.output or ('' if FLAGS.networks else str(RESULTS))
  if folder:
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  cases = [(n, BATCH.get(n, 128), 'float32') for n in networks]
  if gpu:
    cases += [(n, 512, 'bfloat16') for n in networks]
  elif platform.native(jax.numpy.zeros(1, 'bfloat16')):
    cases += [(n, BATCH.get(n, 128), 'bfloat16') for n in networks if n in HALF]
  rows, others = [], []
  for case in cases:
    rows.append(measure.row(*case, gpu, FLAGS.rounds, FLAGS.seconds))
    print(json.dumps(rows[-1]), flush=True)
  if SCALED in networks:
    others += measure.scaling(SCALED, FLAGS.seconds)
  if gpu and 'lenet5' in networks:
    others.append(measure.population('lenet5', 64, FLAGS.rounds, FLAGS.seconds))
  for row in rows:  # the machine's limit is one, however busy it was while a row was measured
    same = [r for r in rows if r['dtype'] == row['dtype']]
    row.update({peak: max(r[peak] for r in same) for peak in ('peak_gflops', 'peak_gbytes')})
  text = report(rows, others)
  print(text)
  if folder:
    write(folder, rows, others, text, gpu)
  if FLAGS.json:
    print(json.dumps(dict(rows=rows, others=others)))
  return 0


def write(folder, rows, others, text, gpu):
  """Writes the Markdown, the CSV files and the picture, on a GPU under the card's name."""
  from lepton_jax.report import markdown
  card = re.sub(r'[^a-z0-9]+', '-', rows[0]['device'].lower()).strip('-')
  name = f'benchmark-{card}' if gpu else 'benchmark'
  path = pathlib.Path(folder) / f'{name}.md'
  path.write_text(text)
  markdown.write_rows(path.with_suffix('.csv'), rows)
  if others:
    markdown.write_rows(path.with_name(f'{name}-more.csv'), others)
  if importlib.util.find_spec('matplotlib') is None:
    print('no picture: matplotlib is not installed')
    return
  from lepton_jax.report import pictures
  triples = lambda ratio: [tuple(r[ratio + end] for end in ('', '_low', '_high')) for r in rows]
  ratios = {'PyTorch / Lepton': triples('ratio_vs_torch'),
            'plain Flax / Lepton': triples('ratio_vs_flax')}
  names = [r['network'] + (f'\n{r["dtype"]}' if gpu else '') for r in rows]
  pictures.ratio_bars(names, ratios, path.with_suffix('.png'), 'time of a step, ratio')


def report(rows, others):
  """The Markdown of all rows."""
  from lepton_jax.report import markdown
  who = ('ours', 'torch', 'flax')

  def traffic(r):
    if not r['gbytes']:
      return '', ''
    return f'{r["gbytes"]:.0f}', f'{100 * r["gbytes"] / r["peak_gbytes"]:.0f} %'

  header = ('network', 'compile, s: ours', 'Flax', 'memory, MiB: ours', 'PyTorch', 'Flax',
            'one example, ms: ours', 'PyTorch', 'Flax', 'a batch, ms: ours', 'PyTorch', 'Flax',
            'one step a call, one device, ms', 'GB/s', 'of peak')
  besides = markdown.table(header, [
      (f'{r["network"]}, {r["dtype"]}', f'{r["ours_compile_s"]:.1f}', f'{r["flax_compile_s"]:.1f}',
       *(f'{r[f"{w}_memory_mib"]:.0f}' for w in who),
       *(f'{r[f"{w}_predict_{size}_ms"]:.3f}' for size in ('one', 'batch') for w in who),
       f'{r["one_by_one_ms"]:.2f}', *traffic(r)) for r in rows])
  interval = lambda o: f' ({o["low"]:.4g} to {o["high"]:.4g})' if o['low'] != '' else ''
  also = ''
  if others:
    also = markdown.table(('also measured', 'figure', 'unit'),
                          [(o['measured'], f'{o["figure"]:.4g}{interval(o)}', o['unit'])
                           for o in others])
  torches = '\n'.join(f'- {r["network"]}, {r["dtype"]}: {r["torch_ms_each"]}' for r in rows)
  return (f'# Training steps against PyTorch and plain Flax\n\n{markdown.speed_table(rows)}\n\n'
          f'{FLAGS.rounds} rounds in turns; medians, ratios of rounds with 95 % intervals '
          f'(bootstrap). Compiled without a cache. Memory is the most that the whole process held '
          f"(on a GPU: the most of the card). GB/s are what XLA counts as a step's reads and "
          f'writes, those from a cache included, beside the rate of one large sum.\n\n{besides}\n\n'
          f'Milliseconds of each PyTorch variant:\n\n{torches}\n\n{also}'.rstrip() + '\n')


if __name__ == '__main__':
  absl_flags.DEFINE_string('networks', '',
                           'networks to time, comma-separated; empty: all of the tables')
  absl_flags.DEFINE_integer('rounds', 9, 'turns of each contestant')
  absl_flags.DEFINE_float('seconds', 0.7, 'length of a turn')
  absl_flags.DEFINE_string('output', '',
                           'folder for the Markdown, the CSV files and the picture; empty: '
                           'experiments/results where --networks is unset')
  absl_flags.DEFINE_bool('json', False, 'print one JSON object with all rows as the last line')
  sys.exit(flags.run(main, __doc__, OWN))
