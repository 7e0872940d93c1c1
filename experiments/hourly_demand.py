"""Writes an hourly series of real electricity demand, to forecast with the `series:` data set.

Question: does a recurrent network forecast better than repeating the last hour or the last day?
Source: demand in England and Wales, 2000-06-05 to 2000-08-27 (Taylor, J. Oper. Res. Soc. 54, 2003),
  half-hourly megawatts as the package pmdarima ships them; each hour is the mean of its two values.
Command: ./launch.sh hourly_demand --output=demand.csv
Expected: demand.csv with 2,016 rows, for --dataset=series:demand.csv --target=demand
Cost: seconds.
"""

import csv
import datetime
import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
OWN = ('output',)


def main(config):
  del config
  try:
    from pmdarima.datasets import load_taylor
  except ImportError:
    raise UserError('the package pmdarima, which ships the series, is not installed: '
                    'pip install pmdarima') from None
  hourly = load_taylor().reshape(-1, 2).mean(1)
  start = datetime.datetime(2000, 6, 5)
  with open(FLAGS.output, 'w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(('date', 'demand'))
    writer.writerows(((start + datetime.timedelta(hours=i)).isoformat(' ', 'minutes'), value)
                     for i, value in enumerate(hourly))
  print(f'{FLAGS.output}: {len(hourly):,} hours')
  return 0


if __name__ == '__main__':
  absl_flags.DEFINE_string('output', 'demand.csv', 'file to write')
  sys.exit(flags.run(main, __doc__, OWN))
