"""A program of JAX as nodes of ONNX; what has no form there is an error that names its line."""

import jax
import numpy as np
from jax.extend import core

# What these have is registered on import.
from lepton_jax.deploy.onnx import elementwise, products, shapes, slices  # noqa: F401
from lepton_jax.deploy.onnx.graph import Value, constant
from lepton_jax.deploy.onnx.operations import OPERATIONS, operation, result
from lepton_jax.errors import UserError

FUNCTIONS = ('jit', 'pjit', 'closed_call', 'custom_jvp_call', 'custom_vjp_call', 'remat2',
             'checkpoint', 'composite', 'scan')


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
  if name in elementwise.ELEMENTWISE:
    found = equation.primitive.bind(*np.broadcast_arrays(*arrays), **equation.params)
  elif name in products.REDUCE and name != 'reduce_prod':
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
