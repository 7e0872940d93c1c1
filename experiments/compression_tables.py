"""What each way of compressing costs in accuracy: tables of settings over seeds, one line a run.

Question: which scores, schedules, bit widths and structures are worth their accuracy, against a
  dense network that was trained as long?
Papers: named at each table in experiments/tables/compression.py.
Command: ./launch.sh compression_tables --data_dir=DIR --tables=scores_lenet5
Expected: experiments/results/compression_tables.csv as committed, times apart.
Cost: half an hour a table on 2 cores for LeNet-5 and LSTMs, hours for ResNets.

Finished lines are kept, a seed at a time: a table is trained only for the settings and seeds that
the file lacks, and a run that was stopped goes on where it was. Every setting has a fixed number of
epochs and nothing is chosen by what it scores, so the test column is of all settings.
"""

import itertools
import pathlib
import sys

from absl import flags as absl_flags

from experiments.tables.compression import TABLES
from lepton_jax import config as config_lib
from lepton_jax import flags, outcomes
from lepton_jax.errors import UserError
from lepton_jax.sweep import command

FLAGS = absl_flags.FLAGS
OWN = ('tables', 'seeds', 'data_dir', 'output', 'runs_dir', 'executor')
RESULTS = pathlib.Path(__file__).parent / 'results' / 'compression_tables.csv'
COLUMNS = ('table', 'setting', 'seed', 'measure', 'test', 'validation', 'num_parameters',
           'sparsity', 'rounded_sparsity', 'macs', 'file_bytes', 'epochs', 'train_seconds',
           'processor', 'jax', 'git_revision', 'flags')


def main(config):
  del config
  from lepton_jax.report import markdown
  names = FLAGS.tables.split(',')
  if not set(names) <= set(TABLES):
    raise UserError(f'--tables={FLAGS.tables}: allowed are {", ".join(TABLES)}')
  output = pathlib.Path(FLAGS.output)
  for name, seed in itertools.product(names, FLAGS.seeds.split(',')):
    lines = markdown.rows(output) if output.exists() else []
    done = {(line['table'], line['setting'], line['seed'], line['flags']) for line in lines}
    lines += train(name, seed, [setting for setting in TABLES[name].settings if (
        name, setting, seed, described(TABLES[name], setting)) not in done])
    order = list(TABLES)
    lines.sort(key=lambda line: (order.index(line['table']),
                                 list(TABLES[line['table']].settings).index(line['setting']),
                                 int(line['seed'])))
    markdown.write_rows(output, lines)
  return 0


def described(table, setting):
  """A run's options as flags."""
  words = lambda options: ' '.join(f'--{name}={value}' for name, value in options.items())
  start = f'after ({words(table.base | table.parent)}): ' if table.parent is not None else ''
  return start + words(table.base | table.settings[setting])


def train(name, seed, settings):
  """Trains settings of a table, first the run that they start from; their lines."""
  if not settings:
    return []
  table = TABLES[name]
  base = config_lib.Config().replace(
      runs_dir=FLAGS.runs_dir, data_dir=FLAGS.data_dir, tensorboard=False, pictures=False,
      checkpoint_every=0, seed=int(seed), **table.base)
  start = {}
  if table.parent is not None:
    parent = base.replace(**table.parent).check()
    command.train_all([parent])
    start = dict(init_from=str(outcomes.folder_of(parent)))
  configs = [base.replace(**start | table.settings[setting]).check() for setting in settings]
  train_all(configs)
  return [line(name, setting, seed, config) for setting, config in zip(settings, configs)]


def train_all(configs):
  """Trains what is trained as trials of a sweep; what is rounded afterwards one by one."""
  from lepton_jax import run
  swept = [config for config in configs if not config.quantize.quantize_after]
  if swept:
    command.train_all(swept)
  for config in configs:
    if config.quantize.quantize_after:
      run.train(config)


def line(name, setting, seed, config):
  result = outcomes.finished(config)
  measure = result['measure']
  found = result | dict(
      table=name, setting=setting, seed=seed, test=result[f'test_{measure}'],
      validation=result[f'validation_{measure}'], jax=result['versions']['jax'],
      processor=result['processor'] if result['device'] == 'cpu' else result['device'],
      flags=described(TABLES[name], setting))
  return {column: str(found[column]) for column in COLUMNS}


if __name__ == '__main__':
  absl_flags.DEFINE_string('tables', 'lstm_rows', f'tables, comma-separated <{"|".join(TABLES)}>')
  absl_flags.DEFINE_string('seeds', '0,1,2', 'seeds, comma-separated')
  absl_flags.DEFINE_string('data_dir', '', 'folder of prepared TFDS data')
  absl_flags.DEFINE_string('runs_dir', 'runs/compression_tables', 'the run folders are made here')
  absl_flags.DEFINE_string('output', str(RESULTS), 'CSV file to extend')
  absl_flags.DEFINE_enum('executor', 'inline', ('inline', 'devices', 'processes'),
                         'as in sweeps: where trials run')
  sys.exit(flags.run(main, __doc__, OWN))
