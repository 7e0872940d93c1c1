"""The trials of a sweep: every combination of the values that flags list."""

import itertools

from lepton_jax.errors import UserError


def product(base, lists):
  """Configurations of every combination of `lists` ({field: values}) on top of `base`.

  The seed changes fastest. Raises UserError for a combination that is no valid configuration. Equal
  trials are listed once.
  """
  names = sorted(lists, key=lambda name: name == 'seed')
  found = {}
  for values in itertools.product(*(lists[name] for name in names)):
    config = base.replace(**dict(zip(names, values))).check()
    if found.setdefault(config.name(), config) != config:
      raise UserError(
          f'two trials have the name {config.name()}: change any flag that both share, such as '
          f'--split_seed')
  if not found:
    raise UserError('a flag lists no value')
  return list(found.values())
