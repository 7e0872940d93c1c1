"""Who trains a trial, where several sweeps share one folder, on a local disk or in gs://."""

import contextlib
import fcntl
import itertools
import os
import threading
import time

from etils import epath

from lepton_jax import files

NAME = '.claim'
LEASE = 120.0  # seconds without a sign of life after which a claim in an object store is void


class Lock:
  """The right to write into a run folder, held by a lock on a file in it.

  It is held until `release` or the end of the process. The kernel drops the lock of a process that
  dies, however it dies, so no claim outlives its owner.
  """

  def __init__(self, file):
    self._file = file

  def release(self):
    with contextlib.suppress(FileNotFoundError):
      os.unlink(self._file.name)
    self._file.close()


class Lease:
  """The same in an object store, which has no locks: a numbered object, written anew all the time.

  The highest number counts. Numbers are made by writes that fail where the object exists already,
  so of several processes that take over from a silent one, one succeeds.
  """

  def __init__(self, path):
    self._path, self._over = path, threading.Event()
    self._thread = threading.Thread(target=self._renew, daemon=True)
    self._thread.start()

  def _renew(self):
    for turn in itertools.count(1):
      if self._over.wait(LEASE / 4):
        return
      with contextlib.suppress(Exception):  # of any client's kind; the next one may succeed
        self._path.write_text(str(turn))

  def release(self):
    self._over.set()
    self._thread.join()  # or it could write once more
    with contextlib.suppress(FileNotFoundError):
      self._path.unlink()


def take(folder):
  """The claim on a run folder, which is made if need be; None where another sweep has it.

  Folders that machines share by other means than an object store must know locks (NFS 4 does).
  """
  folder = epath.Path(folder).expanduser()
  folder.mkdir(parents=True, exist_ok=True)
  return _lease(folder) if files.remote(folder) else _lock(folder)


def _lock(folder):
  file = (folder / NAME).open('a')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.close()
    return None
  if not _same(file, folder / NAME):  # released, and so removed, between opening and locking
    file.close()
    return _lock(folder)
  return Lock(file)


def _same(file, path):
  """Whether an open file is still the one at `path`."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
  except FileNotFoundError:
    return False


_seen = {}  # {claim: (what it said when this process looked last, since when it says so)}


def _lease(folder):
  numbers = []
  with contextlib.suppress(FileNotFoundError):  # a folder is there once it holds an object
    numbers = [int(path.name.rpartition('-')[2]) for path in folder.iterdir()
               if path.name.startswith(f'{NAME}-')]
  if numbers and _alive(folder / f'{NAME}-{max(numbers)}'):
    return None
  path = folder / f'{NAME}-{max(numbers, default=0) + 1}'
  import fsspec
  store, name = fsspec.core.url_to_fs(os.fspath(path))
  try:
    store.pipe_file(name, b'0', mode='create')
  except FileExistsError:  # another process was faster
    return None
  return Lease(path)


def _alive(claim):
  """Whether a claim was released just now, or changed within LEASE by the clock of this machine."""
  try:
    said = claim.read_text()
  except FileNotFoundError:
    return True
  now = time.monotonic()
  before, since = _seen.get(str(claim), (None, now))
  if said != before:
    since = now
  _seen[str(claim)] = said, since
  return now - since <= LEASE
