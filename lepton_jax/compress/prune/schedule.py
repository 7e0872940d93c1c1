"""When masks are made anew, and how sparse the network then is.

Each registered function is (options, total steps) -> Plan.
"""

import math
import typing

from lepton_jax.registry import PRUNE_SCHEDULES


class Plan(typing.NamedTuple):
  """One schedule.

  Attributes:
    steps: those before which masks are made anew, in order.
    share: step -> share of the final sparsity that is due from then on, 0 to 1.
    exchange: step -> share of the weights that stay which gives way to others, 0 to 1.
    grows_by: what ranks the weights that come back, 'random' or 'gradient'; None: none do.
  """
  steps: tuple
  share: typing.Callable
  exchange: typing.Callable = lambda step: 0.0
  grows_by: str | None = None


def update_steps(total_steps, begin, end, updates):
  """`updates` + 1 steps, evenly from `begin` to `end`, which are shares of the run; in order."""
  first, last = begin * total_steps, end * total_steps
  places = (first + (last - first) * i / updates for i in range(updates + 1))
  return tuple(sorted({min(round(place), total_steps - 1) for place in places}))


@PRUNE_SCHEDULES.register
def cubic(options, total_steps):
  """Rises fast, then levels off (arXiv:1710.01878)."""
  steps = update_steps(total_steps, options.prune_begin, options.prune_end, options.prune_updates)

  def share(step):
    if step >= steps[-1]:
      return 1.0
    return 1 - (1 - (step - steps[0]) / (steps[-1] - steps[0])) ** 3 if step > steps[0] else 0.0

  return Plan(steps, share)


@PRUNE_SCHEDULES.register
def one_shot(options, total_steps):
  """All at once, at the step where pruning begins."""
  return Plan((min(round(options.prune_begin * total_steps), total_steps - 1),), lambda step: 1.0)


@PRUNE_SCHEDULES.register
def set_(options, total_steps):
  """Sparse from the first step; weights are exchanged for random ones (arXiv:1707.04780)."""
  return dynamic(options, total_steps, 'random')


@PRUNE_SCHEDULES.register
def rigl(options, total_steps):
  """Sparse from the first step; weights of the largest gradient come back (arXiv:1911.11134)."""
  return dynamic(options, total_steps, 'gradient')


def dynamic(options, total_steps, grows_by):
  """The exchanged share falls as half a cosine, from `prune_exchange` down to 0 at the end."""
  later = update_steps(total_steps, options.prune_begin, options.prune_end, options.prune_updates)
  steps = tuple(sorted({0, *later}))

  def exchange(step):
    if step == 0 or step >= steps[-1]:
      return 0.0
    return options.prune_exchange / 2 * (1 + math.cos(math.pi * step / steps[-1]))

  return Plan(steps, lambda step: 1.0, exchange, grows_by)
