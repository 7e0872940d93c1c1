"""Everything a training run is at one moment, as arrays."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TrainState:
  """Arrays only, so that a run can be sharded, donated, saved and compared bit for bit.

  Attributes:
    step: int32[], updates made so far.
    params: trained weights.
    learned: {method: arrays} that methods of compression train with the weights.
    model_state: batch statistics; for running text the carried state of recurrent layers.
    opt_state: the optimizer's.
    held: {method: arrays} that they keep beside them: masks, calibrated ranges.
    ema: moving average of `trained` and of batch statistics; empty when off.
    best: what was evaluated at the best validation, and its measurements; empty until there is one.
    stale: int32[], epochs since the best.
    totals: sums of this epoch's measurements and their count.
    hparams: {name: f32[]}, the strengths that are not zero.
    key: PRNG key of the run; steps fold in their number.
  """
  step: jax.Array
  params: dict
  learned: dict
  model_state: dict
  opt_state: tuple
  held: dict
  ema: dict
  best: dict
  stale: jax.Array
  totals: dict
  hparams: dict
  key: jax.Array

  @property
  def trained(self):
    """What the gradient is taken of."""
    return dict(params=self.params, learned=self.learned)

  @property
  def evaluated(self):
    """What is evaluated and kept: the moving average where there is one, else what is trained."""
    now = self.ema or dict(self.trained, model_state=lasting(self.model_state))
    return dict(now, held=self.held)


def lasting(model_state):
  """A model_state without the carry, which belongs to the text being read."""
  return {name: value for name, value in model_state.items() if name != 'carry'}


def zero_totals(measurements):
  """Sums of the named measurements at the start of an epoch, and the count of steps."""
  return {name: jnp.zeros((), jnp.float32) for name in (*measurements, 'steps')}
