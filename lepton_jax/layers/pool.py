"""Pooling over image positions, x[batch, height, width, channels]."""

import functools

import jax.numpy as jnp
from jax import lax

from lepton_jax.errors import UserError


def _windows(x, size):
  """The size*size strided views whose elementwise combination is a pool; rows and columns left over are dropped."""
  height, width = x.shape[1] // size, x.shape[2] // size
  if not height or not width:
    raise UserError(f'a {size}x{size} pool got a {x.shape[1]}x{x.shape[2]} image; use larger images (--image_size) or another model')
  for row in range(size):
    for column in range(size):
      yield lax.slice(x, (0, row, column, 0), (x.shape[0], row + (height - 1) * size + 1, column + (width - 1) * size + 1, x.shape[3]), (1, size, size, 1))


def max_pool(x, size=2):
  """Largest of each size x size window, without overlap; [b, h, w, c] -> [b, h // size, w // size, c].

  Selected window by window: the gradient is then a chain of selects, many times faster on CPU than
  select-and-scatter, and like it goes to the first of equal entries.
  """
  return functools.reduce(lambda best, view: jnp.where(view > best, view, best), _windows(x, size))


def global_avg_pool(x):
  """Mean over all positions; [b, h, w, c] -> [b, c]."""
  return jnp.mean(x, (1, 2))
