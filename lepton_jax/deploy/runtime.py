"""Files of trained networks as functions of raw inputs; of ONNX files without importing JAX."""

import json
import pathlib
import typing

import numpy as np

from lepton_jax.errors import UserError


class Running(typing.NamedTuple):
  """A file that answers.

  Attributes:
    path: of the file.
    format: 'onnx', 'stablehlo' or 'lepton'.
    answer: raw inputs [n, ...] -> outputs f32[n, ...], logits or values in the target's units.
    dtype, shape: of the raw inputs; the sizes that are free are None.
    facts: what was stored beside the file when it was exported, or {}.
  """
  path: pathlib.Path
  format: str
  answer: typing.Callable
  dtype: np.dtype
  shape: tuple
  facts: dict


def open_file(path):
  """The Running of a file; raises UserError where it is none of the formats or is damaged."""
  path = pathlib.Path(path).expanduser()
  known = dict(onnx=_onnx, stablehlo=_stablehlo, lepton=_lepton)
  kind = path.suffix[1:]
  if kind not in known:
    raise UserError(f'{path}: allowed are files that end in {", ".join("." + k for k in known)}')
  if not path.is_file():
    raise UserError(f'{path} is not there')
  return Running(path, kind, *known[kind](path), facts_of(path))


def facts_of(path):
  """What export wrote beside a file; {} where that is missing or damaged."""
  try:
    found = json.loads(pathlib.Path(f'{path}.json').read_text())
    return found if isinstance(found, dict) else {}
  except (OSError, ValueError):
    return {}


def metadata(path):
  """{name: text} of what an ONNX file says of itself."""
  return session(str(path)).get_modelmeta().custom_metadata_map


def session(content):
  """An ONNX Runtime session of a path or a file's bytes: one thread of a CPU."""
  import onnxruntime
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = options.inter_op_num_threads = 1
  options.log_severity_level = 3
  return onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])


def predict(running, inputs):
  """The first output of a session for raw inputs; states begin empty."""
  first, *states = running.get_inputs()
  given = {first.name: np.asarray(inputs)}
  given |= {one.name: np.zeros((len(inputs), *one.shape[1:]), np.float32) for one in states}
  return running.run(None, given)[0]


def fixed(shape):
  """A shape with None for the sizes that are free."""
  return tuple(size if isinstance(size, int) else None for size in shape)


def _onnx(path):
  try:
    running = session(str(path))
  except Exception as error:  # onnxruntime has a class of its own for each mishap
    raise UserError(f'{path} cannot be read: {str(error).splitlines()[0]}') from None
  first = running.get_inputs()[0]
  dtype = np.dtype(dict(float='float32').get(first.type[7:-1], first.type[7:-1]))
  return (lambda inputs: predict(running, inputs)), dtype, fixed(first.shape)


def _stablehlo(path):
  import jax
  try:
    program = jax.export.deserialize(path.read_bytes())
  except Exception as error:
    raise UserError(f'{path} cannot be read: {error}') from None
  call = jax.jit(program.call)
  first, *states = program.in_avals

  def answer(inputs):
    empty = [np.zeros((len(inputs), *one.shape[1:]), one.dtype) for one in states]
    return np.asarray(call(inputs, *empty)[0])

  return answer, np.dtype(first.dtype), fixed(first.shape)


def _lepton(path):
  import jax

  from lepton_jax.deploy import pack, traced
  try:
    found = traced.trace(pack.unpack(path.read_bytes()))
  except UserError as error:
    raise UserError(f'{path} cannot be read: {error}') from None
  call, weights = jax.jit(found.run), jax.tree.map(jax.numpy.asarray, found.weights)
  (dtype, shape), *states = found.inputs.values()

  def answer(inputs):
    empty = [np.zeros((len(inputs), *form[1:]), of) for of, form in states]
    return np.asarray(call(weights, inputs, *empty)[0])

  return answer, np.dtype(dtype), fixed(shape)
