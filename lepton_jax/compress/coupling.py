"""Which entries of a network's arrays make one channel, found in its traced program.

Coordinates that the program makes one (coordinates.py) have to leave it together, through residual
sums, norms, depthwise layers, concatenations, flattening and recurrent states alike (cf. DepGraph,
arXiv:2301.12900, which has a rule a layer).
"""

import typing

import jax
import numpy as np

from lepton_jax import trees
from lepton_jax.compress.coordinates import Walk, fixed


class Group(typing.NamedTuple):
  """Channels that are alike: any of them can leave the network, in all of these places at once.

  Attributes:
    places: {array: ((axis, int[channels, positions of one channel]), ...)}.
    made_by: names of the kernels whose outputs the channels are.
  """
  places: dict
  made_by: tuple

  @property
  def channels(self):
    return len(next(iter(self.places.values()))[0][1])

  @property
  def signature(self):
    """What tells groups of a network apart, and is the same after some channels have left."""
    return frozenset((name, axis, found.shape[1]) for name, places in self.places.items()
                     for axis, found in places)

  def positions(self, name, axis):
    """int[channels, n]: where the channels lie along an axis of an array."""
    return next(found for at, found in self.places[name] if at == axis)


class Coupling(typing.NamedTuple):
  """All channels of a network that can leave it.

  Attributes:
    groups: {name of the first kernel that makes its channels: Group}.
    reasons: {kernel: why no output of it can leave}.
    shapes: {array: shape}.
    trained: names of the arrays that are parameters.
  """
  groups: dict
  reasons: dict
  shapes: dict
  trained: frozenset


def couple(function, variables, inputs):
  """The Coupling of `function(variables, inputs)`, which is traced, not run.

  `variables` is {'params', other collections} of arrays or shapes; names of parameters are given
  without the collection. Whatever the function returns keeps all its coordinates, as inputs do.
  """
  arrays = named_variables(variables)
  closed = jax.make_jaxpr(function)(variables, inputs)
  names = list(arrays)
  walk = Walk()
  named = {name: walk.fresh(var.aval.shape) for name, var in zip(names, closed.jaxpr.invars)}
  rest = [fixed(var.aval.shape) for var in closed.jaxpr.invars[len(names):]]
  outputs = walk.run_closed(closed, [*named.values(), *rest])
  walk.doing = 'they are the answers'
  walk.fix(*(numbers for axes in outputs for numbers in axes))
  return Coupling(*_grouped(walk, named), {name: leaf.shape for name, leaf in arrays.items()},
                  frozenset(trees.named(variables['params'])))


def named_variables(variables):
  """{name: leaf} of all collections, 'conv1/kernel' and 'batch_stats/norm1/mean'."""
  return {name.removeprefix('params/'): leaf for name, leaf in trees.named(variables).items()}


def _grouped(walk, named):
  """(groups, reasons): channels that lie in the same places are one group."""
  found = {}  # number of a channel: {(array, axis): positions}
  for name, axes in named.items():
    for axis, numbers in enumerate(axes):
      for position, root in enumerate(map(walk.root, numbers)):
        if root not in walk.why:
          found.setdefault(root, {}).setdefault((name, axis), []).append(position)
  alike = {}
  for places in found.values():
    alike.setdefault(tuple((at, len(where)) for at, where in places.items()), []).append(places)
  groups = {}
  for channels in alike.values():
    at = {key: np.array([places[key] for places in channels]) for key in channels[0]}
    made_by = tuple(name for name, axis in at
                    if trees.is_kernel(name) and axis == len(named[name]) - 1)
    if made_by:
      places = {}
      for (name, axis), positions in at.items():
        places[name] = (*places.get(name, ()), (axis, positions))
      name = made_by[0]
      while name in groups:  # one kernel may make channels of several kinds
        name += '+'
      groups[name] = Group(places, made_by)
  free = {name for group in groups.values() for name in group.made_by}
  reasons = {name: walk.reason(named[name][-1]) for name in named
             if trees.is_kernel(name) and name not in free}
  return groups, reasons


def gone(group, masks):
  """bool[channels]: those of which {array: bool mask} leaves nothing."""
  dead = np.ones(group.channels, bool)
  for name, places in group.places.items():
    if name in masks:
      for axis, positions in places:
        dead &= _empty(masks[name], axis, positions)
  return dead


def unread(group, arrays):
  """bool[channels]: those that no kernel reads, because all its entries for them are zero.

  A table of vectors may be the output layer too, so its own entries count as readers.
  """
  dead, readers = np.ones(group.channels, bool), 0
  for name, places in group.places.items():
    for axis, positions in places:
      last = axis == arrays[name].ndim - 1 if name in arrays else True
      if name in arrays and trees.is_kernel(name) and (not last or name.endswith('embedding')):
        dead &= _empty(arrays[name], axis, positions)
        readers += 1
  return dead if readers else np.zeros(group.channels, bool)


def _empty(array, axis, positions):
  """bool[channels]: those of whose places along an axis all entries are zero."""
  others = tuple(i for i in range(array.ndim) if i != axis)
  return ~(array != 0).any(others)[positions].any(-1)


def without(group, chosen, shapes):
  """{array: bool mask} that is False at all entries of the chosen channels, bool[channels].

  The arrays are those of `shapes` that the group lies in.
  """
  masks = {}
  for name in group.places.keys() & shapes.keys():
    mask = np.ones(shapes[name], bool)
    for axis, positions in group.places[name]:
      np.moveaxis(mask, axis, 0)[positions[chosen].ravel()] = False
    masks[name] = mask
  return masks
