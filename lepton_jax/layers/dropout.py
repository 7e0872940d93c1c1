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
