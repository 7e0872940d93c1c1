"""A trained network as StableHLO: one file that JAX reads without a line of this project."""

import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np

from lepton_jax.deploy import traced as traced_lib
from lepton_jax.errors import UserError
from lepton_jax.layers import platform

# What a user of the file writes, and what checks it here: nothing but JAX.
READER = '''
import sys
import jax, numpy as np
program = jax.export.deserialize(open(sys.argv[1], 'rb').read())
inputs = np.load(sys.argv[2], allow_pickle=False)
states = [np.zeros((len(inputs), *one.shape[1:]), one.dtype) for one in program.in_avals[1:]]
found = jax.jit(program.call)(inputs, *states)
np.save(sys.argv[3], found[0])
'''


def export(trained):
  """The bytes of a serialised jax.export.Exported for CPU, CUDA and TPU.

  It takes raw inputs and, of running text, states, and returns the outputs and new states, as a
  tuple; batch size and the length of texts are free.
  """
  traced = traced_lib.trace(trained)
  shapes = traced_lib.shapes(traced.inputs)
  weights = jax.tree.map(jax.numpy.asarray, traced.weights)
  exported = platform.export(lambda *given: traced.run(weights, *given), *shapes)
  return exported.serialize()


def predict(path, inputs):
  """Outputs for raw inputs by a process that imports no module of this project; states begin empty.
  """
  with tempfile.TemporaryDirectory() as place:
    place = pathlib.Path(place)
    np.save(place / 'given.npy', inputs)
    done = subprocess.run([sys.executable, '-I', '-c', READER, str(path), place / 'given.npy',
                           place / 'found.npy'], capture_output=True, text=True)
    if done.returncode:
      raise UserError(f'the StableHLO program does not run: {done.stderr.strip()[-500:]}')
    return np.load(place / 'found.npy', allow_pickle=False)
