"""Channels as what goes at once: filters of convolutions, units of dense and recurrent layers.

Masked channels have zeros in every parameter that they touch; after training they are really
removed (removal.py).
"""

import functools

import numpy as np

from lepton_jax import registry
from lepton_jax.compress import coupling as coupling_lib
from lepton_jax.compress.prune.masks import Units


def parts(coupling, multiple):
  """The attributes of the Structure; widths stay multiples of `multiple` where they can."""
  return dict(
      kernels={name: group.made_by for name, group in coupling.groups.items()},
      reasons=coupling.reasons, share=1.0, units=functools.partial(units, coupling.groups),
      masks=functools.partial(chosen, coupling),
      masked=functools.partial(touched, coupling),
      allowed=functools.partial(allowed, coupling, multiple))


def units(groups, score, evidence, before):
  """{group: Units}, its channels; one that is masked is gone.

  A score of entries counts as its mean over the kernels that make a channel: of magnitudes that is
  the L1 norm of filters (arXiv:1608.08710).
  """
  groups = {name: group for name, group in groups.items()
            if set(group.made_by) <= evidence.kernels.keys()}
  if score in registry.CHANNEL_SCORES.names():
    found = registry.CHANNEL_SCORES.get(score)(evidence, groups)
  else:
    entries = {name: np.asarray(one) for name, one in registry.SCORES.get(score)(evidence).items()}
    found = {name: mean_by_channel(group, entries) for name, group in groups.items()}
  shape = lambda name: evidence.kernels[groups[name].made_by[0]].shape
  there = lambda name: None if before is None else ~coupling_lib.gone(groups[name], before)
  return {name: Units.of(one, there(name), shape=shape(name)) for name, one in found.items()}


def mean_by_channel(group, entries, xp=np):
  """[channels]: the mean over a channel's entries in the kernels that make it.

  `entries` is {kernel: array like the kernel}, `xp` numpy or jax.numpy.
  """
  total, count = 0.0, 0
  for name in group.made_by:
    axis = entries[name].ndim - 1
    positions = group.positions(name, axis)
    by_output = xp.sum(entries[name].reshape(-1, entries[name].shape[-1]), 0)
    total += xp.sum(by_output[positions], -1)
    count += entries[name].size // entries[name].shape[-1] * positions.shape[1]
  return total / count


def chosen(coupling, units, counts):
  """{array: mask} where of each group counts[group] channels are gone."""
  found, shapes = {}, {name: coupling.shapes[name] for name in coupling.trained}
  for name, one in units.items():
    dead = coupling_lib.without(coupling.groups[name], ~one.staying(counts[name]), shapes)
    for array, mask in dead.items():
      found[array] = found[array] & mask if array in found else mask
  return found


def touched(coupling, groups):
  """Names of the parameters in which the channels of groups lie."""
  return tuple(dict.fromkeys(array for name in groups for array in coupling.groups[name].places
                             if array in coupling.trained))


def allowed(coupling, multiple, name, units, count):
  """How many of `units` channels of a group may go; some always stay."""
  shapes = [coupling.shapes[kernel] for kernel in coupling.groups[name].made_by]
  # A depthwise layer of one channel would be an ordinary one.
  least = 2 if any(len(shape) == 4 and shape[-2] == 1 for shape in shapes) else 1
  return min(rounded(multiple, units, count), max(units - least, 0))


def rounded(multiple, units, count):
  """How many of `units` channels go so that a multiple stays, at least one multiple of them."""
  if multiple == 1 or units <= multiple:
    return count if multiple == 1 else 0
  staying = multiple * max(1, round((units - count) / multiple))
  return max(units - staying, 0)
