"""Files for other runtimes, each verified before it is there."""

import contextlib
import functools
import json
import pathlib

import numpy as np

from lepton_jax import config as config_lib
from lepton_jax import files, layer_facts, metrics, trees
from lepton_jax.deploy import pack, runtime, stablehlo
from lepton_jax.deploy import traced as traced_lib
from lepton_jax.errors import UserError

FORMATS = ('onnx', 'stablehlo', 'lepton')
BATCHES = (1, 7)
SAMPLES = 1000
CLOSE = 1e-4  # of the largest output, where nothing is rounded
ALIKE = 0.99  # share of equal decisions where something is


class Unlike(Exception):
  """A file answers otherwise than the network that it was made of."""


def write(trained, format, path, int4=False):
  """Writes a file of a folder.Trained and compares what it answers on real samples.

  Returns what there is to say of the file, which is beside it as FILE.json too. Raises UserError,
  and leaves no file, where the answers differ.
  """
  path = pathlib.Path(path).expanduser()
  if path.suffix != f'.{format}':
    raise UserError(f'--output={path}: a file of --format={format} ends in .{format}')
  if int4 and format != 'onnx':
    raise UserError(f'--int4 is of --format=onnx, not of {format}')
  content, notes = made(trained, format, int4)
  draft = path.with_name(f'.{path.name}.draft.{format}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft.write_bytes(content)
    found = compare(trained, reader(format, draft), rounds(trained, format))
    found = dict(file=path.name, format=format, bytes=len(content), **found, **about(trained),
                 notes=notes)
    draft.replace(path)
    facts = json.dumps(found, indent=2) + '\n'
    files.write_atomically(path.with_name(f'{path.name}.json'), facts)
  except OSError as error:
    raise UserError(f'--output={path} cannot be written: {error.strerror or error}') from None
  except Unlike as error:
    told = ''.join(f' Note: {note}.' for note in notes)
    raise UserError(f'{error}; no file was written.{told}') from None
  finally:
    with contextlib.suppress(OSError):
      draft.unlink(missing_ok=True)
  return found


def about(trained):
  """What measuring the file elsewhere needs to know: its data, and the work of one example."""
  default, weights = config_lib.Config().flat(), trained.weights
  options = {name: value for name, value in trained.config.flat().items()
             if config_lib.FIELDS[name][0] in pack.KEPT and value != default[name]
             and name not in pack.ELSEWHERE}
  macs = layer_facts.macs(trained.network, weights, trained.data)
  return dict(options=options, measure=trained.data.measure, macs=sum(macs.values()),
              num_parameters=trees.count(weights['params']))


def made(trained, format, int4):
  """(bytes, notes) of a file."""
  if format == 'onnx':
    from lepton_jax.deploy.onnx import export
    return export.export(trained, int4)
  if format == 'stablehlo':
    return stablehlo.export(trained), []
  # Biases of 8 bits, as a recipe may have them, save bytes that only small files feel.
  return pack.pack(trained, number_bits=16), [
      'kernels that training did not put on levels are rounded to 8 bits']


def reader(format, path):
  """raw inputs -> outputs by the runtime of a file, in the target's units."""
  if format == 'stablehlo':  # by a process without this project
    return functools.partial(stablehlo.predict, path)
  return runtime.open_file(path).answer


def rounds(trained, format):
  """Whether answers may differ by more than the order of sums, as where levels are the next ones.
  """
  half = trained.config.architecture.dtype != 'float32'
  return format == 'lepton' or half or bool(trained.network.compression.sites)


def compare(trained, answer, rounded):
  """What `answer` makes of real samples, beside the network's own answers.

  Raises Unlike where they differ.
  """
  error = largest = 0.0
  for count in (*BATCHES, SAMPLES):
    inputs = traced_lib.samples(trained, count)
    own, other = traced_lib.reference(trained, inputs), answer(inputs)
    if own.shape != other.shape:
      raise Unlike(f'the exported network answers {list(other.shape)} for {len(inputs)} inputs, '
                   f'the trained one {list(own.shape)}')
    error = max(error, float(np.abs(own - other).max()))
    largest = max(largest, float(np.abs(own).max()))
  found = dict(largest_error=error, largest_output=largest, samples=len(inputs))
  regression = trained.network.objective.regression
  if not regression:
    one, two = (metrics.probabilities(outputs).argmax(-1) for outputs in (own, other))
    same = one == two
    if same.ndim == 2 and trained.data.vocabulary and not trained.data.stream:
      same = same[inputs > 0]  # of words, not of what comes after the last one
    found['same_decisions'] = float(np.mean(same))
  fits = error <= CLOSE * max(1.0, largest)
  if rounded and not regression:
    fits = found['same_decisions'] >= ALIKE
  if rounded and regression:
    fits = error <= (1 - ALIKE) * max(1e-6, np.ptp(own)) + CLOSE
  if not fits:
    told = ', '.join(f'{name.replace("_", " ")} {value:.4g}' for name, value in found.items())
    raise Unlike(f'the exported network answers otherwise than the trained one: {told}')
  return found
