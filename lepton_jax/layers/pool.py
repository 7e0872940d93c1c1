"""Pooling over image positions, x[batch, height, width, channels]."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.errors import UserError
from lepton_jax.layers import platform
from lepton_jax.precision import at_least_single


def max_pool(x, size=2):
  """Largest of each size x size window: [b, h, w, c] -> [b, h // size, w // size, c].

  Windows do not overlap. Rows and columns left over are dropped; a NaN is the largest. Raises
  UserError if the image is smaller than a window.
  Rows and columns left over are dropped; a NaN is the largest. Raises UserError if the image is
  smaller than a window.
  """
  if min(x.shape[1:3]) < size:
    raise UserError(
        f'a {size}x{size} pool got a {x.shape[1]}x{x.shape[2]} image; use larger images '
        f'(--image_size) or another model')
  return selecting(x, size) if platform.own_forms() else plain(x, size)


def plain(x, size):
  """The reference."""
  window = (1, size, size, 1)
  return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, window, window, 'VALID')


selecting = jax.custom_jvp(plain, nondiff_argnums=(1,))


@selecting.defjvp
def _selected(size, primals, tangents):
  """Where a gradient is wanted the windows' entries are compared one by one.

  The gradient is then a chain of selects, many times faster on CPU than that of `reduce_window`.
  Both go to the first of equal entries. In bfloat16 the selects would take ten times as long.
  """
  def pool(x):
    dtype, x = x.dtype, x.astype(at_least_single(x.dtype))
    height, width = x.shape[1] // size, x.shape[2] // size
    views = [x[:, row:height * size:size, column:width * size:size]
             for row in range(size) for column in range(size)]
    larger = lambda best, view: jnp.where((view > best) | (view != view), view, best)
    return functools.reduce(larger, views).astype(dtype)

  return jax.jvp(pool, primals, tangents)


def global_avg_pool(x):
  """Mean over all positions; [b, h, w, c] -> [b, c]."""
  return jnp.mean(x, (1, 2))
