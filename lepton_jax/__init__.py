"""Compact networks in JAX: train them, compress them, and measure what that cost.

  import lepton_jax

  config = lepton_jax.Config().replace(model='lenet5', dataset='mnist5k', prune_sparsity=0.9)
  result = lepton_jax.train(config)
  network = lepton_jax.load(f'runs/{result["name"]}')
  classes = network.predict(images)

Config: all options of a run; `replace` takes them by the names of the flags.
train: trains a Config and returns what result.json of the run's folder holds.
load: the network of a run's folder, a lepton_jax.folder.Trained.
MODELS, DATASETS: what a Config can name. `@lepton_jax.MODELS.register` adds a function of one's
  own, before the Config is used and before the run is loaded.
UserError: what is raised for bad input; its words are for people.

Each is imported when it is first used, and JAX only to train or to load.
"""

import importlib
import sys
import types

_PLACES = dict(Config='config', DATASETS='registry', MODELS='registry', UserError='errors',
               load='folder')
__all__ = (*_PLACES, 'train')


def __getattr__(name):
  if name == 'train':
    return importlib.import_module('lepton_jax.train')
  if name in _PLACES:
    return getattr(importlib.import_module(f'lepton_jax.{_PLACES[name]}'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted({*globals(), *__all__})


class _CallableTrain(types.ModuleType):
  """The package of the training loop, which is also the function that trains."""

  def __call__(self, config, quiet=False):
    """Trains what a Config asks for and returns its result; see lepton_jax.run.train."""
    from lepton_jax import run
    return run.train(config, quiet)


class _Package(types.ModuleType):
  """This package. Python binds `train` to the package of that name as soon as a part imports it."""

  def __setattr__(self, name, value):
    if name == 'train' and isinstance(value, types.ModuleType):
      value.__class__ = _CallableTrain
    super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
