"""Who trains a trial, where several sweeps share one local folder."""

import contextlib
import fcntl
import os
import pathlib

NAME = '.claim'


class Claim:
  """The right to write into a run folder, held by a lock on a file in it.

  It is held until `release` or the end of the process. The kernel drops the lock of a process that
  dies, however it dies, so no claim outlives its owner.
  Folders that are not on a local disk have no such locks.
  """

  def __init__(self, file):
    self._file = file

  def release(self):
    with contextlib.suppress(FileNotFoundError):
      pathlib.Path(self._file.name).unlink()
    self._file.close()


def take(folder):
  """The Claim on a run folder, which is made if need be; None where another sweep has it."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  file = (folder / NAME).open('a')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.close()
    return None
  if not _same(file, folder / NAME):  # released, and so removed, between opening and locking
    file.close()
    return take(folder)
  return Claim(file)


def _same(file, path):
  """Whether an open file is still the one at `path`."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
  except FileNotFoundError:
    return False
