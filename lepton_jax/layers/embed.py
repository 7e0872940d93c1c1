"""Table of vectors for tokens."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from lepton_jax.layers import platform, widths
from lepton_jax.precision import at_least_single


def exists(tokens):
  """bool[batch, time]: which steps have a token, of int[batch, time] or int[batch, time, 1 + n]."""
  return (tokens if tokens.ndim == 2 else tokens[..., 0]) > 0


def with_parts(table, tokens):
  words, parts = tokens[..., 0], tokens[..., 1:]
  count = jnp.sum(parts > 0, -1, keepdims=True).astype(table.dtype)
  if platform.as_graph():  # a file holds the table once
    vectors = table[parts] * (parts > 0)[..., None].astype(table.dtype)
  else:  # a row of zeros for what is no part takes half the time
    vectors = table.at[0].set(0)[parts]
  total = jnp.sum(vectors, -2)
  return table[words] + total * lax.rsqrt(jnp.maximum(count, 1))


class Embed(nn.Module):
  """int[batch, time] -> dtype[batch, time, features], with parameter embedding[entries, features].

  Of int[batch, time, 1 + n], words with their parts, a word is its own vector plus those of its
  parts (arXiv:1607.04606) over the square root of their number; 0 is no part.
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
    found = table[tokens] if tokens.ndim == 2 else with_parts(table, tokens)
    return found.astype(self.dtype)

  def attend(self, x):
    """Uses the table as an output layer (arXiv:1608.05859).

    x is f32[batch, time, features]; the logits are f32[batch, time, entries].
    """
    return x @ self.variables['params']['embedding'].T.astype(x.dtype)
