"""Masks with an exact number of zeros. True marks an entry that stays."""

import math
import typing

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import trees
from lepton_jax.compress.straight_through import straight_through


class Units(typing.NamedTuple):
  """What a kernel, or a group of channels, can give up.

  Attributes:
    scores: f[n], of those that are still there, in order.
    places: int[n], which of all they are; None where all are there.
    total: how many there are, with those that are gone.
    shape: the kernel's, or of the first kernel of a group.
    entries: bool[..., m], of `total` groups of m, the entries that go with their group.
  """
  scores: np.ndarray
  places: np.ndarray | None
  total: int
  shape: tuple
  entries: np.ndarray | None = None

  @classmethod
  def of(cls, scores, there=None, **more):
    """Of scores[...] of all units; `there` is a bool for each, and None where all are there."""
    flat, shape = np.ravel(scores), np.shape(scores)
    places = None if there is None or np.all(there) else np.flatnonzero(there)
    left = flat if places is None else np.take(flat, places)
    return cls(left, places, flat.size, **dict(shape=shape) | more)

  @property
  def gone(self):
    return self.total - len(self.scores)

  def staying(self, count):
    """bool[total]: those that stay when `count` are gone, with those that are gone already."""
    stays = ~lowest(self.scores, count - self.gone)
    if self.places is None:
      return stays
    found = np.zeros(self.total, bool)
    found[self.places] = stays
    return found


def lowest(score, count):
  """bool like score[...]: its `count` lowest entries; among equal ones the first, and NaN last.

  On the host: selecting takes a tenth of the time of a sort, and nothing is compiled.
  """
  flat = np.asarray(score).ravel()
  if count <= 0:
    return np.zeros(np.shape(score), bool)
  threshold = smallest(flat, count)
  if np.isnan(threshold):
    equal = np.isnan(flat)
    chosen = ~equal
  else:
    equal, chosen = flat == threshold, flat < threshold
  chosen[np.flatnonzero(equal)[:count - np.count_nonzero(chosen)]] = True
  return chosen.reshape(np.shape(score))


def smallest(values, count):
  """The `count`-th smallest of values[n], NaN last.

  A sorted sample says between which values it lies, so that few are selected among: NumPy takes
  longer than all else of an update of masks, and a second where most of millions are equal.
  """
  sample = np.sort(values[::1 + values.size // SAMPLE])
  place, margin = count * len(sample) // values.size, 4 * math.isqrt(len(sample))
  low, high = sample[max(place - margin, 0)], sample[min(place + margin, len(sample) - 1)]
  down, below = values <= low, values < high
  start = np.count_nonzero(down)
  if start < count <= np.count_nonzero(below):
    return np.partition(picked(values, ~down & below), count - start - 1)[count - start - 1]
  for end in (low, high):
    if np.count_nonzero(values < end) < count <= np.count_nonzero(values <= end):
      return end
  return np.partition(values, count - 1)[count - 1]  # an order among values may cheat a sample


SAMPLE = 2 ** 14


def picked(array, chosen):
  """array[chosen], flat, in a fifth of the time where about half are chosen at random."""
  return np.take(array, np.flatnonzero(chosen))


def apply(params, masks):
  """{name: array} with masked entries at zero; `masks` may leave names out."""
  return params | {name: jnp.where(mask, params[name], 0) for name, mask in masks.items()}


def apply_straight_through(params, masks):
  """The same, but masked entries get the gradient that they would get as they are."""
  masked = apply(params, masks)
  return masked | {name: straight_through(params[name], masked[name]) for name in masks}


@jax.jit
def applied(tree, masks):
  """`apply` on a tree of parameters, compiled."""
  named = apply(trees.named(tree), masks)
  return trees.map_named(lambda name, _: named[name], tree)


def sparsity(kernels):
  """Share of exact zeros among the entries of {name: kernel}, 0 to 1."""
  total = sum(int(np.prod(kernel.shape)) for kernel in kernels.values())
  return zeros(kernels.values()) / max(total, 1)


def zeros(arrays):
  """How many entries are exactly zero; on the host, where nothing is compiled for each shape."""
  return sum(int((np.asarray(array) == 0).sum()) for array in arrays)
