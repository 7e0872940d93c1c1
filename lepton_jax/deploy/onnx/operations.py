"""What each operation of JAX is in ONNX; one that is not here is an error that names its line."""


import jax
import numpy as np
from jax import lax
from jax.extend import core

from lepton_jax.deploy.onnx.graph import Value, constant
from lepton_jax.errors import UserError

OPERATIONS = {}
FUNCTIONS = ('jit', 'pjit', 'closed_call', 'custom_jvp_call', 'custom_vjp_call', 'remat2',
             'checkpoint', 'composite', 'scan')
NUMBERS = dict(float32=1, uint8=2, int8=3, int32=6, int64=7, bool=9, float16=10, float64=11)


def operation(*names):
  def register(function):
    OPERATIONS.update(dict.fromkeys(names, function))
    return function
  return register


def walk(graph, closed, values):
  """The Values of a ClosedJaxpr's outputs for those of its inputs."""
  known = dict(zip(closed.jaxpr.constvars, map(constant, closed.consts)))
  known |= dict(zip(closed.jaxpr.invars, values))
  def read(atom):
    if isinstance(atom, core.Literal):  # a Python number has the dtype that it is used in
      return constant(np.asarray(atom.val, atom.aval.dtype))
    return known[atom]

  for equation in closed.jaxpr.eqns:
    given = [read(atom) for atom in equation.invars]
    found = computed(equation, given)
    if found is None:
      found = translated(graph, equation, given)
    known |= dict(zip(equation.outvars, found))
  return [read(atom) for atom in closed.jaxpr.outvars]


def computed(equation, given):
  """The constants that an operation on constants gives, or None."""
  primitive, outs = equation.primitive, [var.aval for var in equation.outvars]
  if not given or not all(v.constant for v in given) or primitive.name in FUNCTIONS:
    return None
  if not all(isinstance(size, int) for aval in outs for size in aval.shape):
    return computed_thin(equation, given)
  levels = given[0].levels
  if levels is not None:
    levels = levels.transposed(equation.params['permutation']) if (
        primitive.name == 'transpose') else None
  arrays = [np.broadcast_to(value.array, value.shape) for value in given]
  found = primitive.bind(*arrays, **equation.params)
  return [constant(one, levels) for one in (found if primitive.multiple_results else [found])]


def computed_thin(equation, given):
  """The same of constants that stand for arrays of a free size."""
  name, out = equation.primitive.name, equation.outvars[0].aval
  arrays = [value.array for value in given]
  if name in ELEMENTWISE:
    found = equation.primitive.bind(*np.broadcast_arrays(*arrays), **equation.params)
  elif name in REDUCE and name != 'reduce_prod':
    axes, sizes = equation.params['axes'], given[0].shape
    if arrays[0].ndim != len(sizes) or not all(isinstance(sizes[axis], int) for axis in axes):
      return None
    counts = [sizes[axis] // arrays[0].shape[axis] for axis in axes]
    found = getattr(arrays[0], name.removeprefix('reduce_'))(axes)
    found = found * np.prod(counts, dtype=int) if name == 'reduce_sum' else found
  else:
    return None
  return [Value(out.shape, out.dtype, array=np.asarray(found, out.dtype))]


def translated(graph, equation, given):
  """The Values of an operation's outputs."""
  name = equation.primitive.name
  line = graph.line = source(equation) or graph.line
  if name not in OPERATIONS:
    raise UserError(f'--format=onnx: the operation {name!r}{line} has no form in ONNX here; export '
                    f'it as stablehlo, or write it with other operations')
  try:
    found = OPERATIONS[name](graph, equation, *given)
  except NotImplementedError as error:
    raise UserError(f'--format=onnx: {name!r}{line}: {error}') from None
  except LookupError as error:
    raise UserError(f'--format=onnx: {name!r}{line} needs a size that is computed of others: '
                    f'{error}') from None
  return found if isinstance(found, (list, tuple)) and not isinstance(found, Value) else [found]


def source(equation):
  """' at FILE:LINE' of the code that made an operation, as far as that is known."""
  trace = equation.source_info.traceback
  for frame in trace.frames if trace else ():
    if not any(part in frame.file_name for part in ('/site-packages/jax/', '/site-packages/flax/',
                                                    'frozen')):
      return f' at {frame.file_name}:{frame.line_num}'
  return ''


def result(equation, name, index=0, **layout):
  aval = equation.outvars[index].aval
  return Value(aval.shape, aval.dtype, name, **layout)


# Element by element.

UNARY = dict(neg='Neg', exp='Exp', log='Log', tanh='Tanh', logistic='Sigmoid', sqrt='Sqrt',
             abs='Abs', sign='Sign', floor='Floor', ceil='Ceil', erf='Erf', sin='Sin', cos='Cos',
             stop_gradient='Identity', copy='Identity', copy_p='Identity')
UNARY['not'] = 'Not'
BINARY = dict(add='Add', sub='Sub', mul='Mul', div='Div', max='Max', min='Min', pow='Pow',
              eq='Equal', lt='Less', gt='Greater', le='LessOrEqual', ge='GreaterOrEqual',
              add_any='Add')
BINARY |= {'and': 'And', 'or': 'Or', 'xor': 'Xor'}


def elementwise(graph, equation, operator, *given, **attributes):
  """A node over values that broadcast, in the layout of the first that is no constant."""
  shape = equation.outvars[0].aval.shape
  whole = [v for v in given if len(v.shape) == len(shape)]
  axes = next((v.axes for v in whole if not v.constant and v.axes), None)
  names = [graph.place(v, axes if len(v.shape) == len(shape) else None) for v in given]
  thick = any(tuple(v.shape) == tuple(shape) and not thin(v) for v in whole)
  return result(equation, graph.node(operator, *names, **attributes), axes=axes, thin=not thick)


def thin(value):
  return value.array.shape != value.shape if value.constant else value.thin


ELEMENTWISE = {*UNARY, *BINARY, 'ne', 'rsqrt', 'square', 'integer_pow', 'select_n', 'clamp',
               'convert_element_type', 'rem', 'round'}


@operation(*UNARY)
def unary(graph, equation, x):
  return elementwise(graph, equation, UNARY[equation.primitive.name], x)


@operation(*BINARY)
def binary(graph, equation, x, y):
  operator = BINARY[equation.primitive.name]
  if operator in ('And', 'Or', 'Xor') and x.dtype != bool:
    raise NotImplementedError('only of truth values')
  zero = y.constant and not y.array.any()
  same = tuple(x.shape) == tuple(equation.outvars[0].aval.shape)
  if operator == 'Max' and zero and same and np.issubdtype(x.dtype, np.floating):
    return elementwise(graph, equation, 'Relu', x)
  return elementwise(graph, equation, operator, x, y)


@operation('ne')
def not_equal(graph, equation, x, y):
  same = elementwise(graph, equation, 'Equal', x, y)
  return same._replace(name=graph.node('Not', same.name))


@operation('rsqrt')
def reciprocal_root(graph, equation, x):
  root = elementwise(graph, equation, 'Sqrt', x)
  return root._replace(name=graph.node('Reciprocal', root.name))


@operation('square')
def square(graph, equation, x):
  return elementwise(graph, equation, 'Mul', x, x)


@operation('integer_pow')
def integer_power(graph, equation, x):
  power = equation.params['y']
  if power == 2:
    return square(graph, equation, x)
  return elementwise(graph, equation, 'Pow', x, constant(np.array(power, x.dtype)))


@operation('exp2')
def power_of_two(graph, equation, x):
  return elementwise(graph, equation, 'Pow', constant(np.array(2, x.dtype)), x)


@operation('log1p')
def log_of_more(graph, equation, x):
  more = elementwise(graph, equation, 'Add', x, constant(np.array(1, x.dtype)))
  return more._replace(name=graph.node('Log', more.name))


@operation('expm1')
def exp_less(graph, equation, x):
  power = elementwise(graph, equation, 'Exp', x)
  return power._replace(name=graph.node('Sub', power.name, graph.hold(np.array(1, x.dtype))))


@operation('erfc')
def error_left(graph, equation, x):
  error = elementwise(graph, equation, 'Erf', x)
  return error._replace(name=graph.node('Sub', graph.hold(np.array(1, x.dtype)), error.name))


@operation('is_finite')
def is_finite(graph, equation, x):
  endless = elementwise(graph, equation, 'IsInf', x)
  either = graph.node('Or', endless.name, graph.node('IsNaN', graph.place(x, endless.axes)))
  return endless._replace(name=graph.node('Not', either))


@operation('rem')
def remainder(graph, equation, x, y):
  return elementwise(graph, equation, 'Mod', x, y, fmod=1)


@operation('round')
def rounded_half(graph, equation, x):
  if equation.params['rounding_method'] == lax.RoundingMethod.TO_NEAREST_EVEN:
    return elementwise(graph, equation, 'Round', x)
  far = elementwise(graph, equation, 'Abs', x)  # halves away from zero
  half = graph.hold(np.array(0.5, x.dtype))
  far = graph.node('Floor', graph.node('Add', far.name, half))
  sign = elementwise(graph, equation, 'Sign', x)
  return sign._replace(name=graph.node('Mul', far, sign.name))


@operation('clamp')
def clamp(graph, equation, low, x, high):
  least = elementwise(graph, equation, 'Max', x, low)
  return elementwise(graph, equation, 'Min', least, high)


@operation('select_n')
def select(graph, equation, which, *cases):
  if len(cases) != 2 or which.dtype != bool:
    raise NotImplementedError('only a choice of two')
  if cases[0].dtype == bool:  # runtimes choose between numbers alone
    numbers = [graph.node('Cast', graph.place(case), to=NUMBERS['int32']) for case in cases]
    found = graph.node('Where', graph.place(which), *numbers[::-1])
    return result(equation, graph.node('Cast', found, to=NUMBERS['bool']),
                  thin=all(map(thin, (which, *cases))))
  return elementwise(graph, equation, 'Where', which, cases[1], cases[0])


@operation('convert_element_type')
def convert(graph, equation, x):
  dtype = np.dtype(equation.params['new_dtype'])
  if dtype == x.dtype:
    return x
  if dtype.name not in NUMBERS:
    raise NotImplementedError(f'no type {dtype.name}')
  return elementwise(graph, equation, 'Cast', x, to=NUMBERS[dtype.name])


# Shapes.


@operation('broadcast_in_dim')
def broadcast(graph, equation, x, *sizes):
  if sizes:
    raise NotImplementedError('a shape that is computed')
  shape, places = equation.outvars[0].aval.shape, equation.params['broadcast_dimensions']
  if x.constant:
    own = dict(zip(places, x.array.shape if x.array.ndim == len(places) else x.shape))
    array = x.array.reshape([own.get(axis, 1) for axis in range(len(shape))])
    return Value(shape, x.dtype, array=array)
  own = dict(zip(places, x.shape))
  if len(x.shape) == len(shape) and not x.axes:
    return result(equation, x.name, thin=x.thin or x.shape != shape)
  missing = [axis for axis in range(len(shape)) if axis not in own]
  name = graph.place(x)
  if missing:
    name = graph.node('Unsqueeze', name, graph.hold(np.array(missing, np.int64)))
  return result(equation, name, thin=x.thin or tuple(own.get(a, 1) for a in range(len(shape)))
                != tuple(shape))


@operation('reshape')
def reshape(graph, equation, x, *sizes):
  if sizes:
    raise NotImplementedError('a shape that is computed')
  shape = equation.outvars[0].aval.shape
  if tuple(shape) == tuple(x.shape):
    return x
  free = [i for i, size in enumerate(shape) if not isinstance(size, int)]
  kept = all(i < len(x.shape) and x.shape[:i + 1] == shape[:i + 1] for i in free)
  if len(free) <= 1 or kept:
    # 0 keeps a size, -1 is what is left.
    sizes = [-1 if free == [i] else 0 if i in free else size for i, size in enumerate(shape)]
    sizes = graph.hold(np.array(sizes, np.int64))
  else:
    sizes = graph.shape(shape)
  return result(equation, graph.node('Reshape', graph.place(x, whole=True), sizes))


@operation('transpose')
def transpose(graph, equation, x):
  order = equation.params['permutation']
  if x.constant:
    return Value(equation.outvars[0].aval.shape, x.dtype, array=x.array.transpose(order),
                 levels=x.levels and x.levels.transposed(order))
  return result(equation, graph.node('Transpose', graph.place(x), perm=order), thin=x.thin)


@operation('squeeze')
def squeeze(graph, equation, x):
  gone = np.array(equation.params['dimensions'], np.int64) % len(x.shape)
  name = graph.node('Squeeze', graph.place(x), graph.hold(gone)) if gone.size else x.name
  return result(equation, name, thin=x.thin)


@operation('expand_dims')
def expand(graph, equation, x):
  new = np.array(equation.params['dimensions'], np.int64)
  return result(equation, graph.node('Unsqueeze', graph.place(x), graph.hold(new)), thin=x.thin)


@operation('concatenate')
def concatenate(graph, equation, *given):
  if len(given) == 1:
    return given[0]
  names = [graph.place(v, whole=True) for v in given]
  return result(equation, graph.node('Concat', *names, axis=equation.params['dimension']))


@operation('stack')
def stack(graph, equation, *given):
  axis = equation.params['axis']
  place = graph.hold(np.array([axis], np.int64))
  names = [graph.node('Unsqueeze', graph.place(v, whole=True), place) for v in given]
  return result(equation, graph.node('Concat', *names, axis=axis))


@operation('tile')
def tile(graph, equation, x):
  times = graph.hold(np.array(equation.params['reps'], np.int64))
  return result(equation, graph.node('Tile', graph.place(x, whole=True), times))


@operation('split')
def split(graph, equation, x):
  sizes, axis = equation.params['sizes'], equation.params['axis']
  names = graph.node('Split', graph.place(x, whole=True), graph.hold(np.array(sizes, np.int64)),
                     outputs=len(sizes), axis=axis)
  names = names if len(sizes) > 1 else (names,)
  return [result(equation, name, i) for i, name in enumerate(names)]


@operation('slice')
def cut(graph, equation, x):
  begin, end = equation.params['start_indices'], equation.params['limit_indices']
  step = equation.params['strides'] or (1,) * len(begin)
  return result(equation, sliced(graph, x, begin, end, step), axes=x.axes)


def sliced(graph, x, begin, end, step):
  """The name of a part of a value, in its layout."""
  name = graph.place(x, x.axes, whole=True)
  some = [i for i in range(len(x.shape)) if (begin[i], end[i], step[i]) != (0, x.shape[i], 1)]
  if not some:
    return name
  order = x.axes or tuple(range(len(x.shape)))
  last = 2 ** 62  # of an axis that is taken to its end
  ends = [last if end[i] == x.shape[i] else end[i] for i in some]
  held = [graph.hold(np.array(part, np.int64))
          for part in ([order.index(i) for i in some], [step[i] for i in some])]
  return graph.node('Slice', name, graph.shape([begin[i] for i in some]), graph.shape(ends), *held)


@operation('rev')
def reverse_axes(graph, equation, x):
  axes = np.array(equation.params['dimensions'], np.int64)
  ends = np.full(axes.shape, -2 ** 62)
  name = graph.node('Slice', graph.place(x, whole=True), graph.hold(np.full(axes.shape, -1)),
                    graph.hold(ends), graph.hold(axes), graph.hold(np.full(axes.shape, -1)))
  return result(equation, name)


@operation('pad')
def pad(graph, equation, x, fill):
  config = equation.params['padding_config']
  if any(inner for *_, inner in config) or any(min(low, high) < 0 for low, high, _ in config):
    raise NotImplementedError('only padding around')
  pads = np.array([low for low, *_ in config] + [high for _, high, _ in config], np.int64)
  return result(equation, graph.node('Pad', graph.place(x, whole=True), graph.hold(pads),
                                     graph.place(fill)))


@operation('iota')
def iota(graph, equation, *sizes):
  shape, axis = equation.outvars[0].aval.shape, equation.params['dimension']
  dtype = np.dtype(equation.params['dtype'])
  form = [1] * len(shape)
  if isinstance(shape[axis], int):
    form[axis] = shape[axis]
    return Value(shape, dtype, array=np.arange(shape[axis], dtype=dtype).reshape(form))
  zero, one = (graph.hold(np.array(n, np.int64)) for n in (0, 1))
  size = graph.node('Squeeze', graph.size(shape[axis]))
  name = graph.node('Cast', graph.node('Range', zero, size, one), to=NUMBERS[dtype.name])
  missing = [i for i in range(len(shape)) if i != axis]
  if missing:
    name = graph.node('Unsqueeze', name, graph.hold(np.array(missing, np.int64)))
  return result(equation, name, thin=bool(missing))


@operation('dim_as_value')
def size_of(graph, equation):
  number = graph.node('Squeeze', graph.size(equation.params['dim']))
  return result(equation, graph.node('Cast', number, to=NUMBERS['int32']))


# Over axes.

REDUCE = dict(reduce_sum='ReduceSum', reduce_max='ReduceMax', reduce_min='ReduceMin',
              reduce_prod='ReduceProd')


@operation(*REDUCE)
def reduce(graph, equation, x):
  gone = equation.params['axes']
  if not gone:
    return x
  order = x.axes or tuple(range(len(x.shape)))
  places = graph.hold(np.array(sorted(order.index(axis) for axis in gone), np.int64))
  name = graph.node(REDUCE[equation.primitive.name], graph.place(x, x.axes, whole=True), places,
                    keepdims=0)
  left = [axis for axis in order if axis not in gone]
  axes = tuple(sorted(left).index(axis) for axis in left)
  return result(equation, name, axes=None if axes == tuple(range(len(axes))) else axes)


@operation('reduce_and', 'reduce_or')
def reduce_logical(graph, equation, x):
  whole = graph.node('Cast', graph.place(x, whole=True), to=NUMBERS['int32'])
  axes = graph.hold(np.array(equation.params['axes'], np.int64))
  operator = 'ReduceMin' if equation.primitive.name == 'reduce_and' else 'ReduceMax'
  name = graph.node(operator, whole, axes, keepdims=0)
  return result(equation, graph.node('Cast', name, to=NUMBERS['bool']))


@operation('argmax', 'argmin')
def extreme(graph, equation, x):
  operator = dict(argmax='ArgMax', argmin='ArgMin')[equation.primitive.name]
  axis, = equation.params['axes']
  name = graph.node(operator, graph.place(x, whole=True), axis=axis, keepdims=0)
  dtype = np.dtype(equation.params['index_dtype'])
  return result(equation, graph.node('Cast', name, to=NUMBERS[dtype.name]))


@operation('cumsum')
def running_sum(graph, equation, x):
  axis = graph.hold(np.array(equation.params['axis'], np.int64))
  return result(equation, graph.node('CumSum', graph.place(x, whole=True), axis,
                                     reverse=int(equation.params['reverse'])))


@operation('reduce_window_max', 'reduce_window_sum')
def pool(graph, equation, x):
  given = equation.params
  window, strides, padding = (given[name] for name in (
      'window_dimensions', 'window_strides', 'padding'))
  over = [i for i in range(len(window)) if window[i] != 1 or strides[i] != 1]
  if len(window) != 4 or not set(over) <= {1, 2} or set(
      given['base_dilation']) | set(given['window_dilation']) != {1}:
    raise NotImplementedError('only windows over the positions of images')
  axes = (0, 3, 1, 2)
  form = dict(kernel_shape=window[1:3], strides=strides[1:3],
              pads=[padding[1][0], padding[2][0], padding[1][1], padding[2][1]])
  name = graph.place(x, axes, whole=True)
  if equation.primitive.name == 'reduce_window_max':
    return result(equation, graph.node('MaxPool', name, **form), axes=axes)
  mean = graph.node('AveragePool', name, count_include_pad=1, **form)
  count = graph.hold(np.array(window[1] * window[2], x.dtype))
  return result(equation, graph.node('Mul', mean, count), axes=axes)


# Products.


@operation('dot_general')
def product(graph, equation, x, y):
  (left, right), (left_batch, right_batch) = equation.params['dimension_numbers']
  plain = not left_batch and tuple(left) == (len(x.shape) - 1,) and tuple(right) == (0,)
  if plain and len(y.shape) == 2:
    name = graph.place(x, whole=True)
    if len(x.shape) == 2 and y.constant:  # scales along the first axis are applied much faster
      kernel = graph.weights(y.array.T, y.levels and y.levels.transposed((1, 0)))
      return result(equation, graph.node('Gemm', name, kernel, transB=1))
    kernel = graph.weights(y.array, y.levels) if y.constant else graph.place(y, whole=True)
    return result(equation, graph.node('MatMul', name, kernel))
  letters = iter('abcdefghijklmnopqrstuvwxyz')
  one, two = ([next(letters) for _ in v.shape] for v in (x, y))
  for mine, theirs in ((left_batch, right_batch), (left, right)):
    for i, j in zip(mine, theirs):
      two[j] = one[i]
  out = [one[i] for i in left_batch] + [c for i, c in enumerate(one) if i not in (
      *left, *left_batch)] + [c for i, c in enumerate(two) if i not in (*right, *right_batch)]
  text = f'{"".join(one)},{"".join(two)}->{"".join(out)}'
  return result(equation, graph.node('Einsum', graph.place(x, whole=True),
                                     graph.place(y, whole=True), equation=text))


@operation('conv_general_dilated')
def convolution(graph, equation, x, kernel):
  given = equation.params
  numbers = given['dimension_numbers']
  if set(given['lhs_dilation']) != {1} or given['batch_group_count'] != 1:
    raise NotImplementedError('no transposed convolutions')
  order = numbers.rhs_spec
  weights = graph.weights(
      kernel.array.transpose(order), kernel.levels and kernel.levels.transposed(order)
  ) if kernel.constant else graph.place(kernel, order, whole=True)
  low, high = zip(*given['padding'])
  name = graph.node(
      'Conv', graph.place(x, numbers.lhs_spec, whole=True), weights, pads=[*low, *high],
      strides=given['window_strides'], dilations=given['rhs_dilation'],
      group=given['feature_group_count'],
      kernel_shape=[kernel.shape[i] for i in order[2:]])
  return result(equation, name, axes=tuple(numbers.out_spec))


@operation('gather')
def gather(graph, equation, x, index):
  given = equation.params
  numbers, sizes = given['dimension_numbers'], given['slice_sizes']
  where, gone = numbers.start_index_map, numbers.collapsed_slice_dims
  batch = numbers.operand_batching_dims
  if index.constant and index.array.ndim == 1 and not batch:
    # One slice, such as x[:, 0].
    begin, end = [0] * len(x.shape), list(x.shape)
    for axis, start in zip(where, index.array.tolist()):
      begin[axis], end[axis] = start, start + sizes[axis]
    part = Value(x.shape, x.dtype, sliced(graph, x, begin, end, [1] * len(begin)), axes=x.axes)
    name = graph.place(part)
    if gone:
      name = graph.node('Squeeze', name, graph.hold(np.array(gone, np.int64)))
    return result(equation, name)
  if index.constant and index.array.size == 1 and batch and len(where) == 1 and gone == where:
    # The same step of every example.
    begin, end = [0] * len(x.shape), list(x.shape)
    begin[where[0]], end[where[0]] = index.array.item(), index.array.item() + 1
    if len(index.shape) == len(batch) + 2 and index.shape[-2] == 1:
      return result(equation, sliced(graph, x, begin, end, [1] * len(begin)), axes=x.axes)
  if index.constant and not batch and (steps := strided(index.array)) and gone == where and (
      numbers.offset_dims == tuple(i for i in range(len(x.shape)) if i not in where)):
    # Every n-th position of some axes, such as x[:, ::2].
    begin, end, step = [0] * len(x.shape), list(x.shape), [1] * len(x.shape)
    for axis, (start, distance, count) in zip(where, steps):
      begin[axis], step[axis] = start, distance
      end[axis] = min(start + distance * count, x.shape[axis])
    return result(equation, sliced(graph, x, begin, end, step), axes=x.axes)
  first = len(batch)
  after = tuple(range(first, first + len(where)))
  rank = len(index.shape) - 1
  if not batch and len(where) == 1:  # one axis may be any: the index takes its place
    after, rest = where, len(x.shape) - 1
    others = tuple(i for i in range(rank + rest) if not where[0] <= i < where[0] + rank)
  else:
    others = tuple(range(rank, rank + len(x.shape) - first - len(where)))
  fits = batch == tuple(range(first)) == numbers.start_indices_batching_dims and (
      where == gone == after) and numbers.offset_dims == others
  fits = fits and all(sizes[i] == x.shape[i] for i in range(len(sizes)) if i not in (*gone, *batch))
  if not fits:
    raise NotImplementedError('only whole slices, as of table[words] and jnp.take_along_axis')
  indices = graph.node('Cast', graph.place(index, whole=True), to=NUMBERS['int64'])
  if not batch and len(where) == 1:
    indices = graph.node('Squeeze', indices, graph.hold(np.array([rank], np.int64)))
    if where != (0,):
      return result(equation, graph.node('Gather', graph.place(x, whole=True), indices,
                                         axis=where[0]))
    if x.constant and x.levels is not None and x.levels.axis() in (1, 0) and (
        x.levels.scale.size == 1 or x.levels.axis() == 1):
      # Rows are looked up as they are stored, and only those are scaled.
      return result(equation, scaled_rows(graph, x.levels, indices, rank))
    return result(equation, graph.node('Gather', graph.place(x, whole=True), indices, axis=0))
  return result(equation, graph.node('GatherND', graph.place(x, whole=True), indices,
                                     batch_dims=first))


def strided(index):
  """[(start, distance, count)] of index[n1, n2, ..., k] whose k-th entries step along axis k alone;
  None for others.
  """
  if index.ndim != index.shape[-1] + 1:
    return None
  found = []
  for axis in range(index.shape[-1]):
    along = np.moveaxis(index[..., axis], axis, 0).reshape(index.shape[axis], -1)
    distance = int(along[1, 0] - along[0, 0]) if len(along) > 1 else 1
    expected = along[0, 0] + distance * np.arange(len(along))
    if distance < 1 or (along != expected[:, None]).any():
      return None
    found.append((int(along[0, 0]), distance, len(along)))
  return found


def scaled_rows(graph, levels, indices, rank):
  whole = levels.whole.astype(np.int8) if np.abs(levels.whole).max() < 128 else levels.whole
  found = graph.node('Gather', graph.hold(whole), indices, axis=0)
  scale = levels.scale.ravel().astype(np.float32)
  return graph.node('Mul', graph.node('Cast', found, to=NUMBERS['float32']),
                    graph.hold(scale if scale.size > 1 else scale[0]))


# Functions inside functions.


@operation(*FUNCTIONS)
def inner(graph, equation, *given):
  params = equation.params
  closed = params.get('jaxpr', params.get('call_jaxpr', params.get('fun_jaxpr')))
  if not isinstance(closed, core.ClosedJaxpr):
    closed = core.ClosedJaxpr(closed, ())
  return walk(graph, closed, given)


@operation('composite')
def composite(graph, equation, *given):
  name = equation.params['name']
  attributes = {key: jax.tree.unflatten(tree, leaves)
                for key, leaves, tree in equation.params['attributes']}
  own = graph.layers.get(name)
  found = own and own(graph, equation, *given, **attributes)
  return found or walk(graph, equation.params['jaxpr'], given)


@operation('scan')
def scan(graph, equation, *given):
  """ONNX's Scan, whose body may use whatever is outside of it."""
  params = equation.params
  consts, carried = params['num_consts'], params['num_carry']
  fixed, states, steps = (given[:consts], given[consts:consts + carried],
                          given[consts + carried:])
  bare = not steps  # ONNX wants something to go through
  if bare:
    steps = [constant(np.arange(params['length']))]
  first = [graph.place(v, whole=True) for v in (*states, *steps)]
  outer, graph.nodes = graph.nodes, []
  known, graph.made = graph.made, dict(graph.made)
  arguments = [var.aval for var in params['jaxpr'].jaxpr.invars[consts:]]
  inside = [Value(aval.shape, aval.dtype, graph.new()) for aval in arguments]
  found = walk(graph, params['jaxpr'], [*fixed, *inside])
  if bare:
    inside.append(Value((), steps[0].dtype, graph.new()))
  # Each output is a value of the body's own.
  names = [graph.node('Identity', graph.place(v, whole=True), alone=True) for v in found]
  body = graph.body([(v.name, v.dtype) for v in inside],
                    [(n, v.dtype) for n, v in zip(names, found)])
  graph.nodes, graph.made = outer, known
  back = int(params['reverse'])
  count = len(equation.outvars)
  out = graph.node('Scan', *first, outputs=count, alone=True, body=body, num_scan_inputs=len(steps),
                   scan_input_directions=[back] * len(steps) or None,
                   scan_output_directions=[back] * (count - carried) or None)
  return [result(equation, name, i) for i, name in enumerate(out if count > 1 else (out,))]
