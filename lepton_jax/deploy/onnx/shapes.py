"""Operations that move entries or repeat them, in ONNX."""

import numpy as np

from lepton_jax.deploy.onnx.graph import Value
from lepton_jax.deploy.onnx.operations import NUMBERS, operation, result


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
