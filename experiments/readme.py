"""Writes the README's result tables from the CSV files in experiments/results.

Question: do the numbers in the README stand in the committed results?
Command: ./launch.sh readme --check
Expected: exit status 0 and no output.
Cost: a second.
"""

import pathlib
import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
ROOT = pathlib.Path(__file__).parents[1]


def main(config):
  del config
  from lepton_jax.report import markdown
  path = ROOT / 'README.md'
  text = path.read_text()
  fresh = text
  for name, make in dict(accuracy=markdown.accuracy_table, benchmark=markdown.speed_table).items():
    fresh = markdown.insert(fresh, name, make(markdown.rows(ROOT / 'experiments' / 'results' / f'{name}.csv')))
  if FLAGS.check:
    if fresh != text:
      raise UserError('README.md differs from experiments/results; run ./launch.sh readme')
  else:
    path.write_text(fresh)
  return 0


if __name__ == '__main__':
  absl_flags.DEFINE_bool('check', False, 'change nothing; fail if the README differs')
  sys.exit(flags.run(main, __doc__, ('check',)))
