"""Batch norms and biases go into the products before them, biases of rounded layers on levels."""

import numpy as np

from lepton_jax.deploy.onnx import graph as graph_lib
from lepton_jax.deploy.onnx.graph import Levels

LARGEST = 2 ** 31 - 1
MOVES = ('Transpose', 'Reshape', 'MaxPool')  # what leaves values on their levels


def simplify(graph, outputs, int4):
  """Changes a Graph in place; what `outputs` names stays.

  With `int4` kernels of four bits stay so, though runtimes then compute in float.
  """
  while any(merged(graph, node, outputs) for node in list(graph.nodes)):
    pass
  for node in graph.nodes:
    if node.op_type in ('Conv', 'Gemm'):
      whole_numbers(graph, node, int4)


def merged(graph, node, outputs):
  """Whether a product or sum with a number a channel went into the layer before it."""
  held = [i for i, name in enumerate(node.input) if name in graph.constants]
  if node.op_type not in ('Mul', 'Add', 'Sub') or len(held) != 1 or (
      node.op_type == 'Sub' and held != [1]):
    return False
  value = node.input[1 - held[0]]
  readers = sum(list(n.input).count(value) or value in graph_lib.reads(n) for n in graph.nodes)
  before = graph.maker(value)
  if before is None or readers > 1 or before.output[0] in outputs or (
      before.op_type not in ('Conv', 'Gemm') or before.input[1] not in graph.kernels):
    return False
  kernel, levels = graph.kernels[before.input[1]]
  channels, rank = kernel.shape[0], kernel.ndim
  number = graph.array(node.input[held[0]]).astype(np.float32)
  wanted = [1] * rank
  wanted[1] = channels  # of what a layer answers, channels are the second axis
  if number.size > 1 and list(number.shape) not in (wanted, wanted[-number.ndim:]):
    return False
  number = np.broadcast_to(number.ravel(), channels)
  bias = graph.array(before.input[2]) if len(before.input) > 2 else np.zeros(channels, np.float32)
  if node.op_type == 'Mul':
    along = number.reshape(-1, *[1] * (rank - 1))
    if levels is not None:
      levels = Levels(levels.whole, levels.scale * along)
    before.input[1] = graph.weights(kernel * along, levels)
    bias = bias * number
  else:
    bias = bias + (number if node.op_type == 'Add' else -number)
  del before.input[2:]
  before.input.append(graph.hold(bias.astype(np.float32)))
  before.output[0] = node.output[0]
  graph.nodes.remove(node)
  return True


def whole_numbers(graph, node, int4):
  """Readies a layer whose kernel and inputs are rounded to be computed in whole numbers.

  Runtimes look for a zero beside the scales of the kernel, and for a bias on the levels that sums
  of products of levels have.
  """
  kernel, levels = graph.kernels.get(node.input[1], (None, None))
  before = graph.maker(node.input[0])
  while before is not None and before.op_type in MOVES:
    before = graph.maker(before.input[0])
  if levels is None or before is None or before.op_type != 'DequantizeLinear' or (
      int4 and levels.narrow):
    return
  node.input[1] = graph.weights(kernel, levels, np.int8, zero=True)
  if len(node.input) < 3:
    return
  step = graph.array(before.input[1]) * levels.scale.ravel()
  bias = graph.array(node.input[2])
  step = np.broadcast_to(step, bias.shape).astype(np.float32)
  with np.errstate(divide='ignore', invalid='ignore'):
    whole = np.round(bias.astype(np.float64) / step)
  if np.isfinite(whole).all() and np.abs(whole).max(initial=0) < LARGEST:
    node.input[2] = graph.weights(bias, Levels(whole.astype(np.int32), step), np.int32, zero=True)

