"""Which coordinates of arrays a traced program makes one.

Every coordinate of every axis of every array has a number. An operation says which numbers are one:
a sum joins the channels of its terms, a convolution its input's channels with its kernel's, and
where an operation needs all coordinates of an axis at once, none of them can leave.
"""

import jax
import numpy as np

FIXED = 0  # the number of a coordinate that no operation may lose

ELEMENTWISE = frozenset('''
    abs acos acosh add and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy
    copy_p cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log
    log1p logistic lt max min mul ne neg nextafter not optimization_barrier or pow reduce_precision
    rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor'''.split())
REDUCTIONS = frozenset('''reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax
    argmin'''.split())


def fixed(shape):
  """The numbers of an array that no operation may make smaller."""
  return [np.full(size, FIXED) for size in shape]


class Walk:
  """One pass over a jaxpr. Values are lists of int[size] numbers, one for each axis.

  `do_NAME` is the rule of the operation NAME: (equation, its inputs) -> its outputs.
  """

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
      return fixed(np.shape(atom.val)) if hasattr(atom, 'val') else env[atom]

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
    return self.run(closed.jaxpr, [fixed(np.shape(const)) for const in closed.consts], inputs)

  def inner(self, eqn):
    """The closed jaxpr of a call, or None."""
    for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr'):
      if key in eqn.params:
        found = eqn.params[key]
        return found if hasattr(found, 'consts') else jax.extend.core.ClosedJaxpr(found, ())
    return None

  def unknown(self, eqn, ins):
    self.fix(*(numbers for axes in ins for numbers in axes))
    return [fixed(var.aval.shape) for var in eqn.outvars]

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
        out += fixed(sizes)
    return [out]

  def do_gather(self, eqn, ins):
    """Axes that are taken whole keep their channels."""
    dims, sizes = eqn.params['dimension_numbers'], eqn.params['slice_sizes']
    out = fixed(eqn.outvars[0].aval.shape)
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
    out = fixed(eqn.outvars[0].aval.shape)
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
