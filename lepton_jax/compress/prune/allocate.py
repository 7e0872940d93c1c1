"""How many units each kernel gives up; a unit is what a structure removes at once.

Each registered function is (scores, shapes, count) -> {kernel: units}. scores[kernel] has a score
for each unit, the lowest go first, shapes[kernel] is the kernel's own, and the units add up to
`count`, exactly.
"""

import typing

import numpy as np

from lepton_jax.compress.prune import masks
from lepton_jax.registry import ALLOCATIONS


@ALLOCATIONS.register
def uniform(scores, shapes, count):
  """The same share of every kernel."""
  del shapes
  sizes = sizes_of(scores)
  return exact({name: count * size / sum(sizes.values()) for name, size in sizes.items()}, sizes,
               count)


@ALLOCATIONS.register
def global_(scores, shapes, count):
  """One ranking of all kernels together (Han et al., arXiv:1506.02626)."""
  del shapes
  flat = np.concatenate([np.asarray(score).ravel() for score in scores.values()])
  chosen = masks.lowest(flat, count)
  ends = np.cumsum([np.size(score) for score in scores.values()])[:-1]
  return {name: int(part.sum()) for name, part in zip(scores, np.split(chosen, ends))}


@ALLOCATIONS.register
def erk(scores, shapes, count):
  """Kept shares in proportion to the sum over the product of a kernel's sides (arXiv:1911.11134).

  Erdos-Renyi-Kernel: wide kernels give up most. A kernel that would keep more than it has stays
  dense, and the others share what that leaves.
  """
  sizes = sizes_of(scores)
  raw = {name: sum(shapes[name]) / np.prod(shapes[name], dtype=float) for name in scores}
  dense, kept = set(), sum(sizes.values()) - count
  while True:
    open_to = [name for name in scores if name not in dense]
    room = kept - sum(sizes[name] for name in dense)
    factor = room / max(sum(raw[name] * sizes[name] for name in open_to), 1e-12)
    full = {name for name in open_to if factor * raw[name] >= 1}
    if not full:
      break
    dense |= full
  wanted = {name: 0.0 if name in dense else (1 - factor * raw[name]) * sizes[name]
            for name in scores}
  return exact(wanted, sizes, count)


@ALLOCATIONS.register
def lamp(scores, shapes, count):
  """One ranking by a score's square over the sum of all squares that are not smaller in its kernel.

  Layer-adaptive magnitude pruning (arXiv:2010.07611); each kernel's largest score becomes 1.
  """
  # Of a large table of words, sorting would be most of an update. Only counts are asked for: bins
  # of scores do, and a sort of those bins among which the ranking ends.
  found = {name: Bins.of(score) for name, score in scores.items()}
  given = {name: np.size(scores[name]) - bins.scores.size for name, bins in found.items()}
  entries, least, most = (np.concatenate(column) for column in zip(*(
      (bins.entries, bins.least, bins.most) for bins in found.values())))
  wanted = count - sum(given.values())
  start, end = reached(wanted, least, entries), reached(wanted, most, entries)
  for name, bins in found.items():
    given[name] += int(bins.entries[bins.most < start].sum())
  more = global_({name: bins.lamp_scores(start, end) for name, bins in found.items()}, shapes,
                 count - sum(given.values()))
  return {name: given[name] + more[name] for name in scores}


def reached(count, bound, entries):
  """The bound up to which there are `count` entries, or the highest one."""
  order = np.argsort(bound)
  place = np.searchsorted(np.cumsum(entries[order]), count)
  return bound[order[min(place, len(order) - 1)]] if len(order) else 0.0


class Bins(typing.NamedTuple):
  """Scores of a kernel in bins: together is what has an exponent and 7 bits of mantissa in common.

  Attributes:
    scores: f32[n], at least 0, of what is not gone.
    keys: [n], the bin of each, as number[bins] has it.
    entries, squares: [bins], how many scores there are, and the sum of their squares.
    least, most: f64[bins], between which their LAMP scores are.
  """
  scores: np.ndarray
  keys: np.ndarray
  number: np.ndarray
  entries: np.ndarray
  squares: np.ndarray
  least: np.ndarray
  most: np.ndarray

  @classmethod
  def of(cls, score):
    score = np.minimum(np.asarray(score, np.float32), LARGEST)
    score = masks.picked(score, score > -np.inf)
    if score.min(initial=0) < 0:  # of scores with signs, how far above the lowest
      score = score - score.min()
    keys = score.view(np.uint32) >> 16
    places = keys.astype(np.intp)
    entries = np.bincount(places)
    number = np.flatnonzero(entries)
    squares = np.bincount(places, np.square(score, dtype=np.float64))[number]
    low, high = (np.square((edge.astype(np.uint32) << 16).view(np.float32), dtype=np.float64)
                 for edge in (number, number + 1))
    remaining = np.cumsum(squares[::-1])[::-1]
    # Sums in another order have other last bits.
    least = low / np.maximum(remaining, TINY) * (1 - 1e-9)
    most = high / np.maximum(high + remaining - squares, TINY) * (1 + 1e-9)
    return cls(score, keys, number, entries[number], squares, least, most)

  def lamp_scores(self, start, end):
    """f64[...], rising, of the bins that may have some from `start` to `end`; they adjoin."""
    inside = np.flatnonzero((self.most >= start) & (self.least <= end))
    if not inside.size:
      return np.zeros(0)
    first, last = self.number[inside[[0, -1]]].tolist()
    chosen = masks.picked(self.scores, (self.keys >= first) & (self.keys <= last))
    return lamp_scores(chosen, self.squares[inside[-1] + 1:].sum())


TINY, LARGEST = np.finfo(np.float64).tiny, np.float32(1e38)


def lamp_scores(scores, above=0.0):
  """f64[n], rising, of scores[n] that are not negative; `above` is the sum of larger squares."""
  square = np.square(np.sort(scores), dtype=np.float64)
  remaining = above + np.cumsum(square[::-1])[::-1]
  return square / np.maximum(remaining, TINY)


def sizes_of(scores):
  return {name: int(np.size(score)) for name, score in scores.items()}


def exact(wanted, sizes, count):
  """Whole numbers near `wanted` that add up to `count` and keep at least one unit where they can.

  The largest remainders are rounded up. What some kernels cannot give the largest ones do.
  """
  if count > sum(sizes.values()):
    raise ValueError(f'{count} units of {sum(sizes.values())}')
  most = {name: max(size - 1, 0) for name, size in sizes.items()}
  if count > sum(most.values()):
    most = sizes
  given = {name: min(int(wanted[name]), most[name]) for name in wanted}
  by_remainder = sorted(wanted, key=lambda name: int(wanted[name]) - wanted[name])
  missing = count - sum(given.values())
  while missing > 0:
    for name in by_remainder:
      if missing and given[name] < most[name]:
        given[name] += 1
        missing -= 1
    by_remainder = sorted(wanted, key=lambda name: given[name] - most[name])
  return given
