"""The one place that says which form of a layer's compute runs.

On a CPU convolutions and matrix products run by oneDNN where it is there, pools and sums over
positions in forms of our own. Everywhere else, and in programs that leave this machine, XLA's plain
forms run. For other runtimes a network is traced as a graph, in which what they have an operator
for is one `operator`.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp

from lepton_jax.errors import UserError
from lepton_jax.layers.native import library

# A part of the key under which JAX keeps what it traced: a function traced by one choice is traced
# again by another.
_choice = jax.make_user_context('auto')


LEAVING = ('portable', 'graph')  # choices for programs that leave this machine


@contextlib.contextmanager
def using(choice):
  """A context for tracing programs by a choice of --convolution, or 'portable' ones, or a 'graph'.

  A program that leaves this machine does so inside as well.
  """
  with _choice(_choice.value if _choice.value in LEAVING else choice):
    yield


def as_graph():
  """Whether a graph of operators is traced, for other runtimes."""
  return _choice.value == 'graph'


def operator(name, function, *arrays, **attributes):
  """function(*arrays), which a graph shows as one operation `lepton.name` with its attributes."""
  whole = jax.lax.composite(lambda *given, **_: function(*given), f'lepton.{name}', version=1)
  return whole(*arrays, **attributes)


def export(function, *arguments, platforms=('cpu', 'cuda', 'tpu')):
  """jax.export's Exported of a function of arrays (or shapes), for machines without the library."""
  with using('portable'):
    return jax.export.export(jax.jit(function), platforms=platforms)(*arguments)


def check(choice):
  """Raises UserError for 'onednn' where it cannot run."""
  if choice != 'onednn':
    return
  if jax.default_backend() != 'cpu':
    raise UserError(f'--convolution=onednn: it runs on a CPU, and this is a '
                    f'{jax.default_backend()}')
  if isinstance(missing := library.status(), library.Missing):
    raise UserError(f'--convolution=onednn: not on this machine; {missing}')


def own_forms():
  """Whether layers use the forms made for a CPU."""
  return jax.default_backend() == 'cpu' and _choice.value not in LEAVING


def native(*arrays, half=True):
  """Whether the library computes with such arrays: all float32, or with `half` all bfloat16."""
  if not own_forms() or _choice.value == 'xla' or isinstance(library.status(), library.Missing):
    return False
  dtypes = {jnp.dtype(array.dtype).name for array in arrays}
  fits = dtypes == {'float32'} or half and dtypes == {'bfloat16'} and has_bfloat16()
  return fits and all(array.size for array in arrays)


@functools.cache
def has_bfloat16():
  """Whether this processor multiplies bfloat16 numbers itself (AVX512_BF16 or AMX)."""
  return bool(library.opened().functions.has_bfloat16())


def describe(choice, dtype):
  """What computes convolutions and products of such numbers: 'oneDNN 3.2.0', or 'XLA'.

  Where the library is missing it says what would be faster.
  """
  if jax.default_backend() != 'cpu' or choice == 'xla':
    return 'XLA'
  found = library.status()
  if isinstance(found, library.Missing):
    return f'XLA; {found}'
  if by_library(choice, dtype):
    return f'oneDNN {found.version}'
  return f'XLA; oneDNN has no {dtype} on this processor'


def by_library(choice, dtype):
  """Whether the library computes convolutions and products of such numbers, by --convolution."""
  with _choice(choice):
    return native(jax.ShapeDtypeStruct((1,), dtype))
