"""Prepared data in an object store: copied once to each machine."""

import hashlib
import os
import pathlib
import shutil
import tempfile

from lepton_jax.errors import UserError


def copied(url, name, cache_root):
  """The folder on this machine that has data set `name` of the folder `url`, copied if need be.

  A set that is prepared anew under the same version is not seen. Raises UserError where there is
  none, or nothing that reads such a store is installed.
  """
  import fsspec
  place = hashlib.sha256(url.encode()).hexdigest()[:10]
  root = pathlib.Path(cache_root) / 'remote' / place
  if (root / name).is_dir():
    return root
  try:
    store, inside = fsspec.core.url_to_fs(f'{url.rstrip("/")}/{name}')
  except (ImportError, ValueError) as error:
    raise UserError(f'--data_dir={url}: {error}; for gs:// pip install gcsfs') from None
  if not store.isdir(inside):
    raise UserError(f'--data_dir={url}: there is no {name} in it')
  (root / name).parent.mkdir(parents=True, exist_ok=True)
  draft = pathlib.Path(tempfile.mkdtemp(prefix='.', dir=root))
  try:
    store.get(inside, str(draft / 'set'), recursive=True)
    os.rename(draft / 'set', root / name)
  except OSError:
    if not (root / name).is_dir():  # else another process was faster
      raise
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  return root
