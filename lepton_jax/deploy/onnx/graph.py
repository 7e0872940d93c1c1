"""An ONNX graph under construction: nodes, constants, and values that remember their layout."""

import ast
import typing

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 21, 10  # the first with 4-bit integers


class Levels(typing.NamedTuple):
  """A constant as whole numbers i32[...] times a scale f32 that broadcasts against them."""
  whole: np.ndarray
  scale: np.ndarray

  @property
  def narrow(self):
    """Whether four bits hold each of them."""
    return -8 <= self.whole.min(initial=0) <= self.whole.max(initial=0) <= 7

  def transposed(self, axes):
    return Levels(self.whole.transpose(axes), self.scale.transpose(axes))

  def axis(self):
    """The only axis along which scales differ, 0 where none does; None for several."""
    varying = [i for i, size in enumerate(self.scale.shape) if size > 1]
    return None if len(varying) > 1 else (varying or [0])[0]


class Value(typing.NamedTuple):
  """What a traced variable is in the graph.

  Attributes:
    shape: of the variable; sizes that a caller is free to choose are symbols.
    dtype: of the variable.
    name: of the graph's value; None for a constant.
    array: of a constant. It may be thinner than the shape, which it then broadcasts to; so may a
      named value that is `thin`.
    axes: the order of the variable's axes in the graph, None as they are: images are stored with
      the channels before the positions.
    levels: of a constant that is on some.
    thin: whether sizes of 1 stand for whole axes.
  """
  shape: tuple
  dtype: typing.Any
  name: str | None = None
  array: np.ndarray | None = None
  axes: tuple | None = None
  levels: Levels | None = None
  thin: bool = False

  @property
  def constant(self):
    return self.array is not None


def constant(array, levels=None):
  array = np.asarray(array)
  return Value(array.shape, array.dtype, array=array, levels=levels)


class Graph:
  """Nodes and constants; `sizes` finds the free sizes: {symbol: (input, axis)}.

  `layers` are what ONNX has operators for: {name of the operation: function of the graph, the
  equation and its Values that gives Values, or None where it does not fit}.
  """

  def __init__(self, layers):
    self.layers = layers
    self.nodes, self.constants, self.sizes, self._count = [], {}, {}, 0
    self.kernels = {}  # {name: (array, Levels or None)} of what inputs are multiplied by
    self.made = {}  # {what a node does: the names of its outputs}
    self.turned = {}  # {name of sequences: (name of what they reverse, of their lengths or None)}
    self.line = ''  # of the program that is being translated
    self._first, self._known = [], {}

  def new(self):
    """A name."""
    self._count += 1
    return f'v{self._count}'

  def node(self, operator, *inputs, outputs=1, alone=False, **attributes):
    """Adds a node, unless there is one that does the same and it need not be `alone`; returns the
    name of its output, or a tuple of them.
    """
    attributes = {k: v for k, v in attributes.items() if v is not None}
    key = (operator, inputs, outputs, repr(sorted(attributes.items())))
    if key not in self.made or alone:
      self.made[key] = tuple(self.new() for _ in range(outputs))
      self.nodes.append(helper.make_node(operator, [i or '' for i in inputs], self.made[key],
                                         **attributes))
    names = self.made[key]
    return names[0] if outputs == 1 else names

  def maker(self, name):
    """The node whose output a name is, or None."""
    return next((node for node in reversed(self.nodes) if name in node.output), None)

  def hold(self, array, packed=None):
    """The name of a constant; equal ones are held once. `packed` 'int4' stores four bits each."""
    array = np.asarray(array)
    key = (array.dtype.str, array.shape, array.tobytes(), packed)
    if key not in self._known:
      name = self._known[key] = f'c{len(self.constants)}'
      if packed == 'int4':
        nibbles = np.pad(array.ravel() & 15, (0, array.size % 2)).astype(np.uint8)
        tensor = helper.make_tensor(name, onnx.TensorProto.INT4, array.shape,
                                    (nibbles[::2] | nibbles[1::2] << 4).tobytes(), raw=True)
      else:
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
      self.constants[name] = tensor
    return self._known[key]

  def size(self, symbol):
    """i64[1] of a free size, or of an expression of them; raises LookupError for other ones."""
    if str(symbol) in self.sizes:
      name, axis = self.sizes[str(symbol)]
      return self.node('Shape', name, start=axis, end=axis + 1)
    return self._sized(ast.parse(str(symbol), mode='eval').body)

  def _sized(self, tree):
    """i64[1] of an expression such as time - 1, 2*time or floordiv(time, 2)."""
    operators = {ast.Add: 'Add', ast.Sub: 'Sub', ast.Mult: 'Mul'}
    if isinstance(tree, ast.Constant):
      return self.hold(np.array([tree.value], np.int64))
    if isinstance(tree, ast.Name) and tree.id in self.sizes:
      return self.size(tree.id)
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
      return self.node('Neg', self._sized(tree.operand))
    if isinstance(tree, ast.BinOp) and type(tree.op) in operators:
      return self.node(operators[type(tree.op)], self._sized(tree.left), self._sized(tree.right))
    if isinstance(tree, ast.Call) and tree.func.id == 'floordiv':
      return self.node('Div', *map(self._sized, tree.args))
    raise LookupError(ast.unparse(tree))

  def shape(self, sizes):
    """i64[n] of a shape with free sizes."""
    if all(isinstance(size, int) for size in sizes):
      return self.hold(np.array(sizes, np.int64))
    parts = [self.hold(np.array([size], np.int64)) if isinstance(size, int) else self.size(size)
             for size in sizes]
    return parts[0] if len(parts) == 1 else self.node('Concat', *parts, axis=0)

  def place(self, value, axes=None, whole=False):
    """The name of a value with its axes in an order; `whole` where 1 may not stand for more."""
    rank = len(value.shape)
    axes = None if axes is None or tuple(axes) == tuple(range(rank)) else tuple(axes)
    if value.constant:
      array = value.array
      if axes is not None and array.ndim == rank:
        array = array.transpose(axes)
      name = self.hold(array)
    else:
      name = value.name
      if value.axes != axes:
        now = value.axes or tuple(range(rank))
        order = [now.index(axis) for axis in axes or range(rank)]
        name = self.node('Transpose', name, perm=order)
    thinner = value.thin if not value.constant else value.array.shape != value.shape
    if whole and thinner:
      sizes = [value.shape[axis] for axis in axes or range(rank)]
      name = self.node('Expand', name, self.shape(sizes))
    return name

  def weights(self, array, levels=None, dtype=None, zero=False):
    """The name of a layer's kernel: its levels times their scale, where it is on some.

    The levels are of a dtype; None: of the narrowest. With `zero` the level of zero is there too.
    """
    if levels is None or levels.axis() is None:
      levels, name = None, self.hold(array)
    else:
      axis, scale = levels.axis(), levels.scale.ravel().astype(np.float32)
      scale = scale[0] if scale.size == 1 else scale
      inputs = [self.whole(levels, dtype), self.hold(scale)]
      if zero:
        whole = self.array(inputs[0]).dtype
        inputs.append(self.hold(np.zeros(np.shape(scale), whole)))
      key = ('DequantizeLinear', *inputs)
      if key not in self._known:
        after, self.nodes = self.nodes, self._first
        self._known[key] = self.node('DequantizeLinear', *inputs,
                                     axis=axis if np.ndim(scale) else None)
        self.nodes = after
      name = self._known[key]
    self.kernels[name] = array, levels
    return name

  def whole(self, levels, dtype=None):
    """The name of whole numbers of a dtype, or in the narrowest type that holds them."""
    if dtype is None and levels.narrow:
      return self.hold(levels.whole.astype(np.int8), 'int4')
    if dtype != np.int32:
      dtype = np.int8 if np.abs(levels.whole).max(initial=0) < 128 else np.int16
    return self.hold(levels.whole.astype(dtype))

  def array(self, name):
    """The array of a constant's name."""
    return numpy_helper.to_array(self.constants[name])

  def body(self, inputs, outputs):
    """The GraphProto of the nodes so far, for an operator that repeats them."""
    kept, _ = needed(self.nodes, [name for name, _ in outputs])
    info = lambda given: [helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None) for name, dtype in given]
    return helper.make_graph(kept, 'body', info(inputs), info(outputs))

  def model(self, name, inputs, outputs, metadata):
    """The ModelProto; inputs and outputs are {name: (dtype, shape)}, free sizes as words."""
    self.nodes, used = needed(self._first + self.nodes, outputs)
    self.constants = {name: one for name, one in self.constants.items() if name in used}
    info = lambda given: [helper.make_tensor_value_info(
        n, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
        for n, (dtype, shape) in given.items()]
    graph = helper.make_graph(self.nodes, name, info(inputs), info(outputs),
                              list(self.constants.values()))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)],
                             ir_version=IR_VERSION, producer_name='lepton_jax')
    helper.set_model_props(made, metadata)
    return made


def needed(nodes, outputs):
  """(the nodes that outputs need, all names that those read)."""
  used, kept = set(outputs), []
  for node in reversed(nodes):
    if used & set(node.output):
      kept.append(node)
      used |= reads(node)
  return kept[::-1], used


def reads(node):
  """All names that a node reads, in the bodies that it repeats as well."""
  inner = [part for attribute in node.attribute for part in attribute.g.node]
  return set(node.input).union(*map(reads, inner))
