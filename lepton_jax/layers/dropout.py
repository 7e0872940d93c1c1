"""Dropout whose masks do not depend on where an example is computed."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dropout(nn.Module):
  """Zeroes entries at the rate of the training step and scales the rest by 1 / (1 - rate) (JMLR 15, 2014).

  The mask is a function of the step's key, this layer's path and the example's position in the
  global batch, so every way of splitting a batch over devices draws the same one. `x[batch, ...]`.
  """

  @nn.compact
  def __call__(self, x, training):
    if training is None or training.dropout is None:
      return x
    key = self.make_rng('dropout')
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(training.example)
    # 32-bit draws in every precision: a float64 run drops what a float32 run drops.
    draw = jax.vmap(lambda k: jax.random.uniform(k, x.shape[1:], jnp.float32))(keys)
    keep = 1 - training.dropout
    return jnp.where(draw < keep.astype(jnp.float32), x / keep.astype(x.dtype), jnp.zeros_like(x))


class StochasticDepth(nn.Module):
  """Leaves out a residual branch of some examples, at `depth` times the rate of the training step (arXiv:1603.09382).

  `depth` in (0, 1] is the block's place among all blocks. A branch that stays is scaled to keep the mean.
  """
  depth: float

  @nn.compact
  def __call__(self, x, training):
    if training is None or training.stochastic_depth is None:
      return x
    key, keep = self.make_rng('dropout'), 1 - self.depth * training.stochastic_depth
    draw = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (), jnp.float32))(training.example)
    kept = (draw < keep.astype(jnp.float32)).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(kept, x / keep.astype(x.dtype), jnp.zeros_like(x))
