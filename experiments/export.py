"""Writes a trained network as a file that other runtimes run, and proves that it answers alike.

Question: does the network answer the same outside of this program, and how large is it there?
Papers: ONNX (onnx.ai), StableHLO (openxla.org/stablehlo); the packed file is in
  lepton_jax/deploy/FORMAT.md.
Command: ./launch.sh export --run=runs/lenet5-mnist5k-0123456789 --format=onnx --output=lenet5.onnx
Expected: the file, FILE.json beside it, the largest error and the share of equal decisions.
Cost: seconds.

onnx: a self-contained graph of ONNX's own operators with the scaling of inputs inside; batch norms
  are folded, LSTM, GRU and simple recurrent layers are single operators, rounded weights are whole
  numbers with the scales that were trained, removed channels are gone. Classes and vocabulary are
  in its metadata. --int4 stores weights of up to 4 bits so even where a runtime would be faster
  with 8.
stablehlo: a jax.export program for CPU, CUDA and TPU, which JAX runs without this project.
lepton: the packed file, the smallest.

The batch size is free, the length of texts too. A file whose answers differ is not written.
"""

import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
FORMATS = ('onnx', 'stablehlo', 'lepton')
OWN = ('run', 'artifact', 'format', 'output', 'int4', 'data_dir')


def main(config):
  del config
  from lepton_jax import folder
  from lepton_jax.deploy import exports, measure
  from lepton_jax.report import tables
  if bool(FLAGS.run) == bool(FLAGS.artifact):
    raise UserError('--run=FOLDER names a finished run or --artifact=FILE a packed file: one of '
                    'them')
  where = dict(data_dir=FLAGS.data_dir) if FLAGS.data_dir else {}
  trained = (folder.load(FLAGS.run, **where) if FLAGS.run else
             measure.open_file(FLAGS.artifact, **where))
  output = FLAGS.output or f'{trained.config.architecture.model}.{FLAGS.format}'
  found = exports.write(trained, FLAGS.format, output, FLAGS.int4)
  print(output)
  tables.print_table('exported and compared', [
      ('bytes', f'{found["bytes"]:,}'), ('parameters', f'{found["num_parameters"]:,}'),
      ('multiply-accumulates', f'{found["macs"]:,}'),
      ('largest error', f'{found["largest_error"]:.1e}'),
      ('largest output', f'{found["largest_output"]:.4g}'),
      *([('same decisions', f'{found["same_decisions"]:.2%} of {found["samples"]}')]
        if 'same_decisions' in found else [])])
  for note in found['notes']:
    print(f'note: {note}')
  return 0


if __name__ == '__main__':
  absl_flags.DEFINE_string('run', '', 'folder of a finished run')
  absl_flags.DEFINE_string('artifact', '', 'packed file (.lepton)')
  absl_flags.DEFINE_enum('format', 'onnx', FORMATS, 'what to write')
  absl_flags.DEFINE_string('output', '', 'file to write; empty: MODEL.FORMAT')
  absl_flags.DEFINE_bool('int4', False, 'onnx: weights of up to 4 bits take 4 bits each, though '
                                        'runtimes then compute in float')
  absl_flags.DEFINE_string('data_dir', '', 'folder of prepared TFDS data; empty: as it was trained')
  sys.exit(flags.run(main, __doc__, OWN))
