"""What each way of compressing costs in accuracy: tables of settings over seeds, one line a run.

Question: which scores, schedules, bit widths and structures are worth their accuracy, against a
  dense network that was trained as long?
Papers: named at each table in TABLES below.
Command: ./launch.sh compression_tables --data_dir=DIR --tables=scores_lenet5
Expected: experiments/results/compression_tables.csv as committed, times apart.
Cost: half an hour a table on 2 cores for LeNet-5 and LSTMs, hours for ResNets.

Finished lines are kept: a table is trained only for the settings and seeds that the file lacks, and
a run that was stopped goes on where it was. Every setting has a fixed number of epochs and nothing
is chosen by what it scores, so the test column is of all settings.
"""

import pathlib
import sys
import typing

from absl import flags as absl_flags

from lepton_jax import config as config_lib
from lepton_jax import flags
from lepton_jax.errors import UserError
from lepton_jax.sweep import command, trials

FLAGS = absl_flags.FLAGS
OWN = ('tables', 'seeds', 'data_dir', 'output', 'runs_dir', 'executor')
RESULTS = pathlib.Path(__file__).parent / 'results' / 'compression_tables.csv'
COLUMNS = ('table', 'setting', 'seed', 'measure', 'test', 'validation', 'num_parameters',
           'sparsity', 'rounded_sparsity', 'estimated_bytes', 'epochs', 'train_seconds',
           'processor', 'jax', 'git_revision', 'flags')
DENSE = 'dense'


class Table(typing.NamedTuple):
  """One table.

  Attributes:
    base: options of all its runs.
    settings: {name: options on top of them}.
    parent: options of a dense run that all of them start from, of the same seed; None: of none.
  """
  base: dict
  settings: dict
  parent: dict | None = None


MNIST = dict(model='lenet5', dataset='mnist', epochs=9, augment_crop=2)
CIFAR = dict(dataset='cifar10', batch_size=128, optimizer='nesterov', learning_rate=0.1,
             weight_decay=5e-3, schedule='one_cycle', augment_flip=True, augment_crop=4)
ROWS = dict(model='lstm_classifier', epochs=20, learning_rate=3e-3)
SHAKESPEARE = dict(model='lstm_lm', dataset='tiny_shakespeare', hidden=256, batch_size=32,
                   epochs=10, learning_rate=3e-3, dropout=0.2, clip_norm=1.0)
SCORES = ('random', 'magnitude', 'saliency', 'snip', 'grasp', 'synflow', 'movement')


def bits(weights, inputs, **options):
  return dict(quantize_weight_bits=weights, quantize_activation_bits=inputs, **options)


def scores(sparsity):
  return {DENSE: {}, **{name: dict(prune_score=name, prune_sparsity=sparsity) for name in SCORES}}


RECURRENT = {
    DENSE: {}, 'W4A8': bits(4, 8), 'W2A8': bits(2, 8, quantize_weights='lsq'),
    'ternary, A8': bits(2, 8, quantize_weights='ternary'),
    **{f'{100 * share:.0f} % sparse': dict(prune_sparsity=share) for share in (0.8, 0.9, 0.95)}}
DYNAMIC = {
    f'{name}, {100 * share:.0f} %': dict(prune_sparsity=share, **options)
    for share in (0.9, 0.98)
    for name, options in dict(
        static=dict(prune_schedule='one_shot', prune_begin=0.0, prune_score='random',
                    prune_allocation='erk'),
        SET=dict(prune_schedule='set', prune_allocation='erk', prune_end=0.75),
        RigL=dict(prune_schedule='rigl', prune_allocation='erk', prune_end=0.75)).items()}

TABLES = {
    # Scores of their papers, under one schedule and allocation.
    'scores_lenet5': Table(MNIST, scores(0.95)),
    'scores_resnet8': Table(dict(CIFAR, model='resnet8', epochs=15), scores(0.9)),
    # RigL, arXiv:1911.11134, figure 2: static < SET < RigL.
    'dynamic_resnet8': Table(dict(CIFAR, model='resnet8', epochs=20), {DENSE: {}, **DYNAMIC}),
    'lstm_rows': Table(ROWS, RECURRENT),
    'lstm_characters': Table(SHAKESPEARE, RECURRENT),
}


def main(config):
  del config
  from lepton_jax.report import markdown
  names = FLAGS.tables.split(',')
  if not set(names) <= set(TABLES):
    raise UserError(f'--tables={FLAGS.tables}: allowed are {", ".join(TABLES)}')
  output = pathlib.Path(FLAGS.output)
  for name in names:
    lines = markdown.rows(output) if output.exists() else []
    done = {(line['table'], line['setting'], line['seed'], line['flags']) for line in lines}
    missing = [(setting, seed) for setting in TABLES[name].settings
               for seed in FLAGS.seeds.split(',')
               if (name, setting, seed, described(TABLES[name], setting)) not in done]
    lines += train(name, missing)
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


def train(name, missing):
  """Trains [(setting, seed)] of a table, first the runs that they start from; the new lines."""
  if not missing:
    return []
  table = TABLES[name]
  where = dict(runs_dir=f'{FLAGS.runs_dir}/{name}', data_dir=FLAGS.data_dir, tensorboard=False,
               pictures=False, checkpoint_every=0)
  base = config_lib.Config().replace(**where)
  parents = {}
  if table.parent is not None:
    parents = {seed: base.replace(**table.base | table.parent, seed=int(seed)).check()
               for _, seed in missing}
    command.train_all(list(parents.values()))
  start = {seed: dict(init_from=str(trials.folder_of(one))) for seed, one in parents.items()}
  configs = {(setting, seed): base.replace(**table.base | start.get(seed, {}) |
                                           table.settings[setting], seed=int(seed)).check()
             for setting, seed in missing}
  command.train_all(list(configs.values()))
  return [line(name, setting, seed, config) for (setting, seed), config in configs.items()]


def line(name, setting, seed, config):
  result = trials.finished(config)
  measure = result['measure']
  found = result | dict(
      table=name, setting=setting, seed=seed, test=result[f'test_{measure}'],
      validation=result[f'validation_{measure}'], jax=result['versions']['jax'],
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
