"""What a weight is worth; the lowest scores are pruned first. Each maps {name: kernel} to {name: score}."""

import jax.numpy as jnp

from lepton_jax.registry import SCORES


@SCORES.register
def magnitude(kernels):
  """|w| (Han et al., arXiv:1506.02626)."""
  return {name: jnp.abs(kernel) for name, kernel in kernels.items()}
