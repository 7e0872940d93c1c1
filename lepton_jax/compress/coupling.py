"""Which entries of a network's arrays make one channel, found in its traced program.

Every coordinate of every axis of every array has a number. An operation says which numbers are one:
a sum joins the channels of its terms, a convolution its input's channels with its kernel's, and
where an operation needs all coordinates of an axis at once, none of them can leave. What is joined
in the end has to leave together, through residual sums, norms, depthwise layers, concatenations,
flattening and recurrent states alike (cf. DepGraph, arXiv:2301.12900, which has a rule a layer).
"""

import typing

import jax
import numpy as np

from lepton_jax import trees

FIXED = 0  # the number of a coordinate that no operation may lose

ELEMENTWISE = frozenset('''
    abs acos acosh add and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy
    copy_p cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log
    log1p logistic lt max min mul ne neg nextafter not optimization_barrier or pow reduce_precision
    rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor'''.split())
REDUCTIONS = frozenset('''reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax
    argmin'''.split())


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
  walk = _Walk()
  named = {name: walk.fresh(var.aval.shape) for name, var in zip(names, closed.jaxpr.invars)}
  rest = [_fixed(var.aval.shape) for var in closed.jaxpr.invars[len(names):]]
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


def _fixed(shape):
  return [np.full(size, FIXED) for size in shape]


class _Walk:
  """One pass over a jaxpr. Values are lists of int[size] numbers, one for each axis."""

  def __init__(self):
    self._parent, self.why, self.doing = [FIXED], {FIXED: 'its inputs come from outside'}, ''

  def fresh(self, shape):
    """Numbers that nothing has yet."""
    axes = []
    for size in shape:
      axes.append(np.arange(len(self._parent), len(self._parent) + size))
      self._parent.extend(range(len(self._parent), len(self._parent) + size))
    return axes

  def root(self, number):
    while self._parent[number] != number:
      self._parent[number] = number = self._parent[self._parent[number]]
    return number

  def reason(self, numbers):
    found = [self.why[self.root(n)] for n in numbers if self.root(n) in self.why]
    return found[0] if found else 'nothing reads its outputs'

  def join(self, one, other):
    """Makes pairs of numbers one; a number that is joined with a fixed one is fixed."""
    if one is other or np.array_equal(one, other):
      return
    for a, b in zip(one.tolist(), other.tolist()):
      a, b = self.root(a), self.root(b)
      if a == b:
        continue
      if FIXED in (a, b):
        self.why.setdefault(max(a, b), self.doing)
        continue
      self._parent[b] = a
      if b in self.why:
        self.why.setdefault(a, self.why[b])

  def fix(self, *axes):
    """Numbers that have to stay, for what is being done."""
    for numbers in axes:
      for number in numbers.tolist():
        self.why.setdefault(self.root(number), self.doing)

  def is_fixed(self, numbers):
    return all(self.root(number) in self.why for number in numbers.tolist())

  def run(self, jaxpr, consts, inputs):
    """The numbers of a jaxpr's results."""
    env = dict(zip(jaxpr.constvars, consts)) | dict(zip(jaxpr.invars, inputs))

    def read(atom):
      return _fixed(np.shape(atom.val)) if hasattr(atom, 'val') else env[atom]

    for eqn in jaxpr.eqns:
      ins = [read(atom) for atom in eqn.invars]
      name = eqn.primitive.name
      self.doing = f'{name} needs all of them'
      if name in ELEMENTWISE:
        outs = self.elementwise(eqn, ins)
      elif name in REDUCTIONS:
        outs = self.reduced(eqn, ins)
      elif (rule := getattr(self, f'do_{name}', None)) is not None:
        outs = rule(eqn, ins)
      elif (inner := self.inner(eqn)) is not None:
        outs = self.run_closed(inner, ins)
      else:
        outs = self.unknown(eqn, ins)
      env.update(zip(eqn.outvars, outs))
    return [read(atom) for atom in jaxpr.outvars]

  def run_closed(self, closed, inputs):
    """The same of a closed jaxpr, whose constants are as they are."""
    return self.run(closed.jaxpr, [_fixed(np.shape(const)) for const in closed.consts], inputs)

  def inner(self, eqn):
    """The closed jaxpr of a call, or None."""
    for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr'):
      if key in eqn.params:
        found = eqn.params[key]
        return found if hasattr(found, 'consts') else jax.extend.core.ClosedJaxpr(found, ())
    return None

  def unknown(self, eqn, ins):
    self.fix(*(numbers for axes in ins for numbers in axes))
    return [_fixed(var.aval.shape) for var in eqn.outvars]

  def elementwise(self, eqn, ins):
    shape = eqn.outvars[0].aval.shape
    same = [axes for axes in ins if len(axes) == len(shape)]
    for axes in same[1:]:
      for one, other in zip(same[0], axes):
        self.join(one, other)
    return [same[0]] * len(eqn.outvars)

  def reduced(self, eqn, ins):
    gone = eqn.params['axes']
    self.fix(*(axes[i] for axes in ins for i in gone))
    return [[n for i, n in enumerate(axes) if i not in gone] for axes in ins[:len(eqn.outvars)]]

  def do_broadcast_in_dim(self, eqn, ins):
    shape, at = eqn.params['shape'], eqn.params['broadcast_dimensions']
    out = self.fresh(shape)
    for axis, numbers in zip(at, ins[0]):
      if len(numbers) == shape[axis]:
        out[axis] = numbers
    return [out]

  def do_transpose(self, eqn, ins):
    return [[ins[0][i] for i in eqn.params['permutation']]]

  def do_squeeze(self, eqn, ins):
    return [[n for i, n in enumerate(ins[0]) if i not in eqn.params['dimensions']]]

  def do_expand_dims(self, eqn, ins):
    out = list(ins[0])
    for axis in sorted(eqn.params['dimensions']):
      out.insert(axis, *self.fresh((1,)))
    return [out]

  def do_rev(self, eqn, ins):
    return [[n[::-1] if i in eqn.params['dimensions'] else n for i, n in enumerate(ins[0])]]

  def do_iota(self, eqn, ins):
    out = self.fresh(eqn.params['shape'])
    out[eqn.params['dimension']] = np.full(len(out[eqn.params['dimension']]), FIXED)
    return [out]

  def do_concatenate(self, eqn, ins):
    along, out = eqn.params['dimension'], list(ins[0])
    for axes in ins[1:]:
      for i, numbers in enumerate(axes):
        if i != along:
          self.join(out[i], numbers)
    out[along] = np.concatenate([axes[along] for axes in ins])
    return [out]

  def do_slice(self, eqn, ins):
    starts, ends = eqn.params['start_indices'], eqn.params['limit_indices']
    strides = eqn.params['strides'] or (1,) * len(starts)
    return [[n[s:e:t] for n, s, e, t in zip(ins[0], starts, ends, strides)]]

  def do_split(self, eqn, ins):
    axis = eqn.params['axis']
    parts = np.split(ins[0][axis], np.cumsum(eqn.params['sizes'])[:-1])
    return [[part if i == axis else n for i, n in enumerate(ins[0])] for part in parts]

  def do_pad(self, eqn, ins):
    out = []
    for numbers, (low, high, inside) in zip(ins[0], eqn.params['padding_config']):
      if inside or low < 0 or high < 0:
        self.fix(numbers)
        size = low + high + len(numbers) + inside * max(len(numbers) - 1, 0)
        out.append(np.full(size, FIXED))
      elif self.is_fixed(numbers):
        out.append(np.full(low + high + len(numbers), FIXED))
      else:
        before, after = self.fresh((low, high))
        out.append(np.concatenate([before, numbers, after]))
    return [out]

  def do_reshape(self, eqn, ins):
    """Axes that become one keep their channels where only one of them has any."""
    out = []
    for old, new in _blocks([len(n) for n in ins[0]], eqn.outvars[0].aval.shape):
      axes, sizes = [ins[0][i] for i in old], [eqn.outvars[0].aval.shape[i] for i in new]
      free = [i for i, n in enumerate(axes) if not self.is_fixed(n)]
      along = [i for i, size in enumerate(sizes) if size > 1]
      if len(free) == 1 and len(along) <= 1:
        shape = [1] * len(axes)
        shape[free[0]] = -1
        merged = np.broadcast_to(axes[free[0]].reshape(shape), [len(n) for n in axes]).ravel()
        out += [merged if not along or i == along[0] else self.fresh((1,))[0]
                for i in range(len(sizes))]
      else:
        self.fix(*axes)
        out += _fixed(sizes)
    return [out]

  def do_gather(self, eqn, ins):
    """Axes that are taken whole keep their channels."""
    dims, sizes = eqn.params['dimension_numbers'], eqn.params['slice_sizes']
    out = _fixed(eqn.outvars[0].aval.shape)
    dropped = {*dims.collapsed_slice_dims, *dims.operand_batching_dims}
    kept = [i for i in range(len(sizes)) if i not in dropped]
    whole = {axis: place for axis, place in zip(kept, dims.offset_dims)
             if sizes[axis] == len(ins[0][axis]) and axis not in dims.start_index_map}
    for axis, numbers in enumerate(ins[0]):
      if axis in whole:
        out[whole[axis]] = numbers
      else:
        self.fix(numbers)
    self.fix(*ins[1])
    return [out]

  def do_dynamic_slice(self, eqn, ins):
    out = []
    for numbers, size in zip(ins[0], eqn.params['slice_sizes']):
      if size != len(numbers):
        self.fix(numbers)
        numbers = np.full(size, FIXED)
      out.append(numbers)
    return [out]

  def do_dynamic_update_slice(self, eqn, ins):
    for numbers, update in zip(ins[0], ins[1]):
      if len(update) == len(numbers):
        self.join(numbers, update)
      else:
        self.fix(numbers, update)
    return [ins[0]]

  def windows(self, eqn, ins):
    """Windows of one entry leave an axis as it is."""
    shape, sizes = eqn.outvars[0].aval.shape, eqn.params['window_dimensions']
    out = []
    for axis, numbers in enumerate(ins[0]):
      if sizes[axis] > 1 or shape[axis] != len(numbers):
        self.fix(*(axes[axis] for axes in ins if axes))
        numbers = np.full(shape[axis], FIXED)
      out.append(numbers)
    return [out] * len(eqn.outvars)

  do_reduce_window = do_reduce_window_max = do_reduce_window_sum = do_reduce_window_min = windows

  def along_one(self, eqn, ins):
    axis = eqn.params.get('axis', eqn.params.get('dimension'))
    self.fix(*(axes[axis] for axes in ins))
    for axes in ins[1:]:
      for one, other in zip(ins[0], axes):
        self.join(one, other)
    return ins

  do_cumsum = do_cummax = do_cummin = do_cumprod = do_cumlogsumexp = do_sort = along_one

  def do_dot_general(self, eqn, ins):
    (left, right), (left_batch, right_batch) = eqn.params['dimension_numbers']
    for i, j in zip((*left, *left_batch), (*right, *right_batch)):
      self.join(ins[0][i], ins[1][j])
    return [[*(ins[0][i] for i in left_batch),
             *(n for i, n in enumerate(ins[0]) if i not in (*left, *left_batch)),
             *(n for i, n in enumerate(ins[1]) if i not in (*right, *right_batch))]]

  def do_conv_general_dilated(self, eqn, ins):
    dims, groups = eqn.params['dimension_numbers'], eqn.params['feature_group_count']
    image, kernel, made = dims.lhs_spec, dims.rhs_spec, dims.out_spec
    channels, inputs, features = ins[0][image[1]], ins[1][kernel[1]], ins[1][kernel[0]]
    if groups == 1 and eqn.params['batch_group_count'] == 1:
      self.join(channels, inputs)
    elif len(inputs) == 1 and eqn.params['batch_group_count'] == 1:  # depthwise
      self.join(np.repeat(channels, len(features) // groups), features)
    else:
      self.fix(channels, inputs, features)
    self.fix(*(ins[1][i] for i in kernel[2:]), *(ins[0][i] for i in image[2:]))
    out = _fixed(eqn.outvars[0].aval.shape)
    out[made[0]], out[made[1]] = ins[0][image[0]], features
    return [out]

  def do_scan(self, eqn, ins):
    inner, consts = eqn.params['jaxpr'], eqn.params['num_consts']
    carried = consts + eqn.params['num_carry']
    self.fix(*(axes[0] for axes in ins[carried:]))
    found = self.run_closed(inner, [*ins[:carried], *(axes[1:] for axes in ins[carried:])])
    after = found[:eqn.params['num_carry']]
    self._same(ins[consts:carried], after)
    return [*after, *([np.full(eqn.params['length'], FIXED), *axes]
                      for axes in found[eqn.params['num_carry']:])]

  def do_while(self, eqn, ins):
    first, second = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
    carry, body = ins[first + second:], eqn.params['body_jaxpr']
    found = self.run_closed(body, [*ins[first:first + second], *carry])
    self._same(carry, found)
    return found

  def do_cond(self, eqn, ins):
    results = [self.run_closed(branch, ins[1:]) for branch in eqn.params['branches']]
    for other in results[1:]:
      self._same(results[0], other)
    return results[0]

  def _same(self, one, other):
    for axes, others in zip(one, other):
      for numbers, and_numbers in zip(axes, others):
        self.join(numbers, and_numbers)


def _blocks(old, new):
  """[(axes, axes)]: the shortest runs of axes of two shapes that hold as many entries."""
  found, i, j = [], 0, 0
  while i < len(old) or j < len(new):
    first, second = [i], [j]
    size, other = (old[i] if i < len(old) else 1), (new[j] if j < len(new) else 1)
    i, j = i + 1, j + 1
    while size != other:
      if size < other:
        first.append(i)
        size, i = size * old[i], i + 1
      else:
        second.append(j)
        other, j = other * new[j], j + 1
    found.append(([k for k in first if k < len(old)], [k for k in second if k < len(new)]))
  return found
