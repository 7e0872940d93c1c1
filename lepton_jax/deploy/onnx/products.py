"""Operations that sum or compare over axes, products among them, in ONNX."""

import numpy as np

from lepton_jax.deploy.onnx.operations import NUMBERS, operation, result

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
