"""The trials of a sweep: their folders, what came of them, and which of them share programs."""

import json
import time

from etils import epath

from lepton_jax.errors import UserError
from lepton_jax.files import check_store, read_json, write_atomically

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


def programs(configs):
  """Lists of the configurations that share compiled functions, in the order of their first ones."""
  found = {}
  for config in configs:
    found.setdefault(config.program(), []).append(config)
  return list(found.values())


def check(configs):
  """Raises UserError for what a sweep cannot train."""
  for name in {config.run.runs_dir for config in configs}:
    check_store(name)
  for config in configs:
    if config.data.folds and config.data.fold is None:
      every = ','.join(map(str, range(config.data.folds)))
      raise UserError(f'--folds={config.data.folds}: in a sweep a trial is one fold; pass '
                      f'--fold={every} as well')
    if config.optimization.solver != 'gradient':
      raise UserError(
          f'--solver={config.optimization.solver}: a sweep trains by gradients; ./launch.sh train '
          f'solves it')
    if config.quantize.quantize_after:
      raise UserError('--quantize_after: a sweep trains; ./launch.sh quantize rounds one run')
    if config.run.rerun:
      raise UserError(
          '--rerun: a sweep trains what has no result; to start over, remove its folder or name '
          'another --runs_dir')
    if config.run.parallel in ('sharded', 'pmap'):
      raise UserError(
          f'--parallel={config.run.parallel}: in a sweep a trial has one device; '
          f'--executor=devices uses all of them')
