"""Some rows of an array on disk, read when they are asked for."""

import numpy as np


class Rows:
  """Rows of a memory-mapped array, itself like an array [n, ...] of which only rows are taken.

  A process of several asks for the rows that it feeds, and reads no others.
  """

  def __init__(self, array, rows):
    self._array, self._rows = array, rows
    self.dtype, self.shape = array.dtype, (len(rows), *array.shape[1:])
    self.ndim, self.size = len(self.shape), int(np.prod(self.shape))

  def __len__(self):
    return len(self._rows)

  def __getitem__(self, which):
    if isinstance(which, tuple):  # beyond rows: of the whole array
      return np.asarray(self)[which]
    return np.asarray(self._array[self._rows[which]])

  def astype(self, dtype):
    return np.asarray(self, dtype)

  def __array__(self, dtype=None, copy=None):
    del copy
    return np.asarray(self[:], dtype)


def take(array, rows):
  """Rows of an array: of one on disk as a view, of any other as a copy."""
  if isinstance(array, Rows):
    return Rows(array._array, array._rows[rows])
  return Rows(array, rows) if isinstance(array, np.memmap) else array[rows]
