"""The precision that parameters, statistics and losses keep whatever the compute precision."""

import jax.numpy as jnp


def at_least_single(dtype):
  """float64 for float64, float32 for every narrower type."""
  return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32
