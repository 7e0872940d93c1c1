"""Convolution with the weight gradient that suits the platform."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# On CPU the weight gradient is summed over this many parts of the batch: patches then stay in cache,
# which is about twice as fast as XLA's one large contraction. More parts cost compile time.
CHUNKS = 8


def plain(x, kernel, strides, padding, groups):
  """The reference: x[b, h, w, c] with kernel[kh, kw, c / groups, features]."""
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def chunked(x, kernel, strides, padding):
  """`plain` with one group, whose weight gradient is summed over chunks of the batch."""
  return plain(x, kernel, strides, padding, 1)


def _forward(x, kernel, strides, padding):
  return chunked(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, saved, gradient):
  x, kernel = saved
  image = jax.linear_transpose(lambda i: plain(i, kernel, strides, padding, 1), x)
  size = -(-x.shape[0] // CHUNKS)
  total = jnp.zeros_like(kernel)
  for start in range(0, x.shape[0], size):
    part = x[start:start + size]
    weight = jax.linear_transpose(lambda k, part=part: plain(part, k, strides, padding, 1), kernel)
    total += weight(gradient[start:start + size])[0]
  return image(gradient)[0], total


chunked.defvjp(_forward, _backward)


def convolve(x, kernel, strides, padding, groups):
  """The convolution for where this program runs. Several devices share a batch along the axis that chunks cut, so they take the plain one."""
  if groups == 1 and jax.default_backend() == 'cpu' and jax.device_count() == 1:
    return chunked(x, kernel, strides, padding)
  return plain(x, kernel, strides, padding, groups)
