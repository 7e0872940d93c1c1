"""The gradient of what has none (arXiv:1308.3432)."""

from jax import lax


def straight_through(exact, changed):
  """`changed`, to the last bit, with the gradient of `exact`."""
  return lax.stop_gradient(changed) + (exact - lax.stop_gradient(exact))


def scaled_gradient(value, factor):
  """`value`, with its gradient times `factor`."""
  return lax.stop_gradient(value) + (value - lax.stop_gradient(value)) * factor
