"""Weight sharing: kernels on the values of a codebook that is learned (arXiv:1510.00149)."""

import jax.numpy as jnp
from jax import lax

from lepton_jax.compress.quantize.weights import Quantizer
from lepton_jax.compress.straight_through import scaled_gradient, straight_through
from lepton_jax.registry import WEIGHT_QUANTIZERS

MOST = 8  # bits
ROUNDS = 30  # of k-means


@WEIGHT_QUANTIZERS.register
def cluster():
  """2^bits - 1 values of the whole kernel and zero; k-means at the first step, then trained.

  A weight is on the nearest value and moves between them by its own gradient, while a value gets
  the mean gradient of the weights on it, as in Deep Compression.
  """
  def init(kernel, bits, axes):
    del axes
    return dict(codebook=k_means(kernel.ravel(), 2.0 ** bits - 1))

  def apply(kernel, bits, axes, learned):
    del axes
    # Optimizers that look at norms see the values that are not there too, so those are kept as 0.
    values = only(learned['codebook'], 2.0 ** bits - 1)
    order = jnp.argsort(lax.stop_gradient(values))
    rising = lax.stop_gradient(values)[order]
    nearest = order[jnp.searchsorted((rising[1:] + rising[:-1]) / 2, lax.stop_gradient(kernel))]
    alive = (kernel != 0).astype(values.dtype)
    counts = jnp.zeros_like(values).at[nearest.ravel()].add(alive.ravel())
    shared = scaled_gradient(values, 1 / jnp.maximum(counts, 1))[nearest]
    moved = straight_through(kernel, lax.stop_gradient(shared))
    found = moved + (shared - lax.stop_gradient(shared))
    return jnp.where(kernel == 0, 0, found)

  return Quantizer(apply, init, most=MOST, whole=True)


def only(values, count, others=None):
  """The first `count` of f[255] values; the others are as given, or too large for any weight."""
  there = jnp.arange(values.size).astype(values.dtype) < jnp.asarray(count, values.dtype)
  return jnp.where(there, values, jnp.finfo(values.dtype).max / 4 if others is None else others)


def k_means(weights, count):
  """f[255]: values of the weights that are not zero, `count` of them; the others are 0.

  `count` is traced. They begin at equal distances, which keeps the few large weights apart
  (section 3.2 of the paper).
  """
  rising = jnp.sort(jnp.where(weights == 0, jnp.inf, weights))
  size = jnp.sum(weights != 0)
  sums = jnp.concatenate([jnp.zeros(1, weights.dtype),
                          jnp.cumsum(jnp.where(jnp.isfinite(rising), rising, 0))])
  place = jnp.arange(2 ** MOST - 1).astype(weights.dtype)
  low, high = rising[0], jnp.max(jnp.where(weights == 0, -jnp.inf, weights))
  low, high = (jnp.where(size > 0, end, 0) for end in (low, high))
  first = low + (high - low) * (place + 0.5) / count.astype(weights.dtype)

  def better(_, values):
    ends = jnp.searchsorted(rising, (values[1:] + values[:-1]) / 2)
    ends = jnp.concatenate([jnp.zeros(1, ends.dtype), jnp.minimum(ends, size), size[None]])
    held = (ends[1:] - ends[:-1]).astype(weights.dtype)
    means = (sums[ends[1:]] - sums[ends[:-1]]) / jnp.maximum(held, 1)
    return only(jnp.where(held > 0, means, values), count)

  return only(lax.fori_loop(0, ROUNDS, better, only(first, count)), count, others=0)
