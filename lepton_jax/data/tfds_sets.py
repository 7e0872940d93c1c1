"""Image and text classification sets of tensorflow_datasets, read without TensorFlow."""

import difflib
import json
import os
import pathlib
import re

import numpy as np

from lepton_jax.data import cache, characters, images, raw_files, remote
from lepton_jax.data.source import Source
from lepton_jax.errors import UserError
from lepton_jax.registry import DATASETS, unknown

STREAMS = ('tiny_shakespeare',)


def read(name, data_dir, manual_dir, cache_root, image_size):
  """The Source of a TFDS set that lies prepared below `data_dir`, or raw in `manual_dir`.

  It looks on disk before TFDS is imported: TFDS itself would spend minutes trying to reach its
  servers. Raises UserError with the command that prepares the set when it is in neither place.
  """
  root = data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  root = remote.copied(root, name, cache_root) if '://' in root else pathlib.Path(root).expanduser()
  folder = prepared(name, root)
  if folder is not None:
    info = json.loads((folder / 'dataset_info.json').read_text())
    version, form = folder.name, info.get('fileFormat')
    if form != 'array_record':
      raise UserError(
          f'{folder} is prepared as {form}, which needs TensorFlow to read; array_record is '
          f'wanted.\n{missing(name, root, prepare_again=True)}')
    if name in STREAMS:
      return characters.source(version, _texts(folder), name)
    key = f'{name.replace("/", "_").replace(":", "_")}-{version}-{image_size}'
    return cache.cached(cache_root, key, lambda: _decode(name, folder, version, image_size))
  if manual_dir and name in raw_files.READERS:
    return raw_files.read(name, pathlib.Path(manual_dir).expanduser(), cache_root, image_size)
  if not re.fullmatch(r'[a-z0-9_]+(/[A-Za-z0-9_.\-]+)*', name):
    raise UserError(unknown('data set', name, DATASETS.names()))
  raise UserError(missing(name, root))


def prepared(name, root):
  """The newest version's folder of a prepared set below `root`, or None.

  Versions are digits.digits.digits.
  """
  folders = [p for p in (root / name).glob('*') if re.fullmatch(r'\d+\.\d+\.\d+', p.name)
             and (p / 'features.json').is_file()]
  return max(folders, key=lambda p: tuple(map(int, p.name.split('.'))), default=None)


def missing(name, root, prepare_again=False):
  """What to tell someone whose set is not there."""
  known = (*DATASETS.names(), *raw_files.READERS, *STREAMS)
  close = '' if name in known else difflib.get_close_matches(name, known, n=1, cutoff=0.6)
  near = f" (did you mean '{close[0]}'?)" if close else ''
  raw = opening = ''
  if name in raw_files.READERS:
    raw = f'\nor put its raw files in a folder and pass --manual_dir: {raw_files.WANTED[name]}'
  if not prepare_again:
    opening = (f"data set '{name}' is not prepared in {root}{near}; embedded sets that need no "
               f"download: {', '.join(DATASETS.names())}.\n")
  return (f'{opening}Prepare it once, with a network and TensorFlow:\n'
          f'  pip install tensorflow-cpu && python -c "import tensorflow_datasets as tfds; '
          f"tfds.builder('{name}', data_dir='{root}', "
          f"file_format='array_record').download_and_prepare()\"\n"
          f'then pass --data_dir={root}{raw}')


def _decode(name, folder, version, image_size):
  import tensorflow_datasets as tfds
  builder = tfds.builder_from_directory(str(folder))
  input_key, label_key = _keys(name, builder.info, tfds.features)
  features = builder.info.features
  is_text = isinstance(features[input_key], tfds.features.Text)
  splits = {}
  for split in ('train', 'validation', 'test'):
    if split in builder.info.splits:
      examples = builder.as_data_source(split=split)
      print(f'reading {name} {split}: {len(examples):,} examples, once', flush=True)
      inputs, label = [], np.empty(len(examples), np.int32)
      for start in range(0, len(examples), 1024):
        places = list(range(start, min(start + 1024, len(examples))))
        for i, example in enumerate(examples.__getitems__(places), start):
          value = example[input_key]
          if is_text:
            value = value.decode()
          elif image_size:
            value = images.resize_all(value[None], image_size)[0]
          inputs.append(value)
          label[i] = example[label_key]
      if len(label) and label.min() < 0:
        continue  # TFDS marks the labels of a hidden test set with -1
      splits[split] = (np.array(inputs, object) if is_text else images.stack(inputs, name), label)
  if 'train' not in splits:
    raise UserError(
        f"data set '{name}' has no train split; its splits: {', '.join(builder.info.splits)}")
  return Source(version, splits, tuple(features[label_key].names))


def _texts(folder):
  """{split: text} of a set whose splits are one text each."""
  import tensorflow_datasets as tfds
  builder = tfds.builder_from_directory(str(folder))
  return {split: '\n'.join(e['text'].decode() for e in builder.as_data_source(split=split))
          for split in builder.info.splits}


def _keys(name, info, kinds):
  """The names of the input and the label.

  They are the supervised pair, or the only image or text and the only class label.
  """
  features = dict(info.features)
  if info.supervised_keys:
    candidates = [list(info.supervised_keys)[:2]]
  else:
    pick = lambda kind: [key for key, feature in features.items() if isinstance(feature, kind)]
    candidates = [[a, b] for a in pick((kinds.Image, kinds.Text)) for b in pick(kinds.ClassLabel)]
  def fits(input_key, label_key):
    return (isinstance(features.get(input_key), (kinds.Image, kinds.Text))
            and isinstance(features.get(label_key), kinds.ClassLabel))

  if len(candidates) != 1 or not fits(*candidates[0]):
    raise UserError(
        f"data set '{name}' is not an image or text classification set; its features: "
        f"{', '.join(features)}")
  return candidates[0]
