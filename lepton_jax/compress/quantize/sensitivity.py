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


def allocate(costs, sizes, budget, most=4000):
  """{kernel: bits} whose costs add up to least, within a budget of bytes; None where none fits.

  costs[kernel][bits] is what rounding that kernel alone costs, sizes[kernel] its entries. A kernel
  at a time is added to the choices so far that no other beats in both bytes and cost; of more than
  `most` of them those are kept that cost least within equal steps of the budget.
  """
  room = 8 * budget
  choices = [(0, 0.0, {})]  # bits of all kernels so far, their cost, their widths
  for name, by_bits in costs.items():
    longer = sorted(((used + sizes[name] * bits, total + cost, chosen | {name: bits})
                     for used, total, chosen in choices for bits, cost in by_bits.items()
                     if used + sizes[name] * bits <= room), key=lambda choice: choice[:2])
    choices, least = [], float('inf')
    for choice in longer:
      if choice[1] < least:
        choices.append(choice)
        least = choice[1]
    if len(choices) > most:  # the last of a step costs least
      choices = list({int(used * most / room): (used, total, chosen)
                      for used, total, chosen in choices}.values())
  return choices[-1][2] if choices else None


def as_flag(chosen):
  """The choice as a value of --quantize_layers."""
  return ';'.join(f'^{name}$={bits}' for name, bits in chosen.items())
