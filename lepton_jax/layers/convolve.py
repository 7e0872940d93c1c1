"""Convolution in the form that suits the platform, with gradients of its own on a CPU."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.layers import platform
from lepton_jax.precision import at_least_single

# On CPU the weight gradient is summed over this many parts of a device's share of the batch: patches then stay
# in cache, which is about twice as fast as XLA's one large contraction. More parts cost compile time.
CHUNKS = 4


def plain(x, kernel, strides, padding, groups):
  """The reference: x[b, h, w, c] with kernel[kh, kw, c / groups, features]."""
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups)


def neighbours(x, kernel, pads):
  """`plain` of one group and stride 1, where few output channels leave the processor's wide registers half empty.

  Some neighbouring positions of a row are computed as channels of one position: the kernel is repeated,
  each time shifted by a column and filled up with zeros. More is multiplied, in two thirds to two fifths of
  the time with up to 16 channels in; with 32 it no longer pays. An infinite pixel makes NaN of its neighbours here.
  """
  height, width, channels, features = kernel.shape
  columns = x.shape[2] + sum(pads[1]) - width + 1
  count = (64 if channels <= 4 else 32) // features
  if channels == 1 or channels > 16 or count < 2 or columns % count:
    return plain(x, kernel, (1, 1), pads, 1)
  kernel = jnp.stack([jnp.pad(kernel, ((0, 0), (i, count - 1 - i), (0, 0), (0, 0))) for i in range(count)], 3)
  y = plain(x, kernel.reshape(height, width + count - 1, channels, count * features), (1, count), pads, 1)
  return y.reshape(*y.shape[:2], columns, features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def dense(x, kernel, strides, padding, chunks):
  """`plain` with one group, its values and both gradients each in the form that a CPU computes fastest; reverse mode only."""
  if strides != (1, 1):
    return plain(x, kernel, strides, padding, 1)
  return neighbours(x, kernel, lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding))


def _forward(x, kernel, strides, padding, chunks):
  return dense(x, kernel, strides, padding, chunks), (x, kernel)


def _backward(strides, padding, chunks, saved, gradient):
  x, kernel = saved
  return image_gradient(x, kernel, gradient, strides, padding), weight_gradient(x, kernel, gradient, strides, padding, chunks)


dense.defvjp(_forward, _backward)


def written_out(x, kernel):
  """`x`, from memory: XLA would compute it anew, from several convolutions' outputs, in the order of the reader.

  A branch's result is always written out. The other branch is for a kernel of NaN, when nothing is left to learn.
  """
  return lax.cond(kernel[0, 0, 0, 0] == kernel[0, 0, 0, 0], lambda x: x, jnp.zeros_like, x)


def weight_gradient(x, kernel, gradient, strides, padding, chunks):
  """The gradient of the kernel, summed over chunks of the batch."""
  x = written_out(x, kernel)
  chunks = math.gcd(x.shape[0], chunks)
  x, gradient = (a.reshape(-1, chunks, *a.shape[1:]) for a in (x, gradient))
  total = jnp.zeros(kernel.shape, at_least_single(x.dtype))
  for i in range(chunks):
    weight = jax.linear_transpose(lambda k, i=i: plain(x[:, i], k, strides, padding, 1), kernel)
    total += weight(gradient[:, i])[0].astype(total.dtype)
  return total.astype(kernel.dtype)


def image_gradient(x, kernel, gradient, strides, padding):
  """The gradient of the image.

  Where a large kernel has no padding the gradient has far fewer positions than the image. One product for all
  taps, each then added where it came from, computes nothing for those that are not there: 5x5 kernels on up to
  32 channels take three quarters of the time.
  """
  height, width, channels, features = kernel.shape
  if strides != (1, 1):
    return jax.linear_transpose(lambda i: plain(i, kernel, strides, padding, 1), x)(gradient)[0]
  (top, bottom), (left, right) = lax.padtype_to_pads(x.shape[1:3], (height, width), strides, padding)
  if height * width < 25 or channels > 32 or top + bottom + left + right:
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    return neighbours(gradient, turned, ((height - 1 - top, height - 1 - bottom), (width - 1 - left, width - 1 - right)))
  rows, columns = gradient.shape[1:3]
  # Columns of taps first, for the rows and channels of one lie side by side in memory.
  taps = jnp.matmul(gradient.reshape(-1, features), kernel.transpose(3, 1, 0, 2).reshape(features, -1), preferred_element_type=at_least_single(x.dtype))
  taps = taps.reshape(*gradient.shape[:3], width, height * channels)
  across = jnp.zeros((x.shape[0], rows, x.shape[2], height * channels), taps.dtype)
  for column in range(width):
    across = across.at[:, :, column:column + columns].add(taps[:, :, :, column])
  across = across.reshape(*across.shape[:3], height, channels)
  total = jnp.zeros(x.shape, taps.dtype)
  for row in range(height):
    total = total.at[:, row:row + rows].add(across[:, :, :, row])
  return total.astype(x.dtype)


def pointwise(x, kernel, strides):
  """`plain` with a 1x1 kernel and one group, as a matrix product over the positions that the strides keep."""
  x = x[:, ::strides[0], ::strides[1]]
  return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])


def depthwise(x, kernel, strides, padding):
  """`plain` with a group for each channel: each tap of the kernel times its shifted view of the image, added up."""
  height, width = kernel.shape[:2]
  pads = lax.padtype_to_pads(x.shape[1:3], (height, width), strides, padding)
  rows, columns = ((size + sum(pad) - taps) // stride + 1 for size, pad, taps, stride in zip(x.shape[1:3], pads, (height, width), strides))
  padded = jnp.pad(x.astype(at_least_single(x.dtype)), ((0, 0), *pads, (0, 0)))
  kernel = kernel.astype(padded.dtype)

  def view(row, column):
    end = (x.shape[0], row + (rows - 1) * strides[0] + 1, column + (columns - 1) * strides[1] + 1, x.shape[3])
    return lax.slice(padded, (0, row, column, 0), end, (1, *strides, 1))

  return sum(view(row, column) * kernel[row, column, 0] for row in range(height) for column in range(width)).astype(x.dtype)


def convolve(x, kernel, strides, padding, groups):
  """The convolution for where this program runs: XLA's own on accelerators, on a CPU what is fastest there.

  With 16 features or fewer the weight gradient is faster whole.
  """
  if not platform.own_forms():
    return plain(x, kernel, strides, padding, groups)
  if groups == x.shape[-1] == kernel.shape[-1] > 1:
    return depthwise(x, kernel, strides, padding)
  if groups > 1:
    return plain(x, kernel, strides, padding, groups)
  if kernel.shape[:2] == (1, 1):
    return pointwise(x, kernel, strides)
  return dense(x, kernel, strides, padding, CHUNKS if kernel.shape[-1] > 16 else 1)
