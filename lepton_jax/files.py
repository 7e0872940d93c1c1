"""Files that runs write and others read, on a local disk or in an object store such as gs://."""

import importlib.util
import json

from etils import epath
from fsspec import config as store_config

from lepton_jax.errors import UserError

# Other processes write into the same folders: what was listed once must be listed anew.
for store in ('gs', 'gcs'):
  store_config.conf.setdefault(store, {}).setdefault('use_listings_cache', False)


def read_json(path):
  """What a JSON file holds, None where there is none; raises UserError where it is damaged."""
  try:
    return json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError):
    return None
  except ValueError:
    raise UserError(
        f'{path} is damaged; the run that made it writes it again after its removal') from None


# What reads and writes them, a package of its own for each.
STORES = {'gs': 'gcsfs', 's3': 's3fs', 'az': 'adlfs'}


def check_store(name):
  """Raises UserError for a folder in an object store that is unknown or that nothing here reads."""
  kind, found, _ = name.partition('://')
  if found and kind not in STORES:
    raise UserError(f'{name}: allowed are local folders and {"://, ".join(STORES)}://')
  if found and importlib.util.find_spec(STORES[kind]) is None:
    raise UserError(f'{name}: {STORES[kind]}, which reads it, is not installed: '
                    f'pip install {STORES[kind]}')


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
