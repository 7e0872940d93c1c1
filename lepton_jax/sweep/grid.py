"""The trials of a sweep: every combination of the values that flags list."""

import itertools

from lepton_jax import config as config_lib
from lepton_jax.errors import UserError


def product(base, lists):
  """Configurations of every combination of `lists` ({field: values}) on top of `base`, the seed changing fastest.

  Raises UserError for a combination that is no valid configuration. Equal trials are listed once.
  """
  names = sorted(lists, key=lambda name: name == 'seed')
  found = {}
  for values in itertools.product(*(lists[name] for name in names)):
    config = base.replace(**dict(zip(names, values))).check()
    found.setdefault(config.name(), config)
  if not found:
    raise UserError('a flag lists no value')
  return list(found.values())


def swept(configs):
  """Names of the fields that differ between trials, in the order of the configuration."""
  flats = [config.flat() for config in configs]
  return [name for name in config_lib.FIELDS if len({flat[name] for flat in flats}) > 1]


def settings(configs):
  """{name of a setting: its trials}: trials that differ by the seed alone belong together."""
  found = {}
  for config in configs:
    found.setdefault(config.replace(seed=0).name(), []).append(config)
  return found
