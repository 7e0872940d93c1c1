"""What came of a trial, as its run folder says it: a result, a failure, or that it was given up."""

import json
import time

from etils import epath

from lepton_jax.files import read_json, write_atomically

FAILURE, GIVEN_UP = 'failure.json', 'given_up'


def folder_of(config):
  """Where a trial's run folder is, local or in an object store."""
  return epath.Path(config.run.runs_dir).expanduser() / config.name()


def finished(config):
  """The result of a trial, or None."""
  return read_json(folder_of(config) / 'result.json')


def failure(config):
  """{'error', 'traceback', 'at'} of a trial that failed, or None."""
  return read_json(folder_of(config) / FAILURE)


def failed_since(config, began):
  """Whether a trial failed at or after a time in seconds since the epoch."""
  found = failure(config)
  return found is not None and found['at'] >= began


def note_failure(config, error, traceback):
  """Writes what went wrong with a trial into its folder, and when."""
  content = dict(error=error, traceback=traceback, at=time.time())
  write_atomically(folder_of(config) / FAILURE, json.dumps(content, indent=2) + '\n')


def given_up(config):
  """Whether a search found a trial hopeless and stopped it."""
  return (folder_of(config) / GIVEN_UP).exists()


def without_result(configs):
  """[(config, why, in one line)] of the trials that failed or were given up."""
  found = []
  for config in configs:
    if finished(config) is None and (why := failure(config)) is not None:
      found.append((config, why['error'].splitlines()[0]))
    elif given_up(config):
      found.append((config, 'given up: validation below the median of earlier settings'))
  return found
