"""Quantises a finished run without training it again, and measures what that cost.

Question: what do fewer bits cost a network that was trained in float, given a few batches?
Papers: calibration and rounding as in arXiv:2004.10568 (AdaRound), bias correction and batch
  statistics as in arXiv:1906.04721.
Command: ./launch.sh quantize --run=runs/lenet5-mnist5k-0123456789 --quantize_weight_bits=4
  --quantize_activation_bits=8 --quantize_rounding=adaround
Expected: a run folder with the rounded network, within a point of the run in float at 4 and 8 bits.
Cost: seconds; with adaround about as many minutes as the network has large layers on 2 cores.

Every flag of `train` that is given replaces the run's own. The batches that calibrate are of the
training part; validation and test are only measured.
"""

import sys

from absl import flags as absl_flags

from lepton_jax import config as config_lib
from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
DEFAULTS = dict(quantize_weight_bits=8, quantize_activation_bits=8, quantize_inputs='mse_range')
# What belongs to the run in float alone, beside what it did once.
TRAINED = dict(ema_decay=0.0, swa_start=0.0, freeze='', quantize_weights='lsq')


def main(config):
  from lepton_jax import folder, run
  from lepton_jax.report import tables
  if not FLAGS.run:
    raise UserError('--run=FOLDER names the finished run to quantise')
  given = {name for name in config_lib.FIELDS if FLAGS[name].present}
  own = {name: value for name, value in config.flat().items() if name in given}
  if {'init_from', 'quantize_after'} & given:
    raise UserError('--run names the run that is rounded: no --init_from, no --quantize_after')
  fixed = dict(init_from=FLAGS.run, quantize_after=True, runs_dir=config.run.runs_dir)
  base = folder.read_config(FLAGS.run).as_start()
  config = base.replace(**{**TRAINED, **DEFAULTS, **own, **fixed})
  before, after = folder.read_result(FLAGS.run), run.train(config.check())
  tables.print_table(f'{config.run.runs_dir}/{config.name()}', tables.result_rows(after))
  name = f'validation_{after["measure"]}'
  if before and name in after:
    print(f'{name}: {before[name]:.4f} in float, {after[name]:.4f} quantised')
  return 0


if __name__ == '__main__':
  flags.define()
  absl_flags.DEFINE_string('run', '', 'folder of a finished run in float')
  sys.exit(flags.run(main, __doc__, ('run',)))
