"""From a `--dataset` flag to train, validation and test arrays."""

import dataclasses
import functools
import hashlib
import os
import pathlib

import numpy as np

from lepton_jax.data import characters, csv_table, image_folder, series, splits, text, tfds_sets
from lepton_jax.data import rows as rows_lib
from lepton_jax.errors import UserError
from lepton_jax.registry import DATASETS

PREFIXES = ('folder', 'csv', 'text', 'series')


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Three splits and what the training part says about scale.

  Attributes:
    splits: {'train' | 'validation' | 'test': (inputs[n, ...], label[n])}; the last two can be
      empty.
    mean, std: f32[channels or columns] of the training inputs; std is 1 where an input is constant.
    target_mean, target_std: f32[] or f32[targets] of the training labels in regression; 0 and 1
      otherwise.
    vocabulary: words by their numbers; empty unless inputs are int32[n, time] tokens.
  """
  name: str
  version: str
  splits: dict
  classes: tuple
  columns: tuple
  mean: np.ndarray
  std: np.ndarray
  target_mean: np.ndarray = np.float32(0)
  target_std: np.ndarray = np.float32(1)
  vocabulary: tuple = ()
  stream: bool = False
  targets: tuple = ()

  @property
  def task(self):
    return 'classification' if self.classes else 'regression'

  @property
  def measure(self):
    """Name of the validation measurement that ranks trials; only for accuracy more is better."""
    return 'loss' if self.stream else 'accuracy' if self.classes else 'rmse'

  @property
  def labels_steps(self):
    """Whether every step of an example has a class of its own."""
    return self.stream or bool(self.classes) and self.splits['train'][1].ndim == 2

  @property
  def input_shape(self):
    return self.splits['train'][0].shape[1:]

  @property
  def label_size(self):
    """How many numbers a label is."""
    return int(np.prod(self.splits['train'][1].shape[1:]))

  def size(self, split):
    return len(self.splits[split][1])

  def facts(self):
    """All but the examples, for a JSON file; `without_examples` reads it."""
    inputs, label = self.splits['train']
    found = {name: getattr(self, name) for name in FACTS}
    found |= {name: np.asarray(getattr(self, name)).tolist() for name in NUMBERS}
    return dict(found, inputs=[str(inputs.dtype), *inputs.shape[1:]],
                label=[str(label.dtype), *label.shape[1:]])

  @functools.cached_property
  def fingerprint(self):
    """sha256 over the three splits, so that a result can say which examples it saw."""
    sha = hashlib.sha256()
    for split in ('train', 'validation', 'test'):
      for array in self.splits[split]:
        sha.update(f'{split} {array.dtype} {array.shape} '.encode())
        sha.update(np.ascontiguousarray(array))
    return sha.hexdigest()


FACTS = ('name', 'version', 'classes', 'columns', 'vocabulary', 'stream', 'targets')
NUMBERS = ('mean', 'std', 'target_mean', 'target_std')


def without_examples(facts):
  """The Dataset that `Dataset.facts` describes, its splits empty."""
  values = {name: tuple(value) if isinstance(value, list) else value
            for name, value in facts.items() if name in FACTS}
  values |= {name: np.asarray(facts[name], np.float32) for name in NUMBERS}
  empty = tuple(np.zeros((0, *shape), dtype)
                for dtype, *shape in (facts['inputs'], facts['label']))
  return Dataset(splits=dict.fromkeys(('train', 'validation', 'test'), empty), **values)


def load(options, loss=None):
  """The Dataset that `config.Data` options ask for.

  `loss` decides whether a CSV target is a class or a value. Raises UserError on an unknown name, a
  missing file, or a split that leaves no training examples.
  """
  source = _read(options, loss)
  for flag in ('folds', 'train_limit'):
    if getattr(options, flag) and (source.stream or source.targets):
      raise UserError(f'--{flag} draws examples at random; {options.dataset} is split along time')
  if source.stream:
    if options.tokenizer != 'words':
      raise UserError(f'--tokenizer={options.tokenizer}: {options.dataset} is running text, which '
                      f'is read character by character')
    return Dataset(options.dataset, source.version, dict(source.splits), source.classes, (),
                   np.zeros(1, np.float32), np.ones(1, np.float32), vocabulary=source.classes,
                   stream=True)
  by_class = bool(source.classes) and source.splits['train'][1].ndim == 1
  parts, vocabulary = split(dict(source.splits), options, by_class), ()
  if not len(parts['train'][1]):
    raise UserError(f'{options.dataset}: the splits leave no training example')
  if parts['train'][0].dtype == object:
    parts, vocabulary = text.encode_splits(parts, options)
  inputs, label = parts['train']
  if options.relative:
    if not source.targets:
      raise UserError(f'--relative applies to series; {options.dataset} is none')
    last = series.level(inputs, source.targets, label.shape[1])
    inputs, label = series.changes(inputs), label - last
  mean, std = (np.zeros(1, np.float32), np.ones(1, np.float32)) if vocabulary else _moments(inputs)
  scale = (np.float32(0), np.float32(1)) if source.classes else _target_moments(label)
  return Dataset(options.dataset, source.version, parts, source.classes, source.columns, mean, std,
                 *scale, vocabulary, targets=source.targets)


def split(parts, options, by_class):
  """{'train', 'validation', 'test'} from the splits that a source has, by `config.Data` options.

  What is missing is held out of the training part, with the seed, stratified where there are
  classes.
  """
  def divide(name, rows):
    kept, held = rows
    parts['train'], parts[name] = _take(parts['train'], kept), _take(parts['train'], held)

  if 'test' not in parts and 'validation' in parts:
    # Where the test labels are hidden, results are published on validation: it is the test, and
    # validation is held out anew.
    parts['test'] = parts.pop('validation')
  if 'test' not in parts:
    label = parts['train'][1]
    divide('test', splits.hold_out(label, options.test_fraction, options.split_seed, by_class))
  if options.folds:
    if 'validation' in parts:
      pairs = zip(parts['train'], parts['validation'])
      parts['train'] = tuple(np.concatenate(pair) for pair in pairs)
    label = parts['train'][1]
    divide('validation',
           splits.fold(label, options.folds, options.fold, options.split_seed, by_class))
  elif 'validation' not in parts:
    label, seed = parts['train'][1], options.split_seed + 1
    divide('validation', splits.hold_out(label, options.validation_fraction, seed, by_class))
  if options.train_limit:
    available = len(parts['train'][1])
    if options.train_limit > available:
      raise UserError(f'--train_limit={options.train_limit}: {options.dataset} has {available} '
                      f'training examples')
    _, chosen = splits.hold_out(parts['train'][1], options.train_limit / available,
                                options.split_seed + 2, by_class)
    parts['train'] = _take(parts['train'], chosen)
  return parts


def _read(options, loss):
  kind, _, path = options.dataset.partition(':')
  if not path and kind in PREFIXES:
    raise UserError(f"--dataset={options.dataset}: a path must follow, as in '{kind}:/path'")
  if path and kind not in PREFIXES:
    raise UserError(
        f"--dataset={options.dataset}: a path follows 'folder:', 'csv:', 'text:' or 'series:'")
  if '://' in path:
    raise UserError(f'--dataset={options.dataset}: it is read from a local disk; copy it first, '
                    f'as with: gcloud storage cp -r {path} .')
  if kind == 'folder' and path:
    return image_folder.read(pathlib.Path(path).expanduser(), cache_root(options),
                             options.image_size or 64)
  if kind == 'csv' and path:
    task = options.task or ('regression' if loss == 'mse' else 'classification')
    return csv_table.read(pathlib.Path(path).expanduser(), options.target, task,
                          options.text_column, options.skip_bad_rows)
  if kind == 'series' and path:
    return series.read(pathlib.Path(path).expanduser(), options)
  if kind == 'text' and path:
    return characters.read(pathlib.Path(path).expanduser(), options.validation_fraction,
                           options.test_fraction)
  if kind in DATASETS.names():
    return DATASETS.get(kind)(cache_root(options), options.image_size)
  return tfds_sets.read(options.dataset, options.data_dir, options.manual_dir, cache_root(options),
                        options.image_size)


def cache_root(options):
  """Folder of decoded arrays."""
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  if options.cache_dir:
    return pathlib.Path(options.cache_dir).expanduser()
  return pathlib.Path(home) / 'lepton_jax' / 'data'


def _take(part, rows):
  return rows_lib.take(part[0], rows), np.asarray(part[1])[rows]


def _moments(inputs):
  """Mean and deviation over all but the last axis, f32; a constant input gets deviation 1."""
  if inputs.dtype == np.uint8:  # in whole numbers: exact, and without a float copy of the whole set
    count = inputs.size // inputs.shape[-1]
    sums = np.zeros((2, inputs[:1].size))
    for start in range(0, len(inputs), 256):
      part = inputs[start:start + 256]
      part = part.reshape(len(part), -1)
      squares = np.multiply(part, part, dtype=np.uint16)
      sums += part.sum(0, dtype=np.uint32), squares.sum(0, dtype=np.uint32)
    mean, square = sums.reshape(2, -1, inputs.shape[-1]).sum(1) / count
    variance = square - np.square(mean)
  else:
    inputs, axes = np.asarray(inputs), tuple(range(inputs.ndim - 1))
    mean, variance = inputs.mean(axes, dtype=np.float64), inputs.var(axes, dtype=np.float64)
  return mean.astype(np.float32), np.where(variance > 0, np.sqrt(variance), 1.0).astype(np.float32)


def _target_moments(label):
  """Mean and standard deviation of each target, f32; a constant one gets deviation 1."""
  deviation = np.std(label, 0, dtype=np.float64)
  deviation = np.where(deviation > 0, deviation, 1.0).astype(np.float32)
  return np.mean(label, 0, dtype=np.float64).astype(np.float32), deviation
