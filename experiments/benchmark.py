"""Times our training step against PyTorch's and plain Flax's for the same networks, in turns on the same machine.

Question: does a user lose time by training with Lepton, and how far is a step from the machine's limit?
Peers: PyTorch eager, the better of NCHW and channels_last; Flax and Optax as their guides write them, on one device.
Command: ./launch.sh benchmark
Expected: experiments/results/benchmark.md as committed, for that machine; ratios above 1 mean Lepton is faster.
Cost: 15 minutes on 2 cores with nothing else running. Synthetic data, nothing is downloaded.
"""

import datetime
import json
import os
import pathlib
import statistics
import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
OWN = ('networks', 'rounds', 'seconds', 'output', 'json')
RESULTS = pathlib.Path(__file__).parent / 'results' / 'benchmark.md'
BATCH = dict(lenet5=64, lstm_classifier=64, lenet_300_100=64)  # 128 for the others
NETWORKS = ('cnn_cifar', 'lenet5', 'resnet8', 'resnet20', 'lstm_classifier', 'lenet_300_100', 'mobilenet_v1')


def main(config):
  del config
  from lepton_jax.report import pictures
  networks = FLAGS.networks.split(',')
  if not set(networks) <= set(NETWORKS):
    raise UserError(f'--networks={FLAGS.networks}: allowed are {", ".join(NETWORKS)}')
  rows = []
  for name in networks:
    rows.append(measure(name, BATCH.get(name, 128)))
    print(json.dumps(rows[-1]), flush=True)
  text = report(rows)
  print(text)
  if FLAGS.output:
    pathlib.Path(FLAGS.output).write_text(text)
    ratios = {'PyTorch / Lepton': [r['ratio_vs_torch'] for r in rows], 'plain Flax / Lepton': [r['ratio_vs_flax'] for r in rows]}
    pictures.ratio_bars([r['network'] for r in rows], ratios, pathlib.Path(FLAGS.output).with_suffix('.png'), 'time of a step, ratio')
  if FLAGS.json:
    print(json.dumps(dict(rows=rows)))
  return 0


def label(devices, calls):
  """How a choice is called in tables."""
  return f'{devices} device{"s" if devices > 1 else ""}' + (f', {calls} steps a call' if calls > 1 else '')


def measure(name, batch):
  """One row: medians, ratios with their intervals, and what each contestant took besides."""
  from experiments.peers import race
  first = race.Racer(label(1, 1), 'lepton', name, batch, devices=1, calls=1)
  chosen = tuple(first.facts['auto'])
  others = {chosen} | ({(2, 1)} if first.facts['devices'] > 1 else set())  # what auto takes, and could have taken
  ours = [first, *(race.Racer(label(*choice), 'lepton', name, batch, devices=choice[0], calls=choice[1]) for choice in sorted(others - {(1, 1)}))]
  images = len(race.SHAPES[name]) == 3
  torch = [race.Racer(layout, 'pytorch', name, batch, layout=layout) for layout in (('nchw', 'channels_last') if images else ('nchw',))]
  plain = race.Racer('flax', 'plain_flax', name, batch)
  racers = [*ours, *torch, plain]
  try:
    race.race(racers, FLAGS.rounds, FLAGS.seconds)
    auto = next(r for r in ours if r.label == label(*chosen))
    best_ours, best_torch = race.best(ours), race.best(torch)
    median = lambda racer: statistics.median(racer.milliseconds)
    row = dict(network=name, batch=batch, auto=auto.label, device=auto.facts['device'], parameters=auto.facts['parameters'], torch_layout=best_torch.label,
               torch_threads=best_torch.facts['threads'], jax=auto.facts['version'], torch=best_torch.facts['version'],
               ours_ms=median(auto), torch_ms=median(best_torch), flax_ms=median(plain), choices={r.label: median(r) for r in ours},
               ratio_vs_torch=race.ratio(best_torch, auto), ratio_vs_flax=race.ratio(plain, auto), auto_vs_best=race.ratio(best_ours, auto),
               gflops=plain.facts['flops'] / median(auto) / 1e6, peak_gflops=auto.ask('peak')[1] / 1e9)
    row.update(compile_seconds=dict(ours=auto.facts['compile_seconds'], flax=plain.facts['compile_seconds']),
               memory_mib={r.label: r.peak_memory() for r in (auto, best_torch, plain)})
    for size in (1, batch):
      least = lambda racers, size=size: min(r.predict(size, FLAGS.seconds) for r in racers)
      row[f'predict_{"one" if size == 1 else "batch"}_ms'] = dict(ours=least(ours[:1]), torch=least(torch), flax=least([plain]))
    return row
  finally:
    for racer in racers:
      racer.close()


def report(rows):
  """The Markdown of all rows."""
  from lepton_jax.report import markdown
  times = lambda triple: f'{triple[0]:.2f} ({triple[1]:.2f} to {triple[2]:.2f})'
  trained = markdown.table(
      ('network', 'batch', 'ours, ms', 'PyTorch, ms', 'plain Flax, ms', 'PyTorch / ours', 'plain Flax / ours', 'auto', 'best choice / auto', 'GFLOP/s',
       'of peak'),
      [(r['network'], str(r['batch']), f'{r["ours_ms"]:.2f}', f'{r["torch_ms"]:.2f} ({r["torch_layout"]})', f'{r["flax_ms"]:.2f}', times(r['ratio_vs_torch']),
        times(r['ratio_vs_flax']), r['auto'], times(r['auto_vs_best']), f'{r["gflops"]:.0f}', f'{100 * r["gflops"] / r["peak_gflops"]:.0f} %') for r in rows])
  besides = markdown.table(
      ('network', 'compile, s: ours', 'Flax', 'memory, MiB: ours', 'PyTorch', 'Flax', 'one example, ms: ours', 'PyTorch', 'Flax',
       'a batch, ms: ours', 'PyTorch', 'Flax'),
      [(r['network'], *(f'{v:.1f}' for v in r['compile_seconds'].values()), *(f'{v:.0f}' for v in r['memory_mib'].values()),
        *(f'{v:.2f}' for size in ('one', 'batch') for v in r[f'predict_{size}_ms'].values())) for r in rows])
  first = rows[0]
  return (f'# Training steps against PyTorch and plain Flax\n\n{os.cpu_count()} cores ({first["device"]}), jax {first["jax"]}, torch {first["torch"]} on '
          f'{first["torch_threads"]} threads, float32, Adam; {datetime.date.today()}. {FLAGS.rounds} rounds in turns; medians, ratios of '
          f'rounds with 95 % intervals (bootstrap). '
          f'The largest matrix product here ran at {max(r["peak_gflops"] for r in rows):.0f} GFLOP/s.\n\n{trained}\n\n{besides}\n')


if __name__ == '__main__':
  absl_flags.DEFINE_string('networks', ','.join(NETWORKS), 'networks to time, comma-separated')
  absl_flags.DEFINE_integer('rounds', 9, 'turns of each contestant')
  absl_flags.DEFINE_float('seconds', 0.7, 'length of a turn')
  absl_flags.DEFINE_string('output', str(RESULTS), 'Markdown file to write, with a picture beside it; empty: none')
  absl_flags.DEFINE_bool('json', False, 'print one JSON object with all rows as the last line')
  sys.exit(flags.run(main, __doc__, OWN))
