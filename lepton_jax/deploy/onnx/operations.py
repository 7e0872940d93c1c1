"""The table of operations: a function of the graph, an equation and its Values for each name."""

from lepton_jax.deploy.onnx.graph import Value

OPERATIONS = {}
NUMBERS = dict(float32=1, uint8=2, int8=3, int32=6, int64=7, bool=9, float16=10, float64=11)


def operation(*names):
  def register(function):
    OPERATIONS.update(dict.fromkeys(names, function))
    return function
  return register


def result(equation, name, index=0, **layout):
  aval = equation.outvars[index].aval
  return Value(aval.shape, aval.dtype, name, **layout)
