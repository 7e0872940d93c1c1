"""A folder of images: a sub-folder a class, below train/validation/test or directly."""

import hashlib

import numpy as np

from lepton_jax.data import cache, images
from lepton_jax.data.source import Source
from lepton_jax.errors import UserError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
SPLIT_FOLDERS = dict(train='train', validation='validation', val='validation', valid='validation',
                     test='test')


def read(folder, cache_root, image_size):
  """The Source of colour images uint8[n, image_size, image_size, 3] below `folder`.

  Raises UserError for a missing folder, no classes, a class without images, or a file that is not
  an image.
  """
  if not folder.is_dir():
    raise UserError(f'--dataset=folder:{folder}: no such folder')
  below = _folders(folder)
  split_folders = {SPLIT_FOLDERS[p.name]: p for p in below if p.name in SPLIT_FOLDERS}
  if split_folders and 'train' not in split_folders:
    found = ', '.join(sorted(p.name for p in split_folders.values()))
    raise UserError(f'--dataset=folder:{folder}: it has {found} but no train sub-folder')
  if not split_folders:
    split_folders = {'train': folder}
  classes = tuple(p.name for p in _folders(split_folders['train']))
  if len(classes) < 2:
    raise UserError(
        f'--dataset=folder:{folder}: found {len(classes)} class sub-folders in '
        f'{split_folders["train"]}; at least 2 are needed')
  files = {split: [(file, c) for c, name in enumerate(classes) for file in _images(root / name)]
           for split, root in split_folders.items()}
  for root in split_folders.values():
    strangers = {p.name for p in _folders(root)} - set(classes)
    if strangers:
      raise UserError(
          f'{root}: classes {", ".join(sorted(strangers))} are not in {split_folders["train"]}')
  filled = {label for _, label in files['train']}
  empty = [name for c, name in enumerate(classes) if c not in filled]
  if empty:
    raise UserError(f'{split_folders["train"] / empty[0]}: no image ({", ".join(SUFFIXES)})')
  sha = hashlib.sha256()
  for split, entries in files.items():
    for file, label in entries:
      status = file.stat()
      place = file.relative_to(folder)
      sha.update(f'{split} {place} {label} {status.st_size} {status.st_mtime_ns}\n'.encode())
  version = sha.hexdigest()[:12]

  def make():
    splits = {split: _decode(entries, image_size) for split, entries in files.items()}
    return Source(version, splits, classes)

  return cache.cached(cache_root, f'folder-{folder.name}-{version}-{image_size}', make)


def _folders(folder):
  return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith('.'))


def _images(folder):
  if not folder.is_dir():
    return []
  return sorted(p for p in folder.rglob('*') if p.suffix.lower() in SUFFIXES)


def _decode(entries, image_size):
  from PIL import Image
  pixels = np.empty((len(entries), image_size, image_size, 3), np.uint8)
  for i, (file, _) in enumerate(entries):
    try:
      with Image.open(file) as image:
        pixels[i] = images.resize(image.convert('RGB'), image_size)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
      raise UserError(f'{file} cannot be read as an image: {error}') from None
  return pixels, np.array([label for _, label in entries], np.int32)
