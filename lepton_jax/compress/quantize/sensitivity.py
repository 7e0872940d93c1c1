"""How much each kernel's rounding costs, and bits for each kernel under a budget of bytes."""

WHOLE = 24  # bits that stand for a kernel that is not rounded: float32 has as many


def one_at_a_time(names, widths, measure):
  """{kernel: {bits: measure}} where one kernel is rounded and all others are not.

  `measure` takes the bits of all kernels in the order of `names`.
  """
  found = {}
  for place, name in enumerate(names):
    found[name] = {}
    for width in widths:
      bits = [WHOLE] * len(names)
      bits[place] = width
      found[name][width] = measure(bits)
  return found


def allocate(costs, sizes, budget):
  """{kernel: bits} whose costs add up to little, within a budget of bytes; None where none fits.

  costs[kernel][bits] is what rounding that kernel alone costs, sizes[kernel] its entries. All
  kernels begin at their fewest bits. The step up that saves most cost for a byte is taken until
  none fits: on the convex hull of what a kernel can have, as the greedy solution of the knapsack.
  """
  chosen = {name: min(by_bits) for name, by_bits in costs.items()}
  room = 8 * budget - sum(sizes[name] * bits for name, bits in chosen.items())
  if room < 0:
    return None
  while True:
    steps = []
    for name, by_bits in costs.items():
      for bits, cost in by_bits.items():
        more, saved = sizes[name] * (bits - chosen[name]), costs[name][chosen[name]] - cost
        if 0 < more <= room and saved > 0:
          steps.append((saved / more, name, bits))
    if not steps:
      return chosen
    _, name, bits = max(steps)
    room -= sizes[name] * (bits - chosen[name])
    chosen[name] = bits


def as_flag(chosen):
  """The choice as a value of --quantize_layers."""
  return ';'.join(f'^{name}$={bits}' for name, bits in chosen.items())
