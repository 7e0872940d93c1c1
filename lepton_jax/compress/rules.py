"""Values by layer, as flags give them: 'conv1=0.5;.*=0.9'."""

import re

from lepton_jax.errors import UserError


def parse(text, names, flag, value):
  """{name: value} of the names that a rule matches; the first rule that matches a name counts.

  Rules are 'regular expression=value', separated by ';'; `value` reads the text after the last '='
  and raises ValueError for what it does not allow. Raises UserError that names `flag` for a rule
  that cannot be read, or that matches no name at all.
  """
  found = {}
  for rule in filter(None, (part.strip() for part in text.split(';'))):
    pattern, equals, given = rule.rpartition('=')
    if not equals:
      raise UserError(f'--{flag}: the rule {rule!r} lacks a value; write path=value')
    try:
      matched = [name for name in names if re.search(pattern, name)]
    except re.error as error:
      raise UserError(f'--{flag}: {pattern!r} is not a regular expression: {error}') from None
    if not matched:
      raise UserError(f'--{flag}: {pattern!r} matches nothing. Paths: {", ".join(names)}')
    try:
      read = value(given)
    except ValueError as error:
      raise UserError(f'--{flag}: {rule!r}: {error}') from None
    found = dict.fromkeys(matched, read) | found
  return found
