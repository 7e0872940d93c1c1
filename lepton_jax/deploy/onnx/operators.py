"""Layers that ONNX has operators for: rounding to levels, recurrences, reversed sequences."""

import functools

import numpy as np
import onnx

from lepton_jax.deploy.onnx.graph import Levels
from lepton_jax.deploy.onnx.operations import NUMBERS, result


def rounded(graph, equation, x, scale, zero, levels):
  """QuantizeLinear to eight bits and back; of fewer bits the whole numbers are clipped between."""
  if not all(v.constant for v in (scale, zero, levels)) or levels.array > 255:
    return None
  ends = graph.hold(np.float32(scale.array)), graph.hold(np.uint8(zero.array))
  name = graph.node('QuantizeLinear', graph.place(x, x.axes, whole=True), *ends)
  if levels.array < 255:
    name = graph.node('Clip', name, graph.hold(np.uint8(0)), graph.hold(np.uint8(levels.array)))
  return [result(equation, graph.node('DequantizeLinear', name, *ends), axes=x.axes)]


# Our gates in the order of ONNX's, and its name of each activation.
GATES = dict(lstm=('LSTM', (0, 3, 1, 2)), gru=('GRU', (1, 0, 2)), elman=('RNN', (0,)))
ACTIVATION = dict(tanh='Tanh', sigmoid='Sigmoid', relu='Relu')


def recurrence(graph, equation, kernel, bias, gates, valid, *states, kind, activation):
  """ONNX's own operator; it takes over the input's projection, which is the product before it."""
  if activation not in ACTIVATION:
    raise NotImplementedError(f'--activation={activation}; recurrent operators have '
                              f'{", ".join(ACTIVATION)}')
  operator, order = GATES[kind]
  x, weights, own_bias = projection(graph, gates.name)
  features = kernel.shape[0]
  arrange = functools.partial(rearranged, order=order, features=features)
  both = graph.hold(arrange(bias.array)[None])
  if own_bias is None:  # a bias of the input's projection is wanted as well
    both = graph.node('Pad', both, graph.hold(np.array([0, bias.array.size, 0, 0], np.int64)))
  else:
    both = graph.hold(np.concatenate([arrange(own_bias), arrange(bias.array)])[None])
  lengths = None
  if not (valid.constant and valid.array.all()):
    count = graph.node('Cast', graph.place(valid, whole=True), to=NUMBERS['int32'])
    lengths = graph.node('ReduceSum', count, graph.hold(np.array([0], np.int64)), keepdims=0)
  begin = [None if s.constant and not s.array.any() else
           graph.node('Unsqueeze', graph.place(s, whole=True), graph.hold(np.array([0], np.int64)))
           for s in states]
  acts = dict(lstm=['Sigmoid', ACTIVATION[activation], ACTIVATION[activation]],
              gru=['Sigmoid', ACTIVATION[activation]], elman=[ACTIVATION[activation]])[kind]
  found = graph.node(
      operator, x, stacked(graph, *weights, arrange),
      stacked(graph, kernel.array, kernel.levels, arrange), both, lengths,
      *begin, outputs=1 + len(states), hidden_size=features,
      activations=None if activation == 'tanh' else acts,
      linear_before_reset=1 if kind == 'gru' else None)
  # Both directions have an axis, of which there is one here.
  names = [graph.node('Squeeze', one, graph.hold(np.array([axis], np.int64)))
           for one, axis in zip(found, (1, 0, 0))]
  return [result(equation, name, i) for i, name in enumerate(names)]


def rearranged(array, order, features):
  """[..., gates * features] with the gates in another order."""
  parts = array.reshape(*array.shape[:-1], -1, features)
  return parts[..., list(order), :].reshape(array.shape)


def stacked(graph, array, levels, arrange):
  """The name of a kernel [in, gates * features] as [1, gates * features, in]."""
  turn = lambda part: arrange(part).T[None]
  if levels is not None:
    scale = levels.scale if levels.scale.size == 1 else turn(levels.scale)
    levels = Levels(turn(levels.whole), scale.reshape(1, -1, 1))
  return graph.weights(turn(array), levels)


def projection(graph, name):
  """(input, kernel's Value, bias or None) of the product that a value is."""
  node, bias = graph.maker(name), None
  if node.op_type == 'Add':
    held = [i for i in node.input if i in graph.constants]
    bias = graph.array(held[0]).reshape(-1)
    node = graph.maker(next(i for i in node.input if i not in held))
  weights = graph.kernels.get(node.input[1]) if node.op_type == 'MatMul' else None
  if weights is None:
    raise NotImplementedError('a recurrence whose input is not projected by a constant kernel')
  return node.input[0], weights, bias


def reverse(graph, equation, x, valid):
  """The steps of each example that exist, reversed; a recurrence between two is a backward one."""
  name, lengths = graph.place(x, whole=True), None
  if not (valid.constant and valid.array.all()):
    count = graph.node('Cast', graph.place(valid, whole=True), to=NUMBERS['int64'])
    lengths = graph.node('ReduceSum', count, graph.hold(np.array([1], np.int64)), keepdims=0)
  if (backward := read_backward(graph, name, lengths)) is not None:
    return [result(equation, backward)]
  if lengths is None:
    one, last = (graph.hold(np.array([n], np.int64)) for n in (1, -2 ** 62))
    step = graph.hold(np.array([-1], np.int64))
    found = graph.node('Slice', name, step, last, one, step)
  else:
    found = graph.node('ReverseSequence', name, lengths, batch_axis=0, time_axis=1)
  graph.turned[found] = name, lengths
  return [result(equation, found)]


def read_backward(graph, name, lengths):
  """The outputs of a recurrence that reads what `lengths` reversed, in the order before; or None.

  Time leads inside of a recurrence: there is a transposition on both sides.
  """
  chain = [graph.maker(name)]
  for operator in ('Transpose', 'Squeeze'):
    if chain[-1] is None or chain[-1].op_type != operator:
      return None
    chain.append(graph.maker(chain[-1].input[0]))
  cell = chain[-1]
  if cell is None or cell.op_type not in ('LSTM', 'GRU', 'RNN'):
    return None
  turned = graph.maker(cell.input[0])
  before, own = graph.turned.get(turned.input[0], (None, None)) if turned else (None, None)
  if before is None or own != lengths:
    return None
  attributes = {one.name: onnx.helper.get_attribute_value(one) for one in cell.attribute}
  attributes |= dict(direction='reverse')
  found = graph.node(cell.op_type, graph.node('Transpose', before, perm=[1, 0, 2]),
                     *cell.input[1:], outputs=len(cell.output), **attributes)
  steps = graph.node('Squeeze', found[0], chain[1].input[1])
  return graph.node('Transpose', steps, perm=[1, 0, 2])


LAYERS = {'lepton.rounded': rounded, 'lepton.recurrence': recurrence, 'lepton.reverse': reverse}
