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

import pathlib
import sys

from absl import flags as absl_flags

from experiments.tables import study
from experiments.tables.compression import TABLES
from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
OWN = ('tables', *study.OWN)
RESULTS = pathlib.Path(__file__).parent / 'results' / 'compression_tables.csv'


def main(config):
  del config
  names = FLAGS.tables.split(',')
  if not set(names) <= set(TABLES):
    raise UserError(f'--tables={FLAGS.tables}: allowed are {", ".join(TABLES)}')
  study.extend(FLAGS.output, {name: TABLES[name] for name in names},
               lambda name, setting: dict(table=name, setting=setting))
  return 0


if __name__ == '__main__':
  absl_flags.DEFINE_string('tables', 'lstm_rows', f'tables, comma-separated <{"|".join(TABLES)}>')
  study.define('runs/compression_tables', RESULTS)
  sys.exit(flags.run(main, __doc__, OWN))
