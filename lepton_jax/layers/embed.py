"""Table of vectors for tokens."""

import flax.linen as nn
import jax.numpy as jnp


class Embed(nn.Module):
  """int[batch, time] -> f32[batch, time, features], with parameter embedding[entries, features]."""
  entries: int
  features: int

  @nn.compact
  def __call__(self, tokens):
    table = self.param('embedding', nn.initializers.normal(0.1), (self.entries, self.features), jnp.float32)
    return table[tokens]

  def attend(self, x):
    """f32[batch, time, features] -> f32[batch, time, entries]: the table as an output layer (arXiv:1608.05859)."""
    return x @ self.variables['params']['embedding'].T.astype(x.dtype)
