"""From a `--dataset` flag to train, validation and test arrays."""

import dataclasses
import hashlib
import os
import pathlib

import numpy as np

from lepton_jax.data import splits
from lepton_jax.errors import UserError
from lepton_jax.registry import DATASETS

PREFIXES = ('folder', 'csv')


@dataclasses.dataclass(frozen=True)
class Source:
  """What a reader returns: the splits that the source itself has.

  Attributes:
    version: changes when the content may.
    splits: {'train': (inputs, label), ...} with 'train' always there. inputs uint8[n, h, w, c] images
      or f32[n, columns]; label int32[n] classes or f32[n] values.
    classes: names of the classes; empty for regression.
    columns: names of the input columns of a table; empty for images.
  """
  version: str
  splits: dict
  classes: tuple = ()
  columns: tuple = ()


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Three splits and what the training part says about scale.

  Attributes:
    splits: {'train' | 'validation' | 'test': (inputs[n, ...], label[n])}; the last two may be empty.
    mean, std: f32[channels or columns] of the training inputs; std is 1 where an input is constant.
    target_mean, target_std: of the training labels in regression; 0 and 1 otherwise.
  """
  name: str
  version: str
  splits: dict
  classes: tuple
  columns: tuple
  mean: np.ndarray
  std: np.ndarray
  target_mean: float = 0.0
  target_std: float = 1.0

  @property
  def task(self):
    return 'classification' if self.classes else 'regression'

  @property
  def input_shape(self):
    return self.splits['train'][0].shape[1:]

  def size(self, split):
    return len(self.splits[split][1])

  def fingerprint(self):
    """sha256 over the three splits, so that a result can say which examples it saw."""
    sha = hashlib.sha256()
    for split in ('train', 'validation', 'test'):
      for array in self.splits[split]:
        sha.update(f'{split} {array.dtype} {array.shape} '.encode())
        sha.update(np.ascontiguousarray(array))
    return sha.hexdigest()


def load(options, loss=None):
  """The Dataset that `config.Data` options ask for.

  `loss` decides whether a CSV target is a class or a value. Raises UserError on an unknown name, a
  missing file, or a split that leaves no training examples.
  """
  source = _read(options, loss)
  parts = dict(source.splits)
  for split in parts:
    if split not in ('train', 'validation', 'test'):
      raise ValueError(f'{options.dataset}: a source may not have a split {split!r}')
  label = parts['train'][1]
  by_class = bool(source.classes)
  if 'test' not in parts:
    # A source with only a validation split publishes results on it: it is the test, and validation is held out anew.
    if 'validation' in parts:
      parts['test'] = parts.pop('validation')
    else:
      keep, held = splits.hold_out(label, options.test_fraction, options.split_seed, by_class)
      parts['train'], parts['test'] = _take(parts['train'], keep), _take(parts['train'], held)
  if options.folds:
    if 'validation' in parts:
      parts['train'] = tuple(np.concatenate(pair) for pair in zip(parts['train'], parts['validation']))
    keep, held = splits.fold(parts['train'][1], options.folds, options.fold, options.split_seed, by_class)
    parts['train'], parts['validation'] = _take(parts['train'], keep), _take(parts['train'], held)
  elif 'validation' not in parts:
    keep, held = splits.hold_out(parts['train'][1], options.validation_fraction, options.split_seed + 1, by_class)
    parts['train'], parts['validation'] = _take(parts['train'], keep), _take(parts['train'], held)
  if options.train_limit:
    if options.train_limit > len(parts['train'][1]):
      raise UserError(f'--train_limit={options.train_limit}: {options.dataset} has {len(parts["train"][1])} training examples')
    _, chosen = splits.hold_out(parts['train'][1], options.train_limit / len(parts['train'][1]), options.split_seed + 2, by_class)
    parts['train'] = _take(parts['train'], chosen)
  inputs, label = parts['train']
  if len(label) < 1:
    raise UserError(f'{options.dataset}: the splits leave no training example')
  mean, std = _moments(inputs)
  scale = (0.0, 1.0) if by_class else (float(np.mean(label, dtype=np.float64)), float(np.std(label, dtype=np.float64)) or 1.0)
  return Dataset(options.dataset, source.version, parts, source.classes, source.columns, mean, std, *scale)


def _read(options, loss):
  from lepton_jax.data import csv_table, image_folder, tfds_images
  kind, _, path = options.dataset.partition(':')
  if path and kind not in PREFIXES:
    raise UserError(f"--dataset={options.dataset}: a path follows 'folder:' or 'csv:'")
  if kind == 'folder' and path:
    return image_folder.read(pathlib.Path(path).expanduser(), cache_root(options), options.image_size or 64)
  if kind == 'csv' and path:
    task = options.task or ('regression' if loss == 'mse' else 'classification')
    return csv_table.read(pathlib.Path(path).expanduser(), options.target, task)
  if kind in DATASETS.names():
    return DATASETS.get(kind)(cache_root(options), options.image_size)
  return tfds_images.read(options.dataset, options.data_dir, options.manual_dir, cache_root(options), options.image_size)


def cache_root(options):
  """Folder of decoded arrays."""
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(options.cache_dir).expanduser() if options.cache_dir else pathlib.Path(home) / 'lepton_jax' / 'data'


def _take(part, rows):
  return part[0][rows], part[1][rows]


def _moments(inputs):
  """Mean and standard deviation over all but the last axis, f32; a constant input gets deviation 1."""
  if inputs.dtype == np.uint8:  # 256 counts a channel: exact, and without a float copy of the whole set
    values = np.arange(256.0)
    counts = np.stack([np.bincount(inputs[..., c].ravel(), minlength=256) for c in range(inputs.shape[-1])])
    mean = counts @ values / counts.sum(1)
    variance = (counts * np.square(values[None] - mean[:, None])).sum(1) / counts.sum(1)
  else:
    axes = tuple(range(inputs.ndim - 1))
    mean, variance = inputs.mean(axes, dtype=np.float64), inputs.var(axes, dtype=np.float64)
  return mean.astype(np.float32), np.where(variance > 0, np.sqrt(variance), 1.0).astype(np.float32)
