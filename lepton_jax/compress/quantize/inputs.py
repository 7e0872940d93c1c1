"""Rounding what layers read: each registered function gives an InputQuantizer.

A range [low, high] for each layer's input is set from batches, by a rule; some rules go on to train
it with the weights, the others set it anew at each epoch.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.compress.straight_through import scaled_gradient, straight_through
from lepton_jax.layers import columns
from lepton_jax.precision import at_least_single
from lepton_jax.registry import INPUT_QUANTIZERS


class InputQuantizer(typing.NamedTuple):
  """How inputs of layers are rounded.

  Attributes:
    calibrate: (Seen of the batches, bits, range before or None) -> (low, high), floats.
    apply: (x, low, high, bits, entries of x an example has) -> x on its levels.
    learned: whether the range is trained with the weights.
  """
  calibrate: typing.Callable
  apply: typing.Callable
  learned: bool = False


class Seen(typing.NamedTuple):
  """What a layer read: the extremes of each batch f64[batches] and some of the values f64[n]."""
  low: np.ndarray
  high: np.ndarray
  values: np.ndarray


def affine(x, low, high, bits, entries):
  """x on 2^bits levels from `low` to `high`, of which one is exactly zero; the rest is clipped.

  Differentiable in x, low and high, as in LSQ+ (arXiv:2004.09576): a range learns from its rounding
  errors and from what it clips. low, high, bits are scalars. A step's gradient is divided by
  sqrt(entries), of one example, so that splitting a batch changes nothing; an end is as many steps
  as there are levels. LSQ divides by sqrt(levels) too, but its steps begin that much larger.
  """
  wide = x.astype(at_least_single(x.dtype))
  gain = ((2.0 ** bits - 1) * max(entries, 1) ** -0.5).astype(wide.dtype)
  low, high = jnp.where(low <= 0, low, 0), jnp.where(high >= 0, high, 0)
  low, high = scaled_gradient(low, gain), scaled_gradient(high, gain)
  return _affine(wide, low, high, bits).astype(x.dtype)


# In a range as far below zero as above, zero lies between two levels. It takes the upper one, as in
# signed integers, however the last bit of the quotient was rounded.
HALF = 0.5 + 1e-3


def grid(low, high, bits):
  """(scale, level of zero, highest level) of the levels of `affine` and of all functions here."""
  levels = 2.0 ** bits - 1
  low, high = jnp.where(low <= 0, low, 0), jnp.where(high >= 0, high, 0)
  scale = jnp.maximum(high - low, jnp.finfo(low.dtype).eps) / levels
  return scale, jnp.floor(-low / scale + HALF), levels


@jax.custom_vjp
def _affine(x, low, high, bits):
  return rounded(x, *grid(low, high, bits))


def rounded(x, scale, zero, levels):
  """x on the levels of a `grid`."""
  return (jnp.clip(jnp.round(x / scale) + zero, 0, levels) - zero) * scale


def _affine_back(saved, gradient):
  """With roundings as identities, and the sums over x in two passes of a CPU's library.

  Left to JAX, a sum over all entries for each end took half as long as a CNN's step.
  """
  x, low, high, bits = saved
  scale, zero, levels = grid(low, high, bits)
  near = jnp.round(x / scale)
  below, above = near + zero < 0, near + zero > levels
  to_x = jnp.where(below | above, 0, gradient)
  # What the answer changes by when the scale does; a clipped one is `level - zero` scales, and the
  # level of zero follows the scale.
  slope = jnp.where(below, -zero - low / scale,
                    jnp.where(above, levels - zero - low / scale, near - x / scale))
  to_scale, total = (jnp.sum(part) for part in columns.products_and_sums(gradient, slope))
  clipped = total - jnp.sum(columns.products_and_sums(to_x, to_x)[1])
  to_high = jnp.where(high - low > jnp.finfo(low.dtype).eps, to_scale / levels, 0)
  return to_x, clipped - to_high, to_high, None


_affine.defvjp(lambda *arrays: (_affine(*arrays), arrays), _affine_back)


@jax.custom_vjp
def trained_for(x, low, high):
  """(low, high), which get a gradient where x depends on weights or ranges that are trained.

  The range of data stays as it was set, and so does that of what frozen layers make of data that is
  not rounded. Its gradient alone would need that of x, for which a CNN's first convolution takes
  half as long as the rest of a step.
  """
  del x
  return low, high


def _trained_for(x, low, high):
  return (low.value, high.value), jnp.zeros(()) if x.perturbed else None


def _trained_for_back(depends, ends):
  low, high = (None, None) if depends is None else ends
  return None, low, high


trained_for.defvjp(_trained_for, _trained_for_back, symbolic_zeros=True)


def clipped(x, low, high, bits, entries):
  """The same levels, but the range gets the whole gradient of what it clips and nothing else.

  PACT, equation 3 of arXiv:1805.06085, with a lower end for inputs that are negative too.
  """
  del entries
  wide = x.astype(at_least_single(x.dtype))
  inside = jnp.where(wide < low, low, jnp.where(wide > high, high, wide))
  fixed = functools.partial(affine, low=lax.stop_gradient(low), high=lax.stop_gradient(high),
                            bits=bits, entries=1)
  return straight_through(inside, fixed(wide)).astype(x.dtype)


def with_fixed_range(x, low, high, bits, entries):
  """`affine` on a range that is not trained."""
  return affine(x, lax.stop_gradient(low), lax.stop_gradient(high), bits, entries)


# What fused cells do on their own: x on levels, and its gradient where none of them is clipped.
BY_GRID = affine, with_fixed_range
# Whose answers, if not their gradients, are those of `rounded`.
ON_GRID = *BY_GRID, clipped


def mean_extremes(seen, bits, before):
  """The means of the batches' extremes."""
  del bits, before
  return float(seen.low.mean()), float(seen.high.mean())


@INPUT_QUANTIZERS.register
def pact():
  """A range that learns from what it clips (arXiv:1805.06085), its ends without decay."""
  return InputQuantizer(mean_extremes, clipped, learned=True)


@INPUT_QUANTIZERS.register
def batch_mean():
  """The means of the batches' extremes."""
  return InputQuantizer(mean_extremes, with_fixed_range)


@INPUT_QUANTIZERS.register
def min_max():
  """The extremes of all batches."""
  def calibrate(seen, bits, before):
    return float(seen.low.min()), float(seen.high.max())
  return InputQuantizer(calibrate, with_fixed_range)


@INPUT_QUANTIZERS.register
def moving_average():
  """Extremes that follow those of batch after batch, a tenth of the way each (arXiv:1712.05877)."""
  def calibrate(seen, bits, before):
    low, high = before or (float(seen.low[0]), float(seen.high[0]))
    for i in range(len(seen.low)):
      low, high = 0.9 * low + 0.1 * float(seen.low[i]), 0.9 * high + 0.1 * float(seen.high[i])
    return low, high
  return InputQuantizer(calibrate, with_fixed_range)


@INPUT_QUANTIZERS.register
def percentile():
  """The range that leaves out 0.01 % of the values at each end."""
  def calibrate(seen, bits, before):
    return float(np.quantile(seen.values, 1e-4)), float(np.quantile(seen.values, 1 - 1e-4))
  return InputQuantizer(calibrate, with_fixed_range)


SHARES = np.linspace(0.1, 1, 37)  # of the extremes, tried as ends of a range


def least_error(seen, bits, before):
  """The share of the extremes whose rounding has the least squared error."""
  del before
  low, high = min(float(seen.low.min()), 0.0), max(float(seen.high.max()), 0.0)

  def error(share):
    return np.square(seen.values - on_levels(seen.values, share * low, share * high, bits)).sum()

  share = min(reversed(SHARES), key=error)
  return share * low, share * high


@INPUT_QUANTIZERS.register
def mse_range():
  """The share of the extremes whose rounding has the least squared error."""
  return InputQuantizer(least_error, with_fixed_range)


@INPUT_QUANTIZERS.register
def lsq_plus():
  """The same, and from there on it learns from its errors and its clipping (arXiv:2004.09576)."""
  return InputQuantizer(least_error, affine, learned=True)


@INPUT_QUANTIZERS.register
def entropy():
  """The share of the extremes whose rounded histogram diverges least from that of the values.

  The Kullback-Leibler divergence over 2,048 bins, as TensorRT's calibration takes it (Migacz, GTC
  2017); what is clipped counts in the outermost bins.
  """
  def calibrate(seen, bits, before):
    low, high = min(float(seen.low.min()), 0.0), max(float(seen.high.max()), 0.0)
    edges = np.linspace(low, max(high, low + 1e-12), 2049)
    count = lambda values: np.histogram(values, edges)[0].astype(float)

    def divergence(share):
      start, end = share * low, share * high
      real = count(np.clip(seen.values, start, end))
      inside = count(seen.values[(seen.values >= start) & (seen.values <= end)])
      # Each level spreads its count evenly over those of its bins that are not empty.
      level = np.round((edges[:-1] + edges[1:]) / 2 * (2 ** bits - 1) / max(end - start, 1e-12))
      _, group = np.unique(level, return_inverse=True)
      mean = np.bincount(group, inside) / np.maximum(np.bincount(group, inside > 0), 1)
      spread = np.where(inside > 0, mean[group], 0)
      p, q = (part[real > 0] / max(part.sum(), 1) for part in (real, spread))
      return float(np.sum(p * np.log(p / np.maximum(q, 1e-9))))

    share = min(reversed(SHARES), key=divergence)
    return share * low, share * high
  return InputQuantizer(calibrate, with_fixed_range)


def on_levels(values, low, high, bits):
  """`affine` on the host."""
  levels = 2 ** bits - 1
  scale = max(high - low, 1e-12) / levels
  zero = np.floor(-low / scale + HALF)
  return (np.clip(np.round(values / scale) + zero, 0, levels) - zero) * scale


def symmetric(low, high):
  """A range whose ends are as far from zero, or one from zero where nothing is negative."""
  if low >= 0:
    return 0.0, high
  far = max(-low, high)
  return -far, far


def observed(batches):
  """{site: Seen} of several batches, of each of which `sites.watching` gave the statistics."""
  fetched = jax.device_get(batches)
  join = lambda site, part: np.concatenate([np.ravel(b[site][part]) for b in fetched]).astype(float)
  return {site: Seen(*(join(site, part) for part in Seen._fields)) for site in fetched[0]}
