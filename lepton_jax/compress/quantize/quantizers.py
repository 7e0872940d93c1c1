"""Rounding to a few levels in the forward pass, the identity in the backward pass (arXiv:1308.3432).

Bit widths are traced scalars: one compiled program serves them all.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax import trees
from lepton_jax.precision import at_least_single


def straight_through(exact, rounded):
  """`rounded`, to the last bit, with the gradient of `exact`."""
  return lax.stop_gradient(rounded) + (exact - lax.stop_gradient(exact))


def symmetric(kernel, bits):
  """A kernel[..., out] on 2^bits - 1 levels around zero, a scale per output channel, its largest |w| kept (arXiv:1806.08342)."""
  largest = 2.0 ** (bits - 1) - 1
  scale = lax.stop_gradient(jnp.max(jnp.abs(kernel), axis=tuple(range(kernel.ndim - 1)), keepdims=True)) / largest
  scale = jnp.where(scale > 0, scale, 1)  # a channel of zeros stays zeros
  return straight_through(kernel, jnp.round(kernel / scale) * scale)


def affine(x, low, high, bits):
  """Activations on 2^bits levels from `low` to `high`, of which one is exactly zero; what lies outside is clipped.

  Differentiable in x, low and high, as in LSQ+ (arXiv:2004.09576): a range learns from its rounding
  errors and from what it clips. x[batch, ...]; low, high, bits scalars.
  """
  wide = x.astype(at_least_single(x.dtype))
  levels = 2.0 ** bits - 1
  # LSQ's gradient scale. Elements are counted per example, so that splitting a batch changes nothing.
  gain = lax.rsqrt(levels * max(x.size // x.shape[0], 1)).astype(wide.dtype)
  low, high = (lax.stop_gradient(r) + (r - lax.stop_gradient(r)) * gain for r in (jnp.where(low <= 0, low, 0), jnp.where(high >= 0, high, 0)))
  scale = jnp.maximum(high - low, jnp.finfo(wide.dtype).eps) / levels
  zero = -low / scale
  zero = straight_through(zero, jnp.round(zero))
  place = wide / scale
  place = straight_through(place, jnp.round(place)) + zero
  # Selected, not clipped: the gradient of a clip is halved for all that round to the outermost levels.
  place = jnp.where(place < 0, 0, jnp.where(place > levels, levels, place))
  return ((place - zero) * scale).astype(x.dtype)


@functools.partial(jax.jit, static_argnames='names')
def quantize_kernels(params, bits, names):
  """`params` with the kernels in the tuple `names` rounded to `bits` bits."""
  return trees.map_named(lambda name, leaf: symmetric(leaf, bits) if name in names else leaf, params)

