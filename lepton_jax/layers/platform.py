"""The one place that says which form of a layer's compute runs.

On a CPU convolutions and matrix products run by oneDNN where it is installed, pools and sums over
positions in forms of our own. Everywhere else, and in programs that leave this machine, XLA's plain
forms run.
"""

import contextlib
import contextvars
import functools

import jax
import jax.numpy as jnp

from lepton_jax.errors import UserError
from lepton_jax.layers.native import library

_choice = contextvars.ContextVar('choice', default='auto')


@contextlib.contextmanager
def using(choice):
  """A context for tracing programs by a choice of --convolution.

  'portable' makes programs for any machine. A portable program stays portable inside.
  """
  token = _choice.set('portable' if _choice.get() == 'portable' else choice)
  try:
    yield
  finally:
    _choice.reset(token)


def check(choice):
  """Raises UserError for 'onednn' where it cannot run."""
  if choice == 'onednn' and isinstance(missing := library.status(), library.Missing):
    raise UserError(f'--convolution=onednn: not on this machine; {missing}')


def own_forms():
  """Whether layers use the forms made for a CPU."""
  return jax.default_backend() == 'cpu' and _choice.get() != 'portable'


def native(*arrays, half=True):
  """Whether oneDNN computes with such arrays here: float32, and with `half` bfloat16 as well."""
  if not own_forms() or _choice.get() == 'xla' or isinstance(library.status(), library.Missing):
    return False
  dtypes = {jnp.dtype(array.dtype).name for array in arrays}
  fits = dtypes == {'float32'} or half and dtypes == {'bfloat16'} and has_bfloat16()
  return fits and all(array.size for array in arrays)


@functools.cache
def has_bfloat16():
  """Whether oneDNN computes in bfloat16 on this processor."""
  return bool(library.opened().functions.has_bfloat16())


def describe(choice):
  """What computes convolutions and products here.

  This is, for example, 'oneDNN 2023.2.0', or 'XLA' with a hint at what would be faster.
  """
  if jax.default_backend() != 'cpu' or choice == 'xla':
    return 'XLA'
  found = library.status()
  return f'XLA; {found}' if isinstance(found, library.Missing) else f'oneDNN {found.version}'
