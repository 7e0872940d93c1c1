"""Names to plain functions, found without importing them.

A registry reads the decorators in its package's source, so `--help` can list every model without
importing flax, and a new model is one new file. The module is imported when its function is asked
for.
"""

import ast
import difflib
import importlib
import pathlib
import textwrap
import threading

from lepton_jax.errors import UserError

WIDTH = 96  # of a list of names: absl indents what a flag's parser says


def unknown(kind, name, choices):
  """The words for a name that is not among `choices`.

  The first line has the name and the nearest choice, lines of their own list all of them.
  """
  close = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.5)
  hint = f"; did you mean '{close[0]}'?" if close else ''
  allowed = textwrap.fill(f'Allowed: {", ".join(choices)}', WIDTH, initial_indent='  ',
                          subsequent_indent='    ', break_long_words=False, break_on_hyphens=False)
  return f'unknown {kind} {name!r}{hint}\n{allowed}'


# Python's own parser is not safe in two threads at once (3.11: "AST constructor recursion depth
# mismatch").
PARSING = threading.Lock()


class Registry:
  """Functions of one kind, registered by their own names with `@KIND.register`.

  `symbol` is the variable that holds the registry: sources are searched for decorators of that
  name. `package` is a package or a module below `lepton_jax`.
  """

  def __init__(self, kind, symbol, package):
    self.kind, self._symbol, self._package = kind, symbol, package
    self._functions, self._modules = {}, None

  def register(self, function):
    """Adds a function under its own name; raises ValueError if the name is taken by another."""
    name = function.__name__.rstrip('_')  # 'global_' and 'set_' are names that Python has
    known = self._functions.get(name)
    place = function.__module__, function.__qualname__
    if known is not None and (known.__module__, known.__qualname__) != place:
      raise ValueError(f'{self.kind} {name!r} is already registered by {known.__module__}')
    self._functions[name] = function
    return function

  def names(self):
    """All registered names, sorted."""
    return tuple(sorted(self._found().keys() | self._functions.keys()))

  def check(self, name):
    """Raises UserError, with the nearest name and the whole list, unless `name` is registered."""
    if name not in self.names():
      raise UserError(unknown(self.kind, name, self.names()))

  def get(self, name):
    """The function registered as `name`; raises UserError for an unknown one."""
    if name not in self._functions:
      self.check(name)
      importlib.import_module(self._found()[name])
    return self._functions[name]

  def _found(self):
    """Name -> module, by reading the decorators in the package's source."""
    with PARSING:
      return self._read()

  def _read(self):
    if self._modules is None:
      here = pathlib.Path(__file__).parent / self._package.replace('.', '/')
      files = sorted(here.rglob('*.py')) if here.is_dir() else [here.with_suffix('.py')]
      modules = {}
      for file in files:
        path = file.relative_to(pathlib.Path(__file__).parent).with_suffix('')
        module = '.'.join(('lepton_jax', *path.parts))
        for node in ast.parse(file.read_text()).body:
          if isinstance(node, ast.FunctionDef) and any(map(self._is_mark, node.decorator_list)):
            name = node.name.rstrip('_')
            if name in modules:
              raise ValueError(f'{self.kind} {name!r} is registered by both {modules[name]} and '
                               f'{module}')
            modules[name] = module
      self._modules = modules
    return self._modules

  def _is_mark(self, decorator):
    return isinstance(decorator, ast.Attribute) and decorator.attr == 'register' and (
        getattr(decorator.value, 'id', None) == self._symbol)


class Either:
  """The names of a registry and more, a tuple or another registry, for an option that takes all."""

  def __init__(self, registry, more):
    self._registry, self._more = registry, more

  def names(self):
    more = self._more if isinstance(self._more, tuple) else self._more.names()
    return tuple(sorted((*self._registry.names(), *more)))


MODELS = Registry('model', 'MODELS', 'models')
DATASETS = Registry('data set', 'DATASETS', 'data')
TOKENIZERS = Registry('tokenizer', 'TOKENIZERS', 'data')
OPTIMIZERS = Registry('optimizer', 'OPTIMIZERS', 'train.optim')
SCHEDULES = Registry('schedule', 'SCHEDULES', 'train.schedules')
LOSSES = Registry('loss', 'LOSSES', 'losses')
PENALTIES = Registry('penalty', 'PENALTIES', 'regularize')
SCORES = Registry('pruning score', 'SCORES', 'compress.prune')
CHANNEL_SCORES = Registry('channel score', 'CHANNEL_SCORES', 'compress.prune')
ALLOCATIONS = Registry('allocation', 'ALLOCATIONS', 'compress.prune')
PRUNE_SCHEDULES = Registry('pruning schedule', 'PRUNE_SCHEDULES', 'compress.prune')
WEIGHT_QUANTIZERS = Registry('weight quantizer', 'WEIGHT_QUANTIZERS', 'compress.quantize')
INPUT_QUANTIZERS = Registry('activation quantizer', 'INPUT_QUANTIZERS', 'compress.quantize')
