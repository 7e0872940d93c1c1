"""Operations on entry after entry, in ONNX."""

import numpy as np
from jax import lax

from lepton_jax.deploy.onnx.graph import constant
from lepton_jax.deploy.onnx.operations import NUMBERS, operation, result

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
