"""Convolution with the weight gradient that suits the platform."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# On CPU the weight gradient is summed over this many parts of the batch: patches then stay in cache,
# which is about twice as fast as XLA's one large contraction. More parts cost compile time.
CHUNKS = 8


def wide(x):
  """The dtype that sums of x are kept in: at least float32, as XLA's own convolution does."""
  return jnp.float32 if x.dtype.itemsize < 4 else x.dtype


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
  size = -(-x.shape[0] // CHUNKS)
  total = jnp.zeros(kernel.shape, wide(x))
  for start in range(0, x.shape[0], size):
    part = x[start:start + size]
    weight = jax.linear_transpose(lambda k, part=part: plain(part, k, strides, padding, 1), kernel)
    total += weight(gradient[start:start + size])[0].astype(total.dtype)
  return image_gradient(x, kernel, gradient, strides, padding), total.astype(kernel.dtype)


def image_gradient(x, kernel, gradient, strides, padding):
  """The gradient of the image.

  XLA's convolution is slow at 5x5 kernels with few input channels; one product for all taps, each then
  added where it came from, takes half the time.
  """
  height, width, channels, features = kernel.shape
  if strides != (1, 1) or height * width < 25:
    return jax.linear_transpose(lambda i: plain(i, kernel, strides, padding, 1), x)(gradient)[0]
  rows, columns = gradient.shape[1:3]
  taps = jnp.matmul(gradient.reshape(-1, features), kernel.reshape(-1, features).T, preferred_element_type=wide(x))
  taps = taps.reshape(*gradient.shape[:3], height, width, channels)
  (top, bottom), (left, right) = lax.padtype_to_pads(x.shape[1:3], (height, width), strides, padding)
  total = jnp.zeros((x.shape[0], x.shape[1] + top + bottom, x.shape[2] + left + right, channels), taps.dtype)
  for row in range(height):
    for column in range(width):
      total = total.at[:, row:row + rows, column:column + columns].add(taps[:, :, :, row, column])
  return total[:, top:top + x.shape[1], left:left + x.shape[2]].astype(x.dtype)


chunked.defvjp(_forward, _backward)


def pointwise(x, kernel, strides):
  """`plain` with a 1x1 kernel and one group, as a matrix product over the positions that the strides keep."""
  x = x[:, ::strides[0], ::strides[1]]
  return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])


def depthwise(x, kernel, strides, padding):
  """`plain` with a group for each channel: each tap of the kernel times its shifted view of the image, added up."""
  height, width = kernel.shape[:2]
  pads = lax.padtype_to_pads(x.shape[1:3], (height, width), strides, padding)
  rows, columns = ((size + sum(pad) - taps) // stride + 1 for size, pad, taps, stride in zip(x.shape[1:3], pads, (height, width), strides))
  padded = jnp.pad(x.astype(wide(x)), ((0, 0), *pads, (0, 0)))
  kernel = kernel.astype(padded.dtype)

  def view(row, column):
    end = (x.shape[0], row + (rows - 1) * strides[0] + 1, column + (columns - 1) * strides[1] + 1, x.shape[3])
    return lax.slice(padded, (0, row, column, 0), end, (1, *strides, 1))

  return sum(view(row, column) * kernel[row, column, 0] for row in range(height) for column in range(width)).astype(x.dtype)


def convolve(x, kernel, strides, padding, groups):
  """The convolution for where this program runs: XLA's own on accelerators, on a CPU what is fastest there.

  Several devices share a batch along the axis that chunks cut, so they take the plain one; with 16
  features or fewer the gradient is faster whole.
  """
  if jax.default_backend() != 'cpu':
    return plain(x, kernel, strides, padding, groups)
  if groups == x.shape[-1] == kernel.shape[-1] > 1:
    return depthwise(x, kernel, strides, padding)
  if groups == 1 and kernel.shape[:2] == (1, 1):
    return pointwise(x, kernel, strides)
  if groups == 1 and jax.device_count() == 1 and kernel.shape[-1] > 16:
    return chunked(x, kernel, strides, padding)
  return plain(x, kernel, strides, padding, groups)
