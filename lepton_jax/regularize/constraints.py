"""What an update may not leave behind, and where a gradient is looked at."""

import jax
import jax.numpy as jnp

from lepton_jax import trees
from lepton_jax.regularize.penalties import by_output


def max_norm(kernel, limit):
  """Scales the weights into each filter or unit to a norm of at most `limit` (JMLR 15, 2014)."""
  norm = jnp.sqrt(jnp.sum(jnp.square(by_output(kernel)), 0))
  return kernel * jnp.minimum(1, limit.astype(kernel.dtype) / jnp.maximum(norm, 1e-12))


def sharpest(trained, gradients, radius):
  """The weights moved by `radius` uphill along their gradient.

  Sharpness-aware minimisation updates by the gradient at that point (arXiv:2010.01412).
  """
  scale = radius / jnp.maximum(trees.global_norm(gradients), 1e-12)
  return jax.tree.map(lambda w, g: w + scale.astype(w.dtype) * g, trained, gradients)
