"""Measures files of trained networks where they run: bytes, milliseconds, memory, accuracy.

Question: what is a compressed network worth outside of the lab, beside the dense one?
Papers: ratios with their spread, as What is the state of neural network pruning asks for
  (arXiv:2003.03033).
Command: ./launch.sh measure dense.onnx compressed.onnx --data_dir=DIR
Expected: a row a file; ratios to the first one.
Cost: about ten seconds a file.

Files of one data set take turns, so that whatever else the machine does hits all alike. Latency is
of calls by one thread (XLA's programs take all cores), median and 95th percentile; ratios are the
first file's time over this one's, with a 95 % interval over rounds. Memory is what a process of its
own takes beside its libraries. Files ending in .onnx, .stablehlo and .lepton are known; what was
written beside them on export tells the data set.
"""

import pathlib
import sys
import tempfile

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
OWN = ('split', 'data_dir', 'batches', 'rounds', 'output')


def main(files):
  from lepton_jax.deploy import comparison
  from lepton_jax.report import markdown, tables
  from lepton_jax.sweep import command
  if not files:
    raise UserError('name the files to measure, the dense network first')
  try:
    batches = [int(size) for size in FLAGS.batches.split(',')]
  except ValueError:
    batches = [0]
  if min(batches) < 1:
    raise UserError(f'--batches={FLAGS.batches}: allowed are whole numbers from 1, with commas')
  with tempfile.TemporaryDirectory() as place:
    rows = comparison.rows(files, FLAGS.split, FLAGS.data_dir, batches, FLAGS.rounds,
                         pathlib.Path(place))
  tables.print_rows(comparison.table(rows))
  print(rows[0]['processor'])
  if FLAGS.output:
    command.make_folder(pathlib.Path(FLAGS.output).parent)
    markdown.write_rows(FLAGS.output, [{k: str(v) for k, v in row.items()} for row in rows])
  return 0


if __name__ == '__main__':
  absl_flags.DEFINE_enum('split', 'test', ['validation', 'test'], 'split to measure accuracy on')
  absl_flags.DEFINE_string('data_dir', '', 'folder of prepared TFDS data')
  absl_flags.DEFINE_string('batches', '1,8,64', 'batch sizes, comma-separated')
  absl_flags.DEFINE_integer('rounds', 15, 'turns that each file takes', lower_bound=3)
  absl_flags.DEFINE_string('output', '', 'CSV file to write as well')
  sys.exit(flags.run(main, __doc__, OWN, files=True))
