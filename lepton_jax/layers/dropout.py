"""Dropout whose masks do not depend on where an example is computed."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def drop(x, rate, shape, example, key):
  """Zeroes parts of `x[batch, ...]` at the rate, a scalar, and scales the rest by 1 / (1 - rate).

  The scaling keeps the mean. Each example draws a mask of the given shape, which broadcasts against
  `x[i]`, from the key and its place i32[batch] in the global batch, so every way of splitting a
  batch over devices draws the same one.
  """
  keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(example)
  # 32-bit draws in every precision: a float64 run drops what a float32 run drops.
  draw = jax.vmap(lambda k: jax.random.uniform(k, shape, jnp.float32))(keys)
  keep = 1 - rate
  return jnp.where(draw < keep.astype(jnp.float32), x / keep.astype(x.dtype), jnp.zeros_like(x))


class Dropout(nn.Module):
  """Zeroes entries of `x[batch, ...]` at the step's rate and scales the rest (JMLR 15, 2014)."""

  @nn.compact
  def __call__(self, x, training):
    if training is None or training.dropout is None:
      return x
    return drop(x, training.dropout, x.shape[1:], training.example, self.make_rng('dropout'))


class StochasticDepth(nn.Module):
  """Leaves out a residual branch of some examples in training (arXiv:1603.09382).

  It does so at `depth` times the rate of the training step, where `depth` in (0, 1] is the block's
  place among all blocks. A branch that stays is scaled to keep the mean.
  """
  depth: float

  @nn.compact
  def __call__(self, x, training):
    if training is None or training.stochastic_depth is None:
      return x
    shape = (1,) * (x.ndim - 1)
    rate = self.depth * training.stochastic_depth
    return drop(x, rate, shape, training.example, self.make_rng('dropout'))
