"""Times our training step against PyTorch's and plain Flax's for the same networks, in turns on the same machine.

Question: does a user lose time by training with Lepton, and how far is a step from the machine's limit?
Peers: PyTorch eager, the better of NCHW and channels_last, on a GPU torch.compile as well; Flax and Optax as their
guides write them, on one device. On a GPU, rows in bfloat16 (PyTorch: autocast) and one of 64 trials in one program.
Command: ./launch.sh benchmark
Expected: experiments/results/benchmark.md as committed, for that machine; ratios above 1 mean Lepton is faster.
Cost: 15 minutes on 2 cores with nothing else running. Synthetic data, nothing is downloaded.
"""

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
NETWORKS = ('cnn_cifar', 'lenet5', 'resnet8', 'resnet20', 'lstm_classifier', 'lenet_300_100', 'mobilenet_v1', 'resnet18')
SCALED = 'cnn_cifar'


def main(config):
  del config
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # contestants share a card
  import jax

  from experiments.peers import measure
  from lepton_jax.report import markdown, pictures
  gpu = jax.default_backend() == 'gpu'
  networks = FLAGS.networks.split(',') if FLAGS.networks else [n for n in NETWORKS if gpu or n != 'resnet18']
  if not set(networks) <= set(NETWORKS):
    raise UserError(f'--networks={FLAGS.networks}: allowed are {", ".join(NETWORKS)}')
  cases = [(n, BATCH.get(n, 128), 'float32') for n in networks] + [(n, 512, 'bfloat16') for n in networks if gpu]
  rows, others = [], []
  for case in cases:
    rows.append(measure.row(*case, gpu, FLAGS.rounds, FLAGS.seconds))
    print(json.dumps(rows[-1]), flush=True)
  for row in rows:
    if row['auto'].endswith('a call'):
      others.append(dict(measured=f'{row["network"]}, {row["auto"]} against one by one', figure=row['ratio_vs_one_by_one'], unit='times faster'))
  if SCALED in networks:
    others += measure.scaling(SCALED, FLAGS.seconds)
  if gpu and 'lenet5' in networks:
    others.append(measure.population('lenet5', 64, FLAGS.rounds, FLAGS.seconds))
  text = report(rows, others)
  print(text)
  if FLAGS.output:
    card = re.sub(r'\W+', '-', rows[0]['device']).strip('-').lower()
    path = pathlib.Path(FLAGS.output) / ('benchmark.md' if card == 'cpu' else f'benchmark-{card}.md')
    path.write_text(text)
    markdown.write_rows(path.with_suffix('.csv'), rows)
    triples = lambda name: [tuple(r[name + end] for end in ('', '_low', '_high')) for r in rows]
    names = [r['network'] + (f'\n{r["dtype"]}' if gpu else '') for r in rows]
    ratios = {'PyTorch / Lepton': triples('ratio_vs_torch'), 'plain Flax / Lepton': triples('ratio_vs_flax')}
    pictures.ratio_bars(names, ratios, path.with_suffix('.png'), 'time of a step, ratio')
  if FLAGS.json:
    print(json.dumps(dict(rows=rows, others=others)))
  return 0


def report(rows, others):
  """The Markdown of all rows."""
  from lepton_jax.report import markdown
  besides = markdown.table(
      ('network', 'compile, s: ours', 'Flax', 'memory, MiB: ours', 'PyTorch', 'Flax', 'one example, ms: ours', 'PyTorch', 'Flax',
       'a batch, ms: ours', 'PyTorch', 'Flax', 'GB/s', 'of peak'),
      [(r['network'], f'{r["ours_compile_s"]:.1f}', f'{r["flax_compile_s"]:.1f}', *(f'{r[f"{who}_memory_mib"]:.0f}' for who in ('ours', 'torch', 'flax')),
        *(f'{r[f"{who}_predict_{size}_ms"]:.2f}' for size in ('one', 'batch') for who in ('ours', 'torch', 'flax')),
        *((f'{r["gbytes"]:.0f}', f'{100 * r["gbytes"] / r["peak_gbytes"]:.0f} %') if r['gbytes'] else ('', ''))) for r in rows])
  also = markdown.table(('also measured', 'figure', 'unit'), [(o['measured'], f'{o["figure"]:.4g}', o['unit']) for o in others]) if others else ''
  return (f'# Training steps against PyTorch and plain Flax\n\n{markdown.speed_table(rows)}\n\n{FLAGS.rounds} rounds in turns; medians, ratios of rounds with '
          f'95 % intervals (bootstrap). Compilation with a filled cache; memory is the whole process.\n\n{besides}\n\n{also}'.rstrip() + '\n')


if __name__ == '__main__':
  absl_flags.DEFINE_string('networks', '', 'networks to time, comma-separated; empty: all of the tables')
  absl_flags.DEFINE_integer('rounds', 9, 'turns of each contestant')
  absl_flags.DEFINE_float('seconds', 0.7, 'length of a turn')
  absl_flags.DEFINE_string('output', str(RESULTS), 'folder for the Markdown, the CSV and the picture; empty: none')
  absl_flags.DEFINE_bool('json', False, 'print one JSON object with all rows as the last line')
  sys.exit(flags.run(main, __doc__, OWN))
