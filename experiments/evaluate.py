"""Evaluates a finished run in full on one of its splits.

Question: where is this network right, where is it wrong, and does it know which?
Paper: calibration error as in arXiv:1706.04599; the other measures are scikit-learn's.
Command: ./launch.sh evaluate --run=runs/lenet5-mnist5k-3f9a2c61d0
  or, of a packed file: ./launch.sh evaluate --artifact=network.lepton
Expected: the test accuracy of the run's result.json or the file's packed.json, to the last digit.
Cost: seconds.

Writes evaluation-SPLIT.json, and for classes confusion-SPLIT.png, into the run folder; of a packed
file it only prints.
"""

import json
import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError

HERE = ('data_dir', 'processes', 'process_index', 'coordinator', 'cpu_devices')
OWN = ('run', 'artifact', 'split', 'json', *HERE)
FLAGS = absl_flags.FLAGS


def main(config):
  del config
  from etils import epath

  from lepton_jax import cluster, evaluation, files, folder
  from lepton_jax.report import pictures, tables
  if bool(FLAGS.run) == bool(FLAGS.artifact):
    raise UserError('--run=DIR, the folder that training printed, or --artifact=FILE, a packed '
                    'network; one of them')
  elsewhere = {name: FLAGS[name].value for name in HERE if FLAGS[name].present}
  if FLAGS.artifact:
    from lepton_jax.deploy import measure
    trained = measure.open_file(FLAGS.artifact, **elsewhere)
  else:
    trained = folder.load(FLAGS.run, **elsewhere)
  report, confusion = evaluation.full_report(trained, FLAGS.split)
  if not cluster.first():
    return 0
  if FLAGS.artifact:
    print(json.dumps(report)) if FLAGS.json else tables.print_report(
        f'{FLAGS.artifact}, {FLAGS.split}', report)
    return 0
  place = epath.Path(FLAGS.run).expanduser()
  title = f'{trained.config.name()}, {FLAGS.split}'
  content = json.dumps(report, indent=2) + '\n'
  files.write_atomically(place / f'evaluation-{FLAGS.split}.json', content)
  if confusion:
    pictures.confusion_matrix(confusion, trained.data.classes,
                              place / f'confusion-{FLAGS.split}.png', title)
  if FLAGS.json:
    print(json.dumps(report))
  else:
    tables.print_report(title, report)
  return 0


if __name__ == '__main__':
  absl_flags.DEFINE_string('run', '', 'run folder to evaluate')
  absl_flags.DEFINE_string('artifact', '', 'packed file to evaluate')
  absl_flags.DEFINE_enum('split', 'test', ['train', 'validation', 'test'], 'split to evaluate')
  absl_flags.DEFINE_bool('json', False, 'print one JSON object as the last line instead of tables')
  flags.define_some(HERE)
  sys.exit(flags.run(main, __doc__, OWN))
