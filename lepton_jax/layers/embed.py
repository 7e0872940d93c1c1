"""Table of vectors for tokens."""

import flax.linen as nn
import jax.numpy as jnp

from lepton_jax.layers import widths
from lepton_jax.precision import at_least_single


class Embed(nn.Module):
  """int[batch, time] -> dtype[batch, time, features], with parameter embedding[entries, features].

  Numbers of words have no precision that the layer could follow, so it is told.
  """
  entries: int
  features: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, tokens):
    shape = (self.entries, widths.width(self.path, self.features))
    table = self.param('embedding', nn.initializers.normal(0.1), shape,
                       at_least_single(jnp.dtype(self.dtype)))
    return table[tokens].astype(self.dtype)

  def attend(self, x):
    """Uses the table as an output layer (arXiv:1608.05859).

    x is f32[batch, time, features]; the logits are f32[batch, time, entries].
    """
    return x @ self.variables['params']['embedding'].T.astype(x.dtype)
