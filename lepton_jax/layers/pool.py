"""Pooling over image positions, x[batch, height, width, channels]."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.errors import UserError


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def max_pool(x, size=2):
  """Largest of each size x size window, without overlap; [b, h, w, c] -> [b, h // size, w // size, c].

  Rows and columns left over are dropped. Raises UserError if the image is smaller than a window.
  """
  if min(x.shape[1:3]) < size:
    raise UserError(f'a {size}x{size} pool got a {x.shape[1]}x{x.shape[2]} image; use larger images (--image_size) or another model')
  return lax.reduce_window(x, jnp.array(-jnp.inf, x.dtype), lax.max, (1, size, size, 1), (1, size, size, 1), 'VALID')


@max_pool.defjvp
def _selected(size, primals, tangents):
  """Where a gradient is wanted the windows' entries are compared one by one.

  The gradient is then a chain of selects, many times faster on CPU than that of `reduce_window`, and like
  it goes to the first of equal entries.
  """
  def pool(x):
    height, width = x.shape[1] // size, x.shape[2] // size
    views = [x[:, row:height * size:size, column:width * size:size] for row in range(size) for column in range(size)]
    return functools.reduce(lambda best, view: jnp.where(view > best, view, best), views)

  return jax.jvp(pool, primals, tangents)


def global_avg_pool(x):
  """Mean over all positions; [b, h, w, c] -> [b, c]."""
  return jnp.mean(x, (1, 2))
