"""Rounding kernels: each registered function gives a Quantizer.

Bit widths are traced scalars: one compiled program serves them all. Scales are per output channel,
or one for the whole kernel, as `axes` says: those over which a scale is shared.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.compress.straight_through import scaled_gradient, straight_through
from lepton_jax.registry import WEIGHT_QUANTIZERS


class Quantizer(typing.NamedTuple):
  """How a kernel is rounded.

  Attributes:
    apply: (kernel, bits, axes, learned) -> kernel on its levels, differentiable.
    init: (kernel, bits, axes) -> {name: array} that it trains with the weights.
    bits: the only width that it has; None: any from 2 on.
    keeps_zero: whether zero is one of its levels.
    most: the largest width that it has.
    whole: whether the kernel shares its levels, whatever the granularity.
    step: (kernel, bits, axes, learned) -> the distance of levels, of which every entry that `apply`
      gives is a whole multiple; None where levels have other distances.
  """
  apply: typing.Callable
  init: typing.Callable = lambda kernel, bits, axes: {}
  bits: int | None = None
  keeps_zero: bool = True
  most: int = 16
  whole: bool = False
  step: typing.Callable | None = None


@functools.cache
def counts_zeros(name):
  """Whether a registered quantizer rounds a kernel otherwise when rows and columns of zeros leave.

  Tried on one kernel, with a scale for each column and with one for all. One that cannot be tried
  so is taken for one that does.
  """
  quantizer = WEIGHT_QUANTIZERS.get(name)()
  dense = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
  padded = np.pad(dense, ((0, 16), (0, 8)))

  def wider(array):
    ends = [(0, {16: 16, 8: 8}.get(size, 0)) for size in array.shape]
    return jnp.pad(array, ends, 'edge')

  @jax.jit
  def rounded_both():
    bits, found = jnp.float32(quantizer.bits or min(4, quantizer.most)), []
    for axes in ((0,), (0, 1)):
      learned = quantizer.init(jnp.asarray(dense), bits, axes)
      both = learned, {key: wider(array) for key, array in learned.items()}
      found.append([quantizer.apply(jnp.asarray(kernel), bits, axes, own)[:16, :8]
                    for kernel, own in zip((dense, padded), both)])
    return found

  try:
    return not all(np.allclose(*both, rtol=1e-4, atol=1e-6) for both in rounded_both())
  except (TypeError, ValueError):
    return True


def largest_level(bits):
  """Of symmetric levels -n to n."""
  return 2.0 ** (bits - 1) - 1


def nonzero(scale):
  """A scale to divide by: 1 in channels of zeros, which stay zeros."""
  return jnp.where(scale > 0, scale, 1)


def mean_magnitude(kernel, axes):
  return jnp.mean(jnp.abs(kernel), axes, keepdims=True)


def max_magnitude(kernel, axes):
  return jnp.max(jnp.abs(kernel), axes, keepdims=True)


def rounded(kernel, scale, largest):
  """On the levels scale * (-largest to largest)."""
  return jnp.clip(jnp.round(kernel / scale), -largest, largest) * scale


@WEIGHT_QUANTIZERS.register
def max_():
  """Symmetric levels up to the largest |w| (arXiv:1806.08342)."""
  def step(kernel, bits, axes, learned):
    return nonzero(lax.stop_gradient(max_magnitude(kernel, axes)) / largest_level(bits))

  def apply(kernel, bits, axes, learned):
    scale = step(kernel, bits, axes, learned)
    return straight_through(kernel, rounded(kernel, scale, largest_level(bits)))

  return Quantizer(apply, step=step)


@WEIGHT_QUANTIZERS.register
def mse():
  """Symmetric levels of the scale with the least squared error, the largest |w| among those tried.

  From each of a few shares of the largest |w|, kernels are rounded and the scale that fits what
  was rounded best is tried, a step of Lloyd's algorithm.
  """
  def step(kernel, bits, axes, learned):
    return mse_scale(lax.stop_gradient(kernel), largest_level(bits), axes)

  def apply(kernel, bits, axes, learned):
    scale = step(kernel, bits, axes, learned)
    return straight_through(kernel, rounded(kernel, scale, largest_level(bits)))

  return Quantizer(apply, step=step)


def mse_scale(kernel, largest, axes):
  """The best scale found for levels scale * (-largest to largest)."""
  total = lambda x: jnp.sum(x, axes, keepdims=True)
  error = lambda scale: total(jnp.square(kernel - rounded(kernel, scale, largest)))
  whole = best = nonzero(max_magnitude(kernel, axes) / largest)
  least = error(best)
  for share in (1.0, 0.8, 0.65, 0.5, 0.35, 0.2):
    level = jnp.clip(jnp.round(kernel / (share * whole)), -largest, largest)
    scale = nonzero(total(kernel * level) / jnp.maximum(total(level * level), 1))
    best = jnp.where(error(scale) < least, scale, best)
    least = jnp.minimum(error(scale), least)
  return best


@WEIGHT_QUANTIZERS.register
def lsq():
  """A step that is learned with the weights, levels -n - 1 to n (arXiv:1902.08153).

  What is trained is its logarithm: adaptive optimizers move every parameter by about the learning
  rate, more than many a step is, and would carry it below zero. Its gradient is divided by the
  square of the step that the paper begins with, so that plain gradient descent moves a step as
  there.
  """
  def usual(kernel, bits, axes):
    # The mean of what is not pruned: with the zeros a sparse kernel's step would be too small.
    total = jnp.sum(jnp.abs(kernel), axes, keepdims=True)
    count = jnp.maximum(jnp.sum(kernel != 0, axes, keepdims=True), 1).astype(kernel.dtype)
    return nonzero(2 * total / count / jnp.sqrt(largest_level(bits)))

  def apply(kernel, bits, axes, learned):
    largest = largest_level(bits)
    shared = float(np.prod([kernel.shape[axis] for axis in axes]))
    gain = lax.rsqrt(shared * largest).astype(kernel.dtype)
    gain /= jnp.square(usual(lax.stop_gradient(kernel), bits, axes))
    step = jnp.exp(scaled_gradient(learned['log_step'], gain))
    place = jnp.clip(kernel / step, -largest - 1, largest)
    return straight_through(place, jnp.round(place)) * step

  return Quantizer(apply, lambda *kernel: dict(log_step=jnp.log(usual(*kernel))),
                   step=lambda kernel, bits, axes, learned: jnp.exp(learned['log_step']))


@WEIGHT_QUANTIZERS.register
def dorefa():
  """2^bits even levels of tanh(w), zero not among them (arXiv:1606.06160).

  The paper's weights lie within -1 and 1; here they keep the largest |w|, so that networks without
  batch normalisation keep their scale.
  """
  def step(kernel, bits, axes, learned):  # of which all levels are odd multiples
    return nonzero(lax.stop_gradient(max_magnitude(kernel, axes)) / (2.0 ** bits - 1))

  def apply(kernel, bits, axes, learned):
    bounded = jnp.tanh(kernel)
    unit = bounded / nonzero(lax.stop_gradient(max_magnitude(bounded, axes)))
    levels = 2.0 ** bits - 1
    place = (unit + 1) / 2 * levels
    even = 2 * straight_through(place, jnp.round(place)) / levels - 1
    return even * lax.stop_gradient(max_magnitude(kernel, axes))

  return Quantizer(apply, keeps_zero=False, step=step)


@WEIGHT_QUANTIZERS.register
def power_of_two():
  """Levels 0 and plus or minus the largest |w| / 2^k (INQ, arXiv:1702.03044)."""
  def apply(kernel, bits, axes, learned):
    scale = nonzero(lax.stop_gradient(max_magnitude(kernel, axes)))
    lowest = -(largest_level(bits) - 1)  # the exponent of the smallest level
    share = jnp.abs(kernel) / scale
    # Between 2^(e-1) and 2^e the nearer one; half of the smallest level divides it from zero.
    exponent = jnp.floor(jnp.log2(jnp.maximum(share, 1e-30) * (4 / 3)))
    level = jnp.where(share < 2.0 ** (lowest - 1), 0, 2.0 ** jnp.clip(exponent, lowest, 0))
    return straight_through(kernel, jnp.sign(kernel) * level * scale)

  return Quantizer(apply)


@WEIGHT_QUANTIZERS.register
def apot():
  """Sums of two powers of two (APoT, arXiv:1909.13144), up to the largest |w|, 8 bits at most."""
  def apply(kernel, bits, axes, learned):
    scale = nonzero(lax.stop_gradient(max_magnitude(kernel, axes)))
    table = jnp.asarray(apot_levels(), kernel.dtype)[(bits - 2).astype(jnp.int32)]
    middle = (table[1:] + table[:-1]) / 2
    level = table[jnp.searchsorted(middle, jnp.abs(kernel) / scale)]
    return straight_through(kernel, jnp.sign(kernel) * level * scale)

  return Quantizer(apply, most=8)


@functools.cache
def apot_levels():
  """f64[7, 128]: for 2 to 8 bits the non-negative levels, rising, filled up with the largest, 1.

  The bits beside the sign make terms of two bits, the last of one where they are odd. Term i of n
  is 0 or 2^-(i + j n), j from 0 on (equation 5 of the paper).
  """
  rows = []
  for bits in range(1, 8):
    count = -(-bits // 2)
    sums = np.zeros(1)
    for i in range(count):
      powers = 1 if bits % 2 and i == count - 1 else 3
      term = [0.0, *(2.0 ** -(i + j * count) for j in range(powers))]
      sums = np.add.outer(sums, term).ravel()
    levels = np.sort(sums) / sums.max()
    rows.append(np.pad(levels, (0, 128 - len(levels)), constant_values=1.0))
  return np.stack(rows)


@WEIGHT_QUANTIZERS.register
def ternary():
  """Levels -a, 0 and a; a is the mean of the |w| above 0.7 times their mean (arXiv:1605.04711)."""
  def apply(kernel, bits, axes, learned):
    exact = lax.stop_gradient(kernel)
    large = jnp.abs(exact) > 0.7 * mean_magnitude(exact, axes)
    count = jnp.maximum(jnp.sum(large, axes, keepdims=True), 1).astype(exact.dtype)
    scale = jnp.sum(jnp.where(large, jnp.abs(exact), 0), axes, keepdims=True) / count
    return straight_through(kernel, jnp.where(large, jnp.sign(exact) * scale, 0))

  return Quantizer(apply, bits=2)


@WEIGHT_QUANTIZERS.register
def ttq():
  """Levels -n, 0 and p, learned as logarithms; 0 within 5 % of the largest |w| (arXiv:1612.01064).
  """
  def init(kernel, bits, axes):
    scale = jnp.log(nonzero(mean_magnitude(kernel, axes)))
    return dict(log_negative=scale, log_positive=jnp.copy(scale))

  def apply(kernel, bits, axes, learned):
    threshold = 0.05 * max_magnitude(lax.stop_gradient(kernel), axes)
    high, low = kernel > threshold, kernel < -threshold
    positive, negative = jnp.exp(learned['log_positive']), jnp.exp(learned['log_negative'])
    level = jnp.where(high, positive, jnp.where(low, -negative, 0))
    # The weights' gradient is scaled by the level that they stand on, that of zero by 1.
    factor = jnp.where(high, positive, jnp.where(low, negative, 1))
    return level + (kernel - lax.stop_gradient(kernel)) * lax.stop_gradient(factor)

  return Quantizer(apply, init, bits=2)


@WEIGHT_QUANTIZERS.register
def binary():
  """The sign times the mean |w| (XNOR-Net's weights, arXiv:1603.05279); bits beyond 1 clip."""
  def apply(kernel, bits, axes, learned):
    exact = lax.stop_gradient(kernel)  # of which pruned entries, zeros, have no sign
    count = jnp.maximum(jnp.sum(exact != 0, axes, keepdims=True), 1).astype(exact.dtype)
    scale = jnp.sum(jnp.abs(exact), axes, keepdims=True) / count
    sign = jnp.where(kernel < 0, -1, 1).astype(kernel.dtype)
    return straight_through(jnp.clip(kernel, -1, 1), sign * scale)

  return Quantizer(apply, bits=1, keeps_zero=False)
