"""Terms added to the loss. Each maps {name: kernel} to a scalar that the strength multiplies."""

import jax.numpy as jnp

from lepton_jax.registry import PENALTIES


@PENALTIES.register
def l1(kernels):
  """Sum of |w| (J. R. Stat. Soc. B 58, 1996)."""
  return sum(jnp.sum(jnp.abs(kernel)) for kernel in kernels.values())


@PENALTIES.register
def l2(kernels):
  """Sum of w^2, whose gradient is 2 w (Technometrics 12, 1970)."""
  return sum(jnp.sum(jnp.square(kernel)) for kernel in kernels.values())


@PENALTIES.register
def group_lasso(kernels):
  """Sum of sqrt(number of weights) * their norm, over the weights into each filter or hidden unit.

  J. R. Stat. Soc. B 68, 2006; for filters arXiv:1608.03665. The gradient of a group of zeros is
  zero.
  """
  return sum(jnp.sqrt(flat.shape[0]).astype(flat.dtype) * jnp.sum(safe_norm(flat))
             for flat in map(by_output, kernels.values()))


@PENALTIES.register
def orthogonality(kernels):
  """Squared distance of each kernel's smaller Gram matrix from the identity (arXiv:1609.07093)."""
  total = 0
  for flat in map(by_output, kernels.values()):
    tall = flat if flat.shape[0] >= flat.shape[1] else flat.T
    total += jnp.sum(jnp.square(tall.T @ tall - jnp.eye(tall.shape[1], dtype=tall.dtype)))
  return total


def by_output(kernel):
  """A kernel as [weights into a unit, units]."""
  return kernel.reshape(-1, kernel.shape[-1])


def safe_norm(flat):
  """Norm of each column, with a gradient of zero where it is zero."""
  square = jnp.sum(jnp.square(flat), 0)
  zero = square == 0
  return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))
