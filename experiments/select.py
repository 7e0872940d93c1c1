"""Picks the best of finished runs under a budget of bytes, milliseconds and accuracy.

Question: which of my networks do I ship, if it may take 64 kB and a millisecond?
Papers: fronts of accuracy against cost, as arXiv:2003.03033 asks for.
Command: ./launch.sh select --runs='runs/*' --max_kb=64 --max_ms=1.0 --min_accuracy=0.97
Expected: the front over accuracy, bytes and milliseconds, the choice, and the command for it.
Cost: seconds a run, the first time: each is exported to ONNX and timed here.

The choice is the best validation accuracy that fits; its test accuracy is shown for it alone. Where
nothing fits, the nearest misses are told. Times are of one example and one thread of this machine.
"""

import glob
import pathlib
import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
OWN = ('runs', 'max_kb', 'max_ms', 'min_accuracy', 'data_dir', 'output')


def main(config):
  del config
  from lepton_jax.deploy import budget
  from lepton_jax.report import tables
  from lepton_jax.sweep import command
  folders = sorted(path for pattern in FLAGS.runs.split(',')
                   for path in glob.glob(str(pathlib.Path(pattern).expanduser())))
  if not folders:
    raise UserError(f'--runs={FLAGS.runs}: no folder matches')
  given = dict(kb=FLAGS.max_kb, ms=FLAGS.max_ms, accuracy=FLAGS.min_accuracy)
  limits = {name: limit for name, limit in given.items() if limit is not None}
  rows = budget.candidates(folders, FLAGS.data_dir)
  if FLAGS.min_accuracy is not None and rows[0]['measure'] != 'accuracy':
    raise UserError(f'--min_accuracy: these runs are measured by {rows[0]["measure"]}')
  budget.time(rows)
  best, output = budget.chosen(rows, limits), pathlib.Path(FLAGS.output).expanduser()
  print(f'{len(rows)} runs; nothing beats these in accuracy, bytes and milliseconds together:')
  tables.print_rows([budget.shown(row) for row in sorted(budget.front(rows),
                                                         key=lambda row: row['kb'])])
  command.make_folder(output)
  budget.draw(rows, best, limits, output / 'budget.png')
  (output / 'budget.json').write_text(budget.as_json(rows, best))
  print(f'{output}/budget.png, budget.json')
  if best is None:
    print('nothing fits; the nearest misses:')
    for row in budget.nearest(rows, limits):
      print(f'  {row["run"]}: {budget.missed(row, limits)}')
    return 1
  print(f'best: {best["run"]}/{budget.FILE}\n  validation {best["accuracy"]:.4f}, test '
        f'{best["test"]:.4f}, {best["kb"]:.1f} kB, {best["ms"]:.3g} ms\n'
        f'  {budget.command(best["config"])}')
  return 0


if __name__ == '__main__':
  absl_flags.DEFINE_string('runs', 'runs/*', 'run folders, patterns with commas between')
  absl_flags.DEFINE_float('max_kb', None, 'largest ONNX file in kB (1,000 bytes)', lower_bound=0)
  absl_flags.DEFINE_float('max_ms', None, 'longest time of one example in ms', lower_bound=0)
  absl_flags.DEFINE_float('min_accuracy', None, 'least validation accuracy, a share', 0, 1)
  absl_flags.DEFINE_string('data_dir', '', 'folder of prepared TFDS data; empty: as trained')
  absl_flags.DEFINE_string('output', 'runs/select', 'folder of the picture and of budget.json')
  sys.exit(flags.run(main, __doc__, OWN))
