"""The lottery ticket hypothesis: sparse networks that train as well as dense ones, by their start.

Question: does a network that is pruned to its largest weights and set back to its first weights
  train as well as the dense one, and does the same mask with other first weights?
Paper: Frankle and Carbin, arXiv:1803.03635, figures 3 and 4: LeNet-300-100 on MNIST; a fifth of
  the weights is pruned at each round, a tenth of the output layer's. Winning tickets match the
  dense network down to 3.6 % of the weights; with other first weights they get worse at once.
Command: ./launch.sh papers.lottery_ticket --data_dir=DIR
Expected: experiments/results/papers/lottery_ticket.csv and .png as committed.
Cost: half an hour on 2 cores: 16 rounds, 3 seeds, twice each.

Ours has 12 epochs of 55,000 images where the paper has 50,000 steps of 60, which is about 55 epochs
of 55,000. Rounds are run folders: a stopped script goes on where it was. --rewind_epochs=K sets
weights back to those after K epochs of a run of as many (arXiv:1903.01611).
"""

import pathlib
import sys

from absl import flags as absl_flags

from experiments.tables import paper, study
from lepton_jax import config as config_lib
from lepton_jax import flags

FLAGS = absl_flags.FLAGS
OWN = ('rounds', 'rate', 'seeds', 'rewind_epochs', 'output')
PAPER = dict(model='lenet_300_100', dataset='mnist', epochs=12, batch_size=60, learning_rate=1.2e-3,
             weight_decay=0.0, select='last', tensorboard=False, pictures=False, checkpoint_every=0,
             runs_dir='runs/lottery_ticket')
OTHER = 1000  # is added to a seed where first weights are drawn anew


def main(config):
  from lepton_jax.report.pictures import save
  given = {name: value for name, value in config.flat().items() if FLAGS[name].present}
  base = config_lib.Config().replace(**PAPER | given)
  rows = [row for seed in map(int, study.seeds()) for row in tickets(base, seed)]
  output = pathlib.Path(FLAGS.output)
  study.write(output / 'lottery_ticket.csv', rows)
  save(picture(rows), output / 'lottery_ticket.png')
  return 0


def tickets(base, seed):
  """The rows of all rounds from the first weights of one seed."""
  start = {}
  if FLAGS.rewind_epochs:
    start = dict(init_from=trained(base.replace(seed=seed, epochs=FLAGS.rewind_epochs))[1])
  result, last = trained(base.replace(seed=seed, **start))
  rows = [row(result, seed, 0, 'winning ticket'), row(result, seed, 0, 'other first weights')]
  for number in range(1, FLAGS.rounds + 1):
    share = 1 - (1 - FLAGS.rate) ** number
    of_head = 1 - (1 - FLAGS.rate / 2) ** number
    pruned = base.replace(prune_ticket=last, prune_schedule='one_shot', prune_begin=0.0,
                          prune_layers=f'head={of_head:.6f};.*={share:.6f}')
    other, _ = trained(pruned.replace(seed=seed + OTHER))
    result, last = trained(pruned.replace(seed=seed, **start))
    rows += [row(result, seed, number, 'winning ticket'),
             row(other, seed, number, 'other first weights')]
  return rows


def trained(config):
  """(result, folder) of a run."""
  from lepton_jax import run
  print(f'+ {config.name()}', flush=True)
  return run.train(config.check(), quiet=True), f'{config.run.runs_dir}/{config.name()}'


def row(result, seed, number, kind):
  return dict(kind=kind, round=number, remaining=round(1 - result['sparsity'], 6), seed=seed,
              test_accuracy=result['test_accuracy'],
              validation_accuracy=result['validation_accuracy'], steps=result['steps'],
              processor=result['processor'], git_revision=result['git_revision'])


def picture(rows):
  """Test accuracy over the weights that remain: means, and bands from the least to the most."""
  import numpy as np
  from matplotlib import figure
  drawing = figure.Figure(figsize=(5, 3.4), layout='constrained')
  axes = drawing.subplots()
  for kind in ('winning ticket', 'other first weights'):
    rounds = sorted({row['round'] for row in rows})
    found = [[row for row in rows if (row['kind'], row['round']) == (kind, r)] for r in rounds]
    paper.draw(axes, kind, [(100 * np.mean([row['remaining'] for row in some]),
                             [100 * row['test_accuracy'] for row in some]) for some in found])
  axes.set(xscale='log', xlabel='weights that remain (%)', ylabel='test accuracy (%)')
  axes.invert_xaxis()
  axes.xaxis.set_major_formatter('{x:g}')
  axes.legend()
  axes.grid(alpha=0.3)
  return drawing


if __name__ == '__main__':
  flags.define()
  absl_flags.DEFINE_integer('rounds', 16, 'of pruning', lower_bound=1)
  absl_flags.DEFINE_float('rate', 0.2, 'share of the weights that goes at each round', 0, 1)
  absl_flags.DEFINE_string('seeds', '0,1,2', 'seeds, comma-separated')
  absl_flags.DEFINE_integer('rewind_epochs', 0, 'epochs before the weights that rounds start from',
                            lower_bound=0)
  absl_flags.DEFINE_string('output', str(paper.RESULTS), 'folder for the table and the picture')
  sys.exit(flags.run(main, __doc__, OWN))
