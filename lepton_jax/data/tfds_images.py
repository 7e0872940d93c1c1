"""Image classification sets of tensorflow_datasets, read without TensorFlow."""

import os
import pathlib
import re

import numpy as np

from lepton_jax.data import cache, images, raw_files
from lepton_jax.data.dataset import Source
from lepton_jax.errors import UserError
from lepton_jax.registry import DATASETS, unknown


def read(name, data_dir, manual_dir, cache_root, image_size):
  """The Source of a TFDS set that lies prepared below `data_dir`, or raw in `manual_dir`.

  Looks on disk before TFDS is imported: TFDS itself would spend minutes trying to reach its servers.
  Raises UserError with the command that prepares the set when it is in neither place.
  """
  root = pathlib.Path(data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()
  folder = prepared(name, root)
  if folder is not None:
    version = folder.name
    key = f'{name.replace("/", "_").replace(":", "_")}-{version}-{image_size}'
    return cache.cached(cache_root, key, lambda: _decode(name, folder, version, image_size))
  if manual_dir and name in raw_files.READERS:
    return raw_files.read(name, pathlib.Path(manual_dir).expanduser(), cache_root, image_size)
  if not re.fullmatch(r'[a-z0-9_]+(/[A-Za-z0-9_.\-]+)*', name):
    raise UserError(unknown('data set', name, DATASETS.names()))
  raise UserError(missing(name, root))


def prepared(name, root):
  """The newest version's folder of a prepared set below `root`, or None. Versions are digits.digits.digits."""
  folders = [p for p in (root / name).glob('*') if re.fullmatch(r'\d+\.\d+\.\d+', p.name) and (p / 'features.json').is_file()]
  return max(folders, key=lambda p: tuple(map(int, p.name.split('.'))), default=None)


def missing(name, root):
  """What to tell someone whose set is not there."""
  known = (*DATASETS.names(), *raw_files.READERS)
  near = '' if name in known else ' ' + unknown('data set', name, known) + ' and any TFDS name.'
  raw = f', or put its raw files in a folder and pass --manual_dir ({raw_files.WANTED[name]})' if name in raw_files.READERS else ''
  return (f"data set '{name}' is not prepared in {root}.{near}\nPrepare it once, with a network and TensorFlow:\n"
          f'  pip install tensorflow-cpu && python -c "import tensorflow_datasets as tfds; '
          f"tfds.builder('{name}', data_dir='{root}', file_format='array_record').download_and_prepare()\"\n"
          f'then pass --data_dir={root}{raw}.')


def _decode(name, folder, version, image_size):
  import tensorflow_datasets as tfds
  builder = tfds.builder_from_directory(str(folder))
  features = builder.info.features
  image_key, label_key = builder.info.supervised_keys or ('image', 'label')
  wanted = {image_key: tfds.features.Image, label_key: tfds.features.ClassLabel}
  if not all(key in features and isinstance(features[key], kind) for key, kind in wanted.items()):
    raise UserError(f"data set '{name}' is not an image classification set; its features: {', '.join(features)}")
  splits = {}
  for split in ('train', 'validation', 'test'):
    if split in builder.info.splits:
      examples = builder.as_data_source(split=split)
      print(f'decoding {name} {split}: {len(examples):,} images, once', flush=True)
      pictures, label = [], np.empty(len(examples), np.int32)
      for start in range(0, len(examples), 1024):
        for i, example in enumerate(examples.__getitems__(list(range(start, min(start + 1024, len(examples))))), start):
          pictures.append(images.resize_all(example[image_key][None], image_size)[0] if image_size else example[image_key])
          label[i] = example[label_key]
      if len(label) and label.min() < 0:
        continue  # TFDS marks the labels of a hidden test set with -1
      splits[split] = (images.stack(pictures, 0, name), label)
  if 'train' not in splits:
    raise UserError(f"data set '{name}' has no train split; its splits: {', '.join(builder.info.splits)}")
  return Source(version, splits, tuple(features[label_key].names))
