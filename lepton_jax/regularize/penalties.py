"""Terms added to the loss. Each maps {name: kernel} to a scalar that the strength multiplies."""

import jax.numpy as jnp

from lepton_jax.registry import PENALTIES


@PENALTIES.register
def l1(kernels):
  """Sum of |w|."""
  return sum(jnp.sum(jnp.abs(kernel)) for kernel in kernels.values())


@PENALTIES.register
def l2(kernels):
  """Sum of w^2, whose gradient is 2 w."""
  return sum(jnp.sum(jnp.square(kernel)) for kernel in kernels.values())
