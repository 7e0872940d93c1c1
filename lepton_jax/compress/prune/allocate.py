"""How many units each kernel gives up; a unit is what a structure removes at once.

Each registered function is (scores, shapes, count) -> {kernel: units}. scores[kernel] has a score
for each unit, the lowest go first, shapes[kernel] is the kernel's own, and the units add up to
`count`, exactly.
"""

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
  # What is gone goes first. Within a kernel the order stays, so that only counts are asked for and
  # sorted scores will do; of a large table of words the sort is most of an update.
  staying = {name: score[score > -np.inf] for name, score in (
      (name, np.asarray(score, np.float32)) for name, score in scores.items())}
  gone = {name: np.size(scores[name]) - score.size for name, score in staying.items()}
  more = global_({name: lamp_scores(score) for name, score in staying.items()}, shapes,
                 count - sum(gone.values()))
  return {name: gone[name] + more[name] for name in scores}


def lamp_scores(score):
  """f64[units], rising, of what is not gone."""
  rising = np.sort(score, axis=None)
  if rising.size and rising[0] < 0:  # of scores with signs, how far above the lowest
    rising -= rising[0]
  square = np.square(rising, dtype=np.float64)
  remaining = np.cumsum(square[::-1])[::-1]
  return square / np.maximum(remaining, np.finfo(np.float64).tiny)


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
