"""Running text as a stream of characters: text files, tiny_shakespeare, the standard library."""

import hashlib
import pathlib
import sysconfig

import numpy as np

from lepton_jax.data import files
from lepton_jax.data.source import Source
from lepton_jax.errors import UserError
from lepton_jax.registry import DATASETS

# Modules that every Python has and that rarely change; read in this order they are about three
# million characters.
MODULES = ('argparse', 'ast', 'bdb', 'calendar', 'cgitb', 'codecs', 'configparser', 'copy', 'csv',
           'dataclasses', 'datetime', 'decimal', 'difflib', 'dis', 'doctest', 'enum', 'fractions',
           'ftplib', 'functools', 'gettext', 'heapq', 'imaplib', 'inspect', 'ipaddress', 'locale',
           'mailbox', 'nntplib', 'optparse', 'os', 'pathlib', 'pdb', 'pickle', 'pickletools',
           'platform', 'plistlib', 'posixpath', 'pstats', 'pydoc', 'random', 'selectors', 'shutil',
           'smtplib', 'socket', 'ssl', 'statistics', 'subprocess', 'tarfile', 'tempfile',
           'textwrap', 'threading', 'timeit', 'tokenize', 'trace', 'traceback', 'turtle', 'typing',
           'uuid', 'warnings', 'weakref', 'zipfile')
OTHER = '\N{REPLACEMENT CHARACTER}'


def encode(parts):
  """({split: int32[n]}, characters): the text as numbers of the training part's characters.

  Characters that it lacks become OTHER, number 0.
  """
  characters = (OTHER, *sorted(set(parts['train']) - {OTHER}))
  number = {c: i for i, c in enumerate(characters)}
  streams = {split: np.fromiter((number.get(c, 0) for c in text), np.int32, len(text))
             for split, text in parts.items()}
  return streams, characters


def source(version, parts, what):
  """The Source of a text cut into parts, as streams of characters."""
  streams, characters = encode(parts)
  short = [split for split, stream in streams.items() if len(stream) < 2]
  if short:
    raise UserError(
        f'{what}: its {short[0]} part has {len(streams[short[0]])} characters, at least 2 are '
        f'needed; use a longer text or other values of --validation_fraction and --test_fraction')
  splits = {split: (stream, stream) for split, stream in streams.items()}
  return Source(version, splits, characters, stream=True)


def cut(text, validation_fraction, test_fraction):
  """Train, validation and test parts, in this order along the text.

  No part has seen another's future.
  """
  test = len(text) - round(len(text) * test_fraction)
  validation = test - round(test * validation_fraction)
  return dict(train=text[:validation], validation=text[validation:test], test=text[test:])


def read(path, validation_fraction, test_fraction):
  """The Source of a text file; raises UserError where it is empty or, with the line, not UTF-8."""
  text, content = files.read_text(path, 'text')
  if not text.strip():
    raise UserError(f'{path} is empty')
  parts = cut(text, validation_fraction, test_fraction)
  return source(hashlib.sha256(content).hexdigest()[:12], parts, path)


@DATASETS.register
def python_source(cache_root, image_size):
  """The Python standard library's sources, about three million characters, cut 80 / 10 / 10."""
  del cache_root, image_size
  folder = pathlib.Path(sysconfig.get_path('stdlib'))
  modules = [folder / f'{name}.py' for name in MODULES]
  text = ''.join(m.read_text(encoding='utf-8') for m in modules if m.is_file())
  version = hashlib.sha256(text.encode()).hexdigest()[:12]
  return source(version, cut(text, 1 / 9, 0.1), 'python_source')
