"""The trials of a sweep: which of them share programs, and which cannot be trained."""

from lepton_jax.errors import UserError
from lepton_jax.files import check_store


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
