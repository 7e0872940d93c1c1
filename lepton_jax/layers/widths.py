"""Other widths for layers than their models ask for: what is left once channels are removed."""

import contextlib
import contextvars

_WIDTHS = contextvars.ContextVar('widths')


@contextlib.contextmanager
def using(widths):
  """A context in which layers have the output features of {'block1/conv1': 12}, by path."""
  token = _WIDTHS.set(widths)
  try:
    yield
  finally:
    _WIDTHS.reset(token)


def width(path, features):
  """Output features of the layer at `path`, a tuple of names, whose model asks for `features`.

  A layer that was factorised has a narrow one within, 'down', whose features are its rank.
  """
  return _WIDTHS.get({}).get('/'.join(path), features)
