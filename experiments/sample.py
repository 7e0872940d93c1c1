"""Writes text with a trained character model.

Question: what has this language model learned to write?
Paper: arXiv:1308.0850 (generating sequences with recurrent networks); top-k as in arXiv:1805.04833.
Command: ./launch.sh sample --run=runs/lstm_lm-tiny_shakespeare-3f9a2c61d0 --length=500
  --temperature=0.8
Expected: text in the manner of the training text; the same text again for the same seed.
Cost: seconds.
"""

import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
OWN = ('run', 'prompt', 'length', 'temperature', 'top_k', 'seed', 'data_dir')


def main(config):
  del config
  from lepton_jax import folder, generate
  if not FLAGS.run:
    raise UserError('--run=DIR is needed: the folder that training printed')
  trained = folder.load(FLAGS.run, **({'data_dir': FLAGS.data_dir} if FLAGS.data_dir else {}))
  written = generate.text(trained, FLAGS.prompt, FLAGS.length, FLAGS.temperature, FLAGS.top_k,
                          FLAGS.seed)
  print(FLAGS.prompt + written)
  return 0


if __name__ == '__main__':
  absl_flags.DEFINE_string('run', '', 'run folder of a language model')
  absl_flags.DEFINE_string('prompt', '\n', 'text to continue')
  absl_flags.DEFINE_integer('length', 500, 'characters to write', lower_bound=1)
  absl_flags.DEFINE_float('temperature', 1.0,
                          'divides the logits; 0 always takes the likeliest character',
                          lower_bound=0)
  absl_flags.DEFINE_integer('top_k', 0, 'draw among the k likeliest characters; 0: among all',
                            lower_bound=0)
  absl_flags.DEFINE_integer('seed', 0, 'seed of the draws')
  absl_flags.DEFINE_string('data_dir', '', "folder of prepared TFDS data; empty: the run's own")
  sys.exit(flags.run(main, __doc__, OWN))
