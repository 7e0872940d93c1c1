"""What an update may not leave behind, and where a gradient is looked at."""

import jax
import jax.numpy as jnp

from lepton_jax import trees
from lepton_jax.regularize.penalties import by_output


def max_norm(kernel, limit):
  """A kernel whose weights into each filter or unit have at most the norm `limit` (JMLR 15,
  2014).
  """
  norm = jnp.sqrt(jnp.sum(jnp.square(by_output(kernel)), 0))
  return kernel * jnp.minimum(1, limit.astype(kernel.dtype) / jnp.maximum(norm, 1e-12))


def sharpest(trained, gradients, radius):
  """Sharpness-aware minimisation's point: `radius` uphill along the gradient, where the gradient
  that counts is taken (arXiv:2010.01412).
  """
  scale = radius / jnp.maximum(trees.global_norm(gradients), 1e-12)
  return jax.tree.map(lambda w, g: w + scale.astype(w.dtype) * g, trained, gradients)
