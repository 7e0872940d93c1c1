"""Replacing or watching what layers read, without a line in them.

Flax intercepts calls. A layer whose compute is fused into another's is not called, so that other
asks here for what would have happened to the input.
"""

import contextlib
import contextvars
import functools
import typing

import flax.linen as nn
import jax.numpy as jnp

_CHANGES = contextvars.ContextVar('changes', default=())


@contextlib.contextmanager
def inputs(sites, change, pure=False, grid=None, answered=None):
  """A context in which `change(module, path, x)` replaces what layers read where it is a float.

  Sites are paths such as 'block1/conv1'. A `pure` change does not use the module, which is None
  where no call is intercepted. `grid(path)` tells the levels of a change that rounds: their scale,
  the level of zero and the highest one. A table of vectors reads words when called, but states when
  it serves as the output layer. `answered(module, path, y)` sees what layers make of such inputs.
  """
  def interceptor(next_function, args, kwargs, context):
    path = '/'.join(context.module.path)
    called = context.method_name in ('__call__', 'attend') and args and path in sites
    if not (called and jnp.issubdtype(args[0].dtype, jnp.floating)):
      return next_function(*args, **kwargs)
    args = (change(context.module, path, args[0]), *args[1:])
    result = next_function(*args, **kwargs)
    if answered is not None:
      answered(context.module, path, result)
    return result

  token = _CHANGES.set((*_CHANGES.get(), (frozenset(sites), change, pure, grid)))
  try:
    with nn.intercept_methods(interceptor):
      yield
  finally:
    _CHANGES.reset(token)


def value(path, x, module=None):
  """x, a value inside a layer that has the `path` of a site, as changes make it.

  They get the module where it is called; `changes` tells whether they can do without.
  """
  name = '/'.join(path)
  for sites, change, _, _ in reversed(_CHANGES.get()):  # the innermost context sees x first
    if name in sites:
      x = change(module, name, x)
  return x


@contextlib.contextmanager
def answers(paths):
  """A context that yields a dictionary and puts into it, by path, what layers at `paths` answer.

  Of a layer that is called twice it is the last answer. Of a module that `scans` it is the states
  of all steps, without what is carried on; layers inside it are left out, for they answer once a
  step, or are not called at all where it is fused.
  """
  found, inside = {}, False

  def look(next_function, args, kwargs, context):
    nonlocal inside
    path = '/'.join(context.module.path)
    if inside or path not in paths or context.method_name not in ('__call__', 'attend'):
      return next_function(*args, **kwargs)
    inside = getattr(context.module, 'scans', False)
    result = next_function(*args, **kwargs)
    inside = False
    found[path] = result[0] if isinstance(result, tuple) else result
    return result

  with nn.intercept_methods(look):
    yield found


class Change(typing.NamedTuple):
  """What happens to a layer's inputs: x -> x, and the levels of one that rounds, or None."""
  read: typing.Callable
  grid: tuple | None


def changes(path):
  """The Change of inputs of the layer at `path`, a tuple of names; None where there is none.

  Raises LookupError where a change needs the module: then the layer has to be called.
  """
  name = '/'.join(path)
  found = [entry[1:] for entry in _CHANGES.get() if name in entry[0]]
  if not all(pure for _, pure, _ in found):
    raise LookupError(name)

  known = len(found) == 1 and found[0][2] is not None
  read = functools.partial(value, path)
  return Change(read, found[0][2](name) if known else None) if found else None
