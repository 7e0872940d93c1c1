"""Convolution and its gradients: by oneDNN on a CPU that has it, else by XLA."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.layers import platform
from lepton_jax.layers.native import call
from lepton_jax.layers.product import add_bias, product
from lepton_jax.precision import at_least_single

# XLA's weight gradient on a CPU is summed over this many parts of the batch: patches then stay in
# cache, which is about twice as fast as one large contraction. More parts cost compile time.
CHUNKS = 4


def convolve(x, kernel, bias, strides, padding, groups):
  """x[b, h, w, c] with kernel[kh, kw, c / groups, features], plus bias[features] or None.

  `strides` is a pair and `padding` 'SAME' or 'VALID'. Reverse mode only on a CPU. Raises ValueError
  where the channels do not fit.
  """
  if groups < 1 or x.shape[3] != groups * kernel.shape[2] or kernel.shape[3] % groups:
    raise ValueError(f'convolution of {list(x.shape)} with a kernel {list(kernel.shape)} in '
                     f'{groups} groups: channels have to be groups * {kernel.shape[2]}, and '
                     f'features a multiple of groups')
  pads = tuple(lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding))
  pointwise = kernel.shape[:2] == (1, 1) and strides == (1, 1) and groups == 1
  if pointwise and platform.own_forms():
    y = product(x, kernel[0, 0])
  elif _fits_library(x, kernel, bias, strides, pads):
    return by_onednn(x, kernel, bias, (strides, pads, groups))
  else:
    y = by_xla(x, kernel, strides, pads, groups)
  return y if bias is None else add_bias(y, bias)


def _fits_library(x, kernel, bias, strides, pads):
  """Whether oneDNN computes this: arrays of one dtype that it has, a result that is not empty."""
  arrays = (x, kernel) if bias is None else (x, kernel, bias)
  return platform.native(*arrays) and all(_out_sides((strides, pads, None), x, kernel))


def plain(x, kernel, strides, pads, groups):
  """The reference."""
  return lax.conv_general_dilated(x, kernel, strides, pads,
                                  dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
                                  feature_group_count=groups)


def by_onednn(x, kernel, bias, window):
  """The convolution by oneDNN; `window` is (strides, pads, groups)."""
  return _convolution(window, x, kernel) if bias is None else _biased(window, x, kernel, bias)


# Three operations, each linear in both arguments; the derivatives of each are the other two. Sides
# that the arguments do not tell are given: with strides, images of several sizes have a result of
# the same size.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolution(window, x, kernel):
  return _operation('convolution', window, _out_sides(window, x, kernel))(x, kernel)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _image_gradient(window, sides, gradient, kernel):
  return _operation('image_gradient', window, sides)(gradient, kernel)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _kernel_gradient(window, sides, x, gradient):
  return _operation('kernel_gradient', window, sides)(x, gradient)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _biased(window, x, kernel, bias):
  """With the bias added in the same pass, and its gradient found in that of the kernel's."""
  return _operation('convolution', window, _out_sides(window, x, kernel), True)(x, kernel, bias)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _both_gradients(window, sides, x, gradient):
  """Of the kernel and of the bias."""
  return _operation('kernel_gradient', window, sides, True)(x, gradient)


def _convolution_back(window, saved, g):
  x, kernel = saved
  dx = _image_gradient(window, x.shape[1:3], g, kernel)
  return dx, _kernel_gradient(window, kernel.shape[:2], x, g)


def _image_gradient_back(window, sides, saved, g):
  gradient, kernel = saved
  return _convolution(window, g, kernel), _kernel_gradient(window, kernel.shape[:2], g, gradient)


def _kernel_gradient_back(window, sides, saved, g):
  x, gradient = saved
  return _image_gradient(window, x.shape[1:3], gradient, g), _convolution(window, x, g)


def _biased_back(window, saved, g):
  x, kernel = saved
  dx = _image_gradient(window, x.shape[1:3], g, kernel)
  return dx, *_both_gradients(window, kernel.shape[:2], x, g)


def _both_gradients_back(window, sides, saved, g):
  x, gradient = saved
  return _image_gradient(window, x.shape[1:3], gradient, g[0]), _biased(window, x, *g)


_convolution.defvjp(lambda w, *a: (_convolution(w, *a), a), _convolution_back)
_image_gradient.defvjp(lambda w, s, *a: (_image_gradient(w, s, *a), a), _image_gradient_back)
_kernel_gradient.defvjp(lambda w, s, *a: (_kernel_gradient(w, s, *a), a), _kernel_gradient_back)
_both_gradients.defvjp(lambda w, s, *a: (_both_gradients(w, s, *a), a), _both_gradients_back)
_biased.defvjp(lambda w, *a: (_biased(w, *a), a[:2]), _biased_back)


def _out_sides(window, x, kernel):
  strides, pads, _ = window
  sizes = zip(x.shape[1:3], kernel.shape[:2], strides, pads)
  return tuple(max((size + sum(pad) - taps) // stride + 1, 0)
               for size, taps, stride, pad in sizes)


@functools.cache
def _operation(name, window, sides, bias=False):
  """The C++ function; `sides` are the height and width of its result."""
  strides, pads, groups = window
  dimensions, shapes = {
      ('convolution', False): ('b h w i, r s j o -> b y x o2',
                               lambda x, k: ((len(x), *sides, k.shape[3]),)),
      ('convolution', True): ('b h w i, r s j o, o2 -> b y x o3',
                              lambda x, k, _: ((len(x), *sides, k.shape[3]),)),
      ('image_gradient', False): ('b y x o, r s j o2 -> b h w i',
                                  lambda g, k: ((len(g), *sides, k.shape[2] * groups),)),
      ('kernel_gradient', False): ('b h w i, b y x o -> r s j o2',
                                   lambda x, g: ((*sides, x.shape[3] // groups, g.shape[3]),)),
      ('kernel_gradient', True): ('b h w i, b y x o -> r s j o2, o3',
                                  lambda x, g: ((*sides, x.shape[3] // groups, g.shape[3]),
                                                g.shape[3:])),
  }[name, bias]
  return call.operation(name, dimensions, shapes, strides=strides, pads=sum(pads, ()),
                        groups=groups)


def by_xla(x, kernel, strides, pads, groups):
  """Computes `plain` in the form that XLA runs fastest; on a CPU that is often another one."""
  empty = not x.size or not all(_out_sides((strides, pads, None), x, kernel))
  if empty or not platform.own_forms():
    return plain(x, kernel, strides, pads, groups)
  if groups == x.shape[-1] == kernel.shape[-1] > 1:
    return depthwise(x, kernel, strides, pads)
  if groups > 1:
    return plain(x, kernel, strides, pads, groups)
  # With 16 features or fewer the weight gradient is faster whole.
  return chunked(x, kernel, strides, pads, CHUNKS if kernel.shape[-1] > 16 else 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def chunked(x, kernel, strides, pads, chunks):
  """`plain` of one group, the gradient of the kernel summed over chunks of the batch."""
  return plain(x, kernel, strides, pads, 1)


def _chunked_back(strides, pads, chunks, saved, gradient):
  x, kernel = saved
  image = jax.linear_transpose(lambda x: plain(x, kernel, strides, pads, 1), x)(gradient)[0]
  chunks = math.gcd(x.shape[0], chunks)
  x, gradient = (a.reshape(-1, chunks, *a.shape[1:]) for a in (x, gradient))
  total = jnp.zeros(kernel.shape, at_least_single(kernel.dtype))
  for i in range(chunks):
    part = jax.linear_transpose(lambda k, i=i: plain(x[:, i], k, strides, pads, 1), kernel)
    total += part(gradient[:, i])[0].astype(total.dtype)
  return image, total.astype(kernel.dtype)


chunked.defvjp(lambda x, kernel, *window: (chunked(x, kernel, *window), (x, kernel)), _chunked_back)


def depthwise(x, kernel, strides, pads):
  """Computes `plain` with a group a channel: the sum of taps times shifted views of the image."""
  height, width = kernel.shape[:2]
  rows, columns = _out_sides((strides, pads, None), x, kernel)
  padded = jnp.pad(x.astype(at_least_single(x.dtype)), ((0, 0), *pads, (0, 0)))
  kernel = kernel.astype(padded.dtype)

  def view(row, column):
    last = row + (rows - 1) * strides[0] + 1, column + (columns - 1) * strides[1] + 1
    end = (x.shape[0], *last, x.shape[3])
    return lax.slice(padded, (0, row, column, 0), end, (1, *strides, 1))

  taps = [view(row, column) * kernel[row, column, 0]
          for row in range(height) for column in range(width)]
  return sum(taps).astype(x.dtype)
