"""Decoded arrays on disk: written once, atomically, and mapped into memory afterwards."""

import fcntl
import json
import os
import pathlib
import shutil
import tempfile

import numpy as np

from lepton_jax.data.source import Source


def cached(root, key, make):
  """The Source kept under `key`, made by `make()` if it is absent or damaged.

  `key` names the data set, its version and everything that shaped the arrays; a folder of that name
  below `root` holds plain .npy files and source.json, written last in a temporary folder that is
  then renamed.
  """
  folder = pathlib.Path(root) / key
  found = _load(folder)
  if found is not None:
    return found
  folder.parent.mkdir(parents=True, exist_ok=True)
  with (folder.parent / f'.{key}.lock').open('a') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes of a machine one decodes
    found = _load(folder) or _made(folder, make)
    pathlib.Path(lock.name).unlink(missing_ok=True)
  return found


def _made(folder, make):
  source = make()
  draft = pathlib.Path(tempfile.mkdtemp(prefix=f'.{folder.name}-', dir=folder.parent))
  try:
    sizes = {}
    for split, (inputs, label) in source.splits.items():
      for part, array in (('inputs', inputs), ('label', label)):
        np.save(draft / f'{split}-{part}.npy', _pack(array), allow_pickle=False)
        sizes[f'{split}-{part}.npy'] = (draft / f'{split}-{part}.npy').stat().st_size
    meta = dict(version=source.version, splits=list(source.splits), classes=source.classes,
                columns=source.columns, sizes=sizes,
                text=source.splits['train'][0].dtype == object)
    (draft / 'source.json').write_text(json.dumps(meta))
    if folder.exists():  # damaged, or finished by another process meanwhile
      if (found := _load(folder)) is not None:
        return found
      shutil.rmtree(folder)
    try:
      os.rename(draft, folder)
    except OSError:
      if _load(folder) is None:
        raise
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  return _load(folder)


def _load(folder):
  """The Source in a folder, or None where it is missing or not whole."""
  try:
    meta = json.loads((folder / 'source.json').read_text())
    if any((folder / name).stat().st_size != size for name, size in meta['sizes'].items()):
      return None
    load = lambda name: np.load(folder / name, mmap_mode='r', allow_pickle=False)
    splits = {s: tuple(load(f'{s}-{part}.npy') for part in ('inputs', 'label'))
              for s in meta['splits']}
    if meta['text']:
      splits = {s: (_unpack(inputs), label) for s, (inputs, label) in splits.items()}
    return Source(meta['version'], splits, tuple(meta['classes']), tuple(meta['columns']))
  except (OSError, ValueError, KeyError):
    return None


def _pack(array):
  """Texts as one run of UTF-8 bytes with zeros between them; other arrays as they are."""
  if array.dtype != object:
    return array
  return np.frombuffer('\0'.join(t.replace('\0', ' ') for t in array).encode(), np.uint8)


def _unpack(content):
  return np.array(content.tobytes().decode().split('\0'), object)
