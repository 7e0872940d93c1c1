"""Files that runs write and others read."""

import json

from lepton_jax.errors import UserError


def read_json(path):
  """What a JSON file holds, None where there is none; raises UserError where it is damaged."""
  try:
    return json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError):
    return None
  except ValueError:
    raise UserError(
        f'{path} is damaged; the run that made it writes it again after its removal') from None
