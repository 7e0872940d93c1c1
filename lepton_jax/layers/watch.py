"""Replacing or watching what layers read, without a line in them.

Flax intercepts calls; this also lets a layer ask whether its calls are intercepted, because one whose
compute is fused into another's must then take the long way, through the call.
"""

import contextlib
import contextvars

import flax.linen as nn
import jax.numpy as jnp

_SITES = contextvars.ContextVar('sites', default=frozenset())


@contextlib.contextmanager
def inputs(sites, change):
  """A context in which `change(module, path, x)` replaces what the layers in `sites` read, where that is floating point; path is 'block1/conv1'.

  A table of vectors reads words when called, but states when it serves as the output layer.
  """
  def interceptor(next_function, args, kwargs, context):
    path = '/'.join(context.module.path)
    if context.method_name in ('__call__', 'attend') and args and path in sites and jnp.issubdtype(args[0].dtype, jnp.floating):
      args = (change(context.module, path, args[0]), *args[1:])
    return next_function(*args, **kwargs)

  token = _SITES.set(_SITES.get() | frozenset(sites))
  try:
    with nn.intercept_methods(interceptor):
      yield
  finally:
    _SITES.reset(token)


def is_watched(path):
  """Whether the calls of the layer at `path`, a tuple of names, are intercepted here."""
  return '/'.join(path) in _SITES.get()
