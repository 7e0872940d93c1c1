"""How many units each kernel gives up; a unit is what a structure removes at once.

Each registered function is ({kernel: Units}, count) -> {kernel: how many are to be gone}, of which
some may be so already. The lowest scores go first; the numbers add up to `count`, exactly.
"""

import typing

import numpy as np

from lepton_jax.compress.prune import masks
from lepton_jax.registry import ALLOCATIONS


@ALLOCATIONS.register
def uniform(units, count):
  """The same share of every kernel."""
  whole = sum(one.total for one in units.values())
  return exact({name: count * one.total / whole for name, one in units.items()}, units, count)


@ALLOCATIONS.register
def global_(units, count):
  """One ranking of all kernels together (Han et al., arXiv:1506.02626)."""
  return ranked({name: one.gone for name, one in units.items()},
                {name: one.scores for name, one in units.items()}, count)


def ranked(given, scores, count):
  """{kernel: given[kernel] and those of its scores[kernel] that are among the lowest of all}."""
  chosen = masks.lowest(np.concatenate(list(scores.values())), count - sum(given.values()))
  ends = np.cumsum([len(one) for one in scores.values()])[:-1]
  return {name: given[name] + np.count_nonzero(part)
          for name, part in zip(scores, np.split(chosen, ends))}


@ALLOCATIONS.register
def erk(units, count):
  """Kept shares in proportion to the sum over the product of a kernel's sides (arXiv:1911.11134).

  Erdos-Renyi-Kernel: wide kernels give up most. A kernel that would keep more than it has stays
  dense, and the others share what that leaves.
  """
  sizes = {name: one.total for name, one in units.items()}
  raw = {name: sum(one.shape) / np.prod(one.shape, dtype=float) for name, one in units.items()}
  dense, kept = set(), sum(sizes.values()) - count
  while True:
    open_to = [name for name in units if name not in dense]
    room = kept - sum(sizes[name] for name in dense)
    factor = room / max(sum(raw[name] * sizes[name] for name in open_to), 1e-12)
    full = {name for name in open_to if factor * raw[name] >= 1}
    if not full:
      break
    dense |= full
  wanted = {name: 0.0 if name in dense else (1 - factor * raw[name]) * sizes[name]
            for name in units}
  return exact(wanted, units, count)


@ALLOCATIONS.register
def lamp(units, count):
  """One ranking by a score's square over the sum of all squares that are not smaller in its kernel.

  Layer-adaptive magnitude pruning (arXiv:2010.07611); each kernel's largest score becomes 1.
  """
  # Of a large table of words, sorting would be most of an update. Only counts are asked for: bins
  # of scores do, and a sort of those bins among which the ranking ends.
  found = {name: Bins.of(one.scores) for name, one in units.items()}
  given = {name: one.gone for name, one in units.items()}
  entries, least, most = (np.concatenate(column) for column in zip(*(
      (bins.entries, bins.least, bins.most) for bins in found.values())))
  wanted = count - sum(given.values())
  start, end = reached(wanted, least, entries), reached(wanted, most, entries)
  for name, bins in found.items():
    given[name] += int(bins.entries[bins.most < start].sum())
  return ranked(given, {name: bins.lamp_scores(start, end) for name, bins in found.items()}, count)


def reached(count, bound, entries):
  """The bound up to which there are `count` entries, or the highest one."""
  order = np.argsort(bound)
  place = np.searchsorted(np.cumsum(entries[order]), count)
  return bound[order[min(place, len(order) - 1)]] if len(order) else 0.0


class Bins(typing.NamedTuple):
  """Scores of a kernel in bins: together is what has an exponent and 7 bits of mantissa in common.

  So LAMP scores are known well enough, without a sort, to tell which bins a threshold lies in: of
  1, 2 and 2 they are 1/9, 4/8 and 4/4, and the bin of the twos has them from just below 1/2 to 1.

  Attributes:
    scores: f32[n], at least 0.
    low, high: f32[bins], a bin's scores are at least and below these; empty bins are left out.
    entries: [bins], how many scores there are.
    least, most: f64[bins], between which their LAMP scores are.
  """
  scores: np.ndarray
  low: np.ndarray
  high: np.ndarray
  entries: np.ndarray
  least: np.ndarray
  most: np.ndarray

  @classmethod
  def of(cls, score):
    score = np.fmin(np.asarray(score, np.float32), LARGEST)  # what is no number is worth most
    np.maximum(score, -LARGEST, out=score)
    # Of scores with signs, how far above the lowest; and a sum with 0 is no zero with a sign.
    score += max(0, -score.min(initial=0))
    bits = score.view(np.uint32)
    parts = np.array_split(bits, 1 + bits.size // 2 ** 16)  # which stay in a cache
    entries = sum(np.bincount(part >> 16, minlength=2 ** 15) for part in parts)
    number = np.flatnonzero(entries)
    entries = entries[number]
    low, high = ((edge.astype(np.uint32) << 16).view(np.float32) for edge in (number, number + 1))
    squares = [np.square(edge, dtype=np.float64) for edge in (low, high)]
    fewest, largest = (np.cumsum((entries * square)[::-1])[::-1] for square in squares)
    least = squares[0] / largest
    most = squares[1] / np.maximum(squares[1] + fewest - entries * squares[0], TINY)
    # Sums in another order have other last bits.
    return cls(score, low, high, entries, least * (1 - 1e-9), most * (1 + 1e-9))

  def lamp_scores(self, start, end):
    """f64[...], rising, of the bins that may have some from `start` to `end`; they adjoin."""
    inside = np.flatnonzero((self.most >= start) & (self.least <= end))
    if not inside.size:
      return np.zeros(0)
    low, high = self.low[inside[0]], self.high[inside[-1]]
    below = self.scores < high
    above = self.scores * ~below
    return lamp_scores(masks.picked(self.scores, (self.scores >= low) & below),
                       np.einsum('i,i', above, above, dtype=np.float64))


TINY, LARGEST = np.finfo(np.float64).tiny, np.float32(1e38)


def lamp_scores(scores, above=0.0):
  """f64[n], rising, of scores[n] that are not negative; `above` is the sum of larger squares."""
  square = np.square(np.sort(scores), dtype=np.float64)
  remaining = above + np.cumsum(square[::-1])[::-1]
  return square / np.maximum(remaining, TINY)


def exact(wanted, units, count):
  """Whole numbers near `wanted` that add up to `count` and keep at least one unit where they can.

  The largest remainders are rounded up. What some kernels cannot give the largest ones do. Where
  more is gone of some than is wanted, the others give up less.
  """
  sizes = {name: one.total for name, one in units.items()}
  if count > sum(sizes.values()):
    raise ValueError(f'{count} units of {sum(sizes.values())}')
  more = {name: max(wanted[name] - one.gone, 0) for name, one in units.items()}
  if sum(more.values()) > (room := count - sum(one.gone for one in units.values())):
    wanted = {name: one.gone + more[name] * room / sum(more.values())
              for name, one in units.items()}
  most = {name: max(one.total - 1, one.gone) for name, one in units.items()}
  if count > sum(most.values()):
    most = sizes
  given = {name: max(min(int(wanted[name]), most[name]), one.gone) for name, one in units.items()}
  by_remainder = sorted(wanted, key=lambda name: int(wanted[name]) - wanted[name])
  missing = count - sum(given.values())
  while missing > 0:
    for name in by_remainder:
      if missing and given[name] < most[name]:
        given[name] += 1
        missing -= 1
    by_remainder = sorted(wanted, key=lambda name: given[name] - most[name])
  return given
