"""coder.cc, compiled once for this machine and called; without a compiler there is no library."""

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile

import numpy as np

from lepton_jax import machine
from lepton_jax.errors import UserError

SOURCE = pathlib.Path(__file__).parent / 'coder.cc'
FLAGS = ('-std=c++17', '-O2', '-fPIC', '-shared')


@functools.cache
def library():
  """The compiled functions, or None where nothing compiles or opens them."""
  compiler = os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++')
  if not compiler:
    return None
  made_of = (SOURCE.read_text(), platform.machine(), platform.system(), compiler)
  digest = hashlib.sha256('\n'.join(made_of).encode()).hexdigest()[:16]
  path = machine.cache_folder() / 'native' / f'coder-{digest}.so'
  try:
    if not path.exists():
      path.parent.mkdir(parents=True, exist_ok=True)
      with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = pathlib.Path(folder) / 'coder.so'
        subprocess.run([*compiler.split(), *FLAGS, str(SOURCE), '-o', str(made)], check=True,
                       capture_output=True)
        os.replace(made, path)  # whole or not at all
    functions = ctypes.CDLL(str(path))
  except (OSError, subprocess.SubprocessError):
    return None
  functions.lepton_encode.restype = ctypes.c_int64
  return functions


def encode(functions, matrices, tables):
  levels, shapes = _flat(matrices), _shapes([matrix.shape for matrix in matrices])
  room = 64 + 5 * levels.size
  out = np.empty(room, np.uint8)
  size = functions.lepton_encode(
      _pointer(levels), _pointer(shapes), ctypes.c_int64(len(matrices)), _pointer(out),
      ctypes.c_int64(room), *map(_pointer, tables))
  if size > room:
    raise ValueError(f'{size} bytes for {levels.size} levels')
  return out[:size].tobytes()


def decode(functions, data, shapes, tables):
  sizes = [rows * columns for rows, columns in shapes]
  levels = np.zeros(max(sum(sizes), 1), np.int32)
  given, all_shapes = np.frombuffer(data, np.uint8).copy(), _shapes(shapes)
  if not functions.lepton_decode(
      _pointer(given), ctypes.c_int64(given.size), _pointer(all_shapes),
      ctypes.c_int64(len(shapes)), _pointer(levels), *map(_pointer, tables)):
    raise UserError('the packed file is damaged: a level of more than 16 bits')
  parts = np.split(levels[:sum(sizes)], np.cumsum(sizes)[:-1])
  return [part.reshape(shape) for part, shape in zip(parts, shapes)]


def _flat(matrices):
  """A copy, for the coder writes what it has coded."""
  return np.concatenate([np.zeros(0, np.int32), *(m.astype(np.int32).ravel() for m in matrices)])


def _shapes(shapes):
  return np.array(shapes, np.int64).reshape(-1, 2)


def _pointer(array):
  return array.ctypes.data_as(ctypes.c_void_p)
