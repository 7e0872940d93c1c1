"""How sparse the network is at each step."""


def update_steps(total_steps, begin, end, updates):
  """The steps, in order, before which masks are made anew: `updates` + 1 even places from begin to end (shares of the run)."""
  first, last = begin * total_steps, end * total_steps
  return sorted({min(round(first + (last - first) * i / updates), total_steps - 1) for i in range(updates + 1)})


def cubic(step, steps, sparsity):
  """Share of weights that are zero from `step` on: rises fast, then levels off at `sparsity` (arXiv:1710.01878).

  `steps` is what `update_steps` gave; before its first entry the share is 0.
  """
  if step < steps[0]:
    return 0.0
  if step >= steps[-1]:
    return sparsity
  return sparsity * (1 - (1 - (step - steps[0]) / (steps[-1] - steps[0])) ** 3)
