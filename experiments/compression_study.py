"""Pruning and quantisation of a CNN and an LSTM together: accuracy against size, over seeds.

Question: how far down go sparsity and bits of the weights before accuracy does, and which of the
  two is cheaper?
Papers: pruning arXiv:1710.01878; quantisation arXiv:1806.08342.
Command: ./launch.sh compression_study --executor=devices
Expected: experiments/results/compression_study.csv, and a picture for each network, as committed,
  times apart.
Cost: 20 minutes on 2 cores.

Each network is trained dense and with every combination of four sparsities and four bit widths,
from scratch. All combinations share one compiled program, dense ones a second. The flags of `train`
change what is common to all. Nothing is chosen by what these trials score, so the test column is of
all settings.
"""

import pathlib
import sys

from absl import flags as absl_flags

from lepton_jax import flags, machine, outcomes
from lepton_jax.errors import UserError
from lepton_jax.sweep import command, grid, trials

FLAGS = absl_flags.FLAGS
RESULTS = pathlib.Path(__file__).parent / 'results'
MODELS = {'lenet5': {}, 'lstm_classifier': dict(learning_rate=3e-3)}
DENSE = dict(prune_sparsity=[0.0], quantize_weight_bits=[0])
COMPRESSED = dict(prune_sparsity=[0.5, 0.8, 0.9, 0.95], quantize_weight_bits=[2, 3, 4, 8])


def main(lists):
  base, given = lists
  if own := {'model', *DENSE} & given.keys():
    raise UserError(f'the study has its own values of --{", --".join(sorted(own))}')
  common = dict(given, seed=given.get('seed', [0, 1, 2]))
  command.make_folder(FLAGS.output)
  lines = []
  for model, options in MODELS.items():
    own = base.replace(model=model, **options)
    configs = grid.product(own, common | DENSE) + grid.product(own, common | COMPRESSED)
    lines += table(model, configs, command.train_all(configs))
  from lepton_jax.report import markdown
  markdown.write_rows(f'{FLAGS.output}/compression_study.csv', lines)
  return 0


def table(model, configs, seconds):
  """The rows of one network, and its picture."""
  from lepton_jax.report import settings, sweep_pictures
  from lepton_jax.report.pictures import save
  results = [(config, outcomes.finished(config)) for config in configs]
  rows = settings.rows([(config, result) for config, result in results if result], all_tests=True)
  title = f'{model}: bytes of the file (kB)'
  save(sweep_pictures.against_size(rows, 'file_bytes', title, 1000),
       f'{FLAGS.output}/compression_{model}.png')
  minutes = '' if seconds is None else round(seconds / 60, 1)
  return [dict(model=model, **row, trials=len(configs), programs=len(trials.programs(configs)),
               minutes=minutes, cores=machine.cores()) for row in rows]


if __name__ == '__main__':
  command.define_training('compression_study')
  absl_flags.DEFINE_string('output', str(RESULTS), 'folder for the table and the pictures')
  sys.exit(flags.run(main, __doc__, ('executor', 'output')))
