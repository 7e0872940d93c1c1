"""The C++ files of this folder, compiled once for this machine and opened.

They call oneDNN, which comes as a wheel for Linux on x86-64. Where oneDNN, a C++ compiler or the
platform is missing, `status` says so and layers take XLA's own forms.
"""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import typing

from lepton_jax import machine

FOLDER = pathlib.Path(__file__).parent
RUNTIME, HEADERS = 'onednn-cpu-gomp', 'onednn-devel-cpu-gomp'
SONAME = 'libdnnl.so.3'
FLAGS = ('-std=c++17', '-O2', '-ftree-vectorize', '-march=native', '-fPIC', '-fopenmp', '-w')
_opening = threading.Lock()


class Missing(Exception):
  """What the library needs and this machine lacks; the message says how to get it."""


class Library(typing.NamedTuple):
  """The opened library.

  Attributes:
    functions: the C++ functions by name.
    digest: of all that it was made from.
    version: of oneDNN.
  """
  functions: ctypes.CDLL
  digest: str
  version: str


def opened():
  """The Library, compiled if need be; raises Missing."""
  found = status()
  if isinstance(found, Missing):
    raise found
  return found


def status():
  """The Library, or what is Missing."""
  with _opening:
    return _status()


@functools.cache
def _status():
  try:
    return _open()
  except Missing as missing:
    return missing
  except (OSError, RuntimeError, importlib.metadata.PackageNotFoundError) as error:
    return Missing(f'the library of CPU layers cannot be made ({error})')


def _open():
  if sys.platform != 'linux' or platform.machine() not in ('x86_64', 'AMD64'):
    raise Missing('oneDNN is used on Linux with an x86-64 processor')
  runtime, headers = (_installed(name) for name in (RUNTIME, HEADERS))
  digest, onednn = _digest(runtime, headers), _file(runtime, SONAME)
  path = _built(digest, headers, onednn)
  # Found by its name from here on, so that what is compiled does not depend on where it lies.
  ctypes.CDLL(str(onednn))
  try:
    functions = ctypes.CDLL(str(path))
  except OSError:  # it is damaged
    path.unlink(missing_ok=True)
    functions = ctypes.CDLL(str(_built(digest, headers, onednn)))
  version = (ctypes.c_int * 3)()
  functions.onednn_version(version)
  return Library(functions, digest, '.'.join(map(str, version)))


def _installed(name):
  try:
    return importlib.metadata.distribution(name)
  except importlib.metadata.PackageNotFoundError:
    raise Missing(f'{name} would make them faster (pip install -r requirements.txt)') from None


def _file(distribution, name):
  found = [file for file in distribution.files or () if file.name == name]
  if not found:
    raise Missing(f'{distribution.name} has no file {name}; install it again')
  return pathlib.Path(found[0].locate()).resolve()


def _digest(runtime, headers):
  """Of the C++ files and all that what they are compiled to depends on."""
  digest = hashlib.sha256()
  for file in (*sorted(FOLDER.glob('*.h')), *sorted(FOLDER.glob('*.cc'))):
    digest.update(file.read_bytes())
  versions = (importlib.metadata.version('jaxlib'), runtime.version, headers.version)
  for fact in (*versions, os.environ.get('CXX', ''), _processor(), *FLAGS):
    digest.update(fact.encode())
  return digest.hexdigest()[:16]


def _built(digest, headers, onednn):
  """The path of the compiled library in the user's cache; compiled if it is not there."""
  path = machine.cache_folder() / 'native' / f'{digest}.so'
  if path.exists():
    return path
  # Of GNU's compiler: it shares its OpenMP with oneDNN, which is held to one thread by it.
  compiler = os.environ.get('CXX') or shutil.which('g++')
  if not compiler:
    raise Missing('a C++ compiler would make them faster (apt-get install g++)')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix('.lock').open('a') as lock:
      with contextlib.suppress(OSError):  # not every network disk has locks
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes of a machine one compiles
      if not path.exists():
        _make(path, compiler, headers, onednn)
      pathlib.Path(lock.name).unlink(missing_ok=True)
  except OSError as error:
    raise Missing(f'{path.parent} cannot be written ({error})') from error
  return path


def _make(path, compiler, headers, onednn):
  message = f'compiling the CPU layers for this machine, once, into {path}'
  print(message, file=sys.stderr, flush=True)
  import jax
  include = _file(headers, 'dnnl.hpp').parent
  with tempfile.TemporaryDirectory(dir=path.parent) as folder:
    includes = (include, include.parents[1], jax.ffi.include_dir())
    _compile(compiler, pathlib.Path(folder), includes, onednn)
    os.replace(pathlib.Path(folder) / 'library.so', path)  # whole or not at all


def _compile(compiler, folder, includes, onednn):
  """Makes folder/library.so, each file in a process of its own."""
  flags = [*compiler.split(), *FLAGS, *(f'-I{include}' for include in includes)]
  try:
    jobs = [_start([*flags, '-c', str(file), '-o', str(folder / f'{file.stem}.o')])
            for file in FOLDER.glob('*.cc')]
  except OSError as error:
    raise Missing(f'the C++ compiler {compiler} does not start ({error})') from error
  told = [job.communicate()[0] for job in jobs]
  if any(job.returncode for job in jobs):
    raise _refused(compiler, ''.join(told))
  objects = map(str, folder.glob('*.o'))
  link = [*flags, '-shared', '-o', str(folder / 'library.so'), *objects, str(onednn)]
  done = subprocess.run(link, capture_output=True, text=True)
  if done.returncode:
    raise _refused(compiler, done.stderr)


def _refused(compiler, told):
  """A Missing that repeats the compiler's first error; the rest is printed once."""
  print(told[-4000:], file=sys.stderr, flush=True)
  lines = [line.strip() for line in told.splitlines() if line.strip()]
  first = next((line for line in lines if 'error' in line.lower()), lines[0] if lines else '')
  return Missing(f'{compiler} could not compile them{": " * bool(first)}{first[:200]}')


def _start(command):
  return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _processor():
  """What -march=native depends on: a folder of a user may be shared by unlike machines."""
  with open('/proc/cpuinfo') as facts:
    lines = [line for line in facts if line.startswith(('model name', 'flags'))]
  return ''.join(lines[:2])
