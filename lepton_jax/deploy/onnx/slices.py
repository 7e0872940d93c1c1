"""Operations that take some entries of an array, in ONNX."""

import numpy as np

from lepton_jax.deploy.onnx.graph import Value
from lepton_jax.deploy.onnx.operations import NUMBERS, operation, result


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
