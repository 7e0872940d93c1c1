"""How much each kernel's rounding costs, and bits for each kernel under a budget of bytes."""

import math

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
  at a time is added to the choices so far that no other beats in both bytes and cost. Of more than
  `most` of them one is kept in each equal step of the budget, so the sum may be least but for that.
  """
  fewest = {name: min(by_bits) for name, by_bits in costs.items()}
  room = 8 * budget - sum(sizes[name] * bits for name, bits in fewest.items())
  if room < 0:
    return None
  worst = 1 + sum(abs(cost) for by_bits in costs.values() for cost in by_bits.values()
                  if math.isfinite(cost))  # what is no number costs more than all others
  choices = [(0, 0.0, {})]  # bits beyond the fewest, cost, widths
  for name, by_bits in costs.items():
    more = [(sizes[name] * (bits - fewest[name]), cost if math.isfinite(cost) else worst,
             {name: bits}) for bits, cost in by_bits.items()]
    longer = [(used + bits, total + cost, widths | width) for used, total, widths in choices
              for bits, cost, width in more if used + bits <= room]
    choices = thinned(unbeaten(longer), most, room)
  return choices[-1][2]


def unbeaten(choices):
  """Choices (bits, cost, ...) by rising bits, those of which none takes as few and costs less."""
  found, least = [], math.inf
  for choice in sorted(choices, key=lambda choice: choice[:2]):
    if choice[1] < least:
      found.append(choice)
      least = choice[1]
  return found


def thinned(choices, most, room):
  """Of more than `most` choices the cheapest, which is the last, in each of so many equal steps."""
  if len(choices) <= most:
    return choices
  return list({int(choice[0] * most / room): choice for choice in choices}.values())


def as_flag(chosen):
  """The choice as a value of --quantize_layers."""
  return ';'.join(f'^{name}$={bits}' for name, bits in chosen.items())
