"""Files that runs write and others read, on a local disk or in an object store such as gs://."""

import json

from etils import epath

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


def remote(path):
  """Whether a path is in an object store, whose objects are written as a whole or not at all."""
  return '://' in str(epath.Path(path))


def write_atomically(path, content):
  """Writes a file of text or bytes so that readers see all of it or none."""
  path = epath.Path(path)
  draft = path if remote(path) else path.parent / f'.{path.name}.draft'
  (draft.write_bytes if isinstance(content, bytes) else draft.write_text)(content)
  if draft != path:
    draft.replace(path)
