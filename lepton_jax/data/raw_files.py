"""MNIST, Fashion-MNIST and CIFAR-10 from the files their authors publish, without TensorFlow."""

import gzip
import hashlib
import tarfile
import zlib

import numpy as np

from lepton_jax.data import cache, images
from lepton_jax.data.source import Source
from lepton_jax.errors import UserError

CIFAR_ARCHIVE = 'cifar-10-binary.tar.gz'
MNIST_FILES = {split: (f'{stem}-images-idx3-ubyte.gz', f'{stem}-labels-idx1-ubyte.gz')
               for split, stem in (('train', 'train'), ('test', 't10k'))}
MNIST_CLASSES = tuple(str(d) for d in range(10))
FASHION_CLASSES = ('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt',
                   'Sneaker', 'Bag', 'Ankle boot')
CIFAR_CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship',
                 'truck')


def read(name, folder, cache_root, image_size):
  """The Source in the raw files below `folder`; raises UserError for a missing or damaged file."""
  files = [folder / f for f in WANTED[name].split(', ')]
  absent = [f.name for f in files if not f.is_file()]
  if absent:
    raise UserError(f'--manual_dir={folder} lacks {", ".join(absent)} of {name}')
  sha = hashlib.sha256()
  for file in files:
    sha.update(file.read_bytes())
  version = f'raw-{sha.hexdigest()[:12]}'

  def make():
    splits, classes = READERS[name](folder)
    splits = {s: (images.resize_all(i, image_size), l) for s, (i, l) in splits.items()}
    return Source(version, splits, classes)

  return cache.cached(cache_root, f'{name}-{version}-{image_size}', make)


def _idx(path):
  """The array in a gzipped IDX file of unsigned bytes (yann.lecun.com/exdb/mnist)."""
  try:
    content = gzip.decompress(path.read_bytes())
  except (OSError, EOFError, ValueError, zlib.error) as error:
    raise UserError(f'{path} is damaged: {error}') from None
  dimensions = content[3] if len(content) > 3 and content[:3] == b'\0\0\x08' else 0
  shape = tuple(int.from_bytes(content[4 + 4 * i:8 + 4 * i], 'big') for i in range(dimensions))
  if not dimensions or len(content) != 4 + 4 * dimensions + int(np.prod(shape)):
    raise UserError(f'{path} is damaged: not an IDX file of bytes, or not whole')
  return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _mnist(folder, classes):
  splits = {}
  for split, (image_file, label_file) in MNIST_FILES.items():
    pixels, label = _idx(folder / image_file), _idx(folder / label_file)
    aligned = pixels.ndim == 3 and label.ndim == 1 and len(pixels) == len(label)
    if not aligned or label.max(initial=0) >= len(classes):
      raise UserError(
          f'{folder / image_file} and {label_file} do not belong together: shapes {pixels.shape} '
          f'and {label.shape}')
    splits[split] = (pixels[..., None], label.astype(np.int32))
  return splits, classes


def _cifar10(folder):
  record = 1 + 3 * 32 * 32
  parts = {'train': [], 'test': []}
  try:
    with tarfile.open(folder / CIFAR_ARCHIVE) as archive:
      for member in sorted(archive.getmembers(), key=lambda m: m.name):
        stem = member.name.rpartition('/')[2]
        if member.isfile() and stem.endswith('.bin'):
          split = 'test' if stem == 'test_batch.bin' else 'train'
          content = archive.extractfile(member).read()
          parts[split].append(np.frombuffer(content, np.uint8))
  except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
    raise UserError(f'{folder / CIFAR_ARCHIVE} is damaged: {error}') from None
  splits = {}
  for split, blocks in parts.items():
    if not blocks or any(len(b) % record for b in blocks):
      raise UserError(
          f'{folder / CIFAR_ARCHIVE} is damaged: its {split} batches are missing or not whole '
          f'records of {record} bytes')
    rows = np.concatenate(blocks).reshape(-1, record)
    pixels = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    splits[split] = (np.ascontiguousarray(pixels), rows[:, 0].astype(np.int32))
  return splits, CIFAR_CLASSES


READERS = dict(mnist=lambda folder: _mnist(folder, MNIST_CLASSES),
               fashion_mnist=lambda folder: _mnist(folder, FASHION_CLASSES), cifar10=_cifar10)
MNIST_NAMES = ', '.join(f for pair in MNIST_FILES.values() for f in pair)
WANTED = dict(mnist=MNIST_NAMES, fashion_mnist=MNIST_NAMES, cifar10=CIFAR_ARCHIVE)
