"""Commands for other machines: shown, run, read; and the project's files that go there."""

import pathlib
import shlex
import subprocess
import sys

from lepton_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


class Shell:
  """Runs commands, each printed first; with `dry_run` they are only printed."""

  def __init__(self, dry_run):
    self.dry_run = dry_run

  def run(self, *words):
    """Runs a command; raises UserError where it fails."""
    if self.status(*words):
      raise UserError(f'this command failed, what it said is above: {shlex.join(words)}')

  def status(self, *words):
    """The exit status of a command."""
    self._show(words)
    return 0 if self.dry_run else _started(subprocess.call, words)

  def read(self, *words):
    """What a command prints, '' where it fails or is not run."""
    self._show(words)
    if self.dry_run:
      return ''
    done = _started(subprocess.run, words, stdout=subprocess.PIPE, text=True)
    return done.stdout if done.returncode == 0 else ''

  def _show(self, words):
    print(f'$ {shlex.join(words)}', file=None if self.dry_run else sys.stderr, flush=True)


def _started(call, words, **options):
  try:
    return call(words, **options)
  except FileNotFoundError:
    raise UserError(f'there is no {words[0]} on the PATH; ./launch.sh doctor says how to get it'
                    ) from None


def launch(arguments, **environment):
  """The shell's words for `./launch.sh` with these arguments and variables."""
  if not arguments:
    raise UserError('nothing to run: what ./launch.sh is to run comes after --, as in '
                    '-- train --model=resnet20 --runs_dir=gs://BUCKET/runs')
  variables = [f'{name}={shlex.quote(value)}' for name, value in environment.items()]
  return ' '.join([*variables, './launch.sh', shlex.join(arguments)])


def revision():
  """(git object that holds the working tree, its name in results) of this project.

  Changes that are not committed are part of it, new files only once they are added.
  """
  who = ['-c', 'user.name=lepton', '-c', 'user.email=']  # of an object that no branch holds
  git = lambda *words: subprocess.run(['git', '-C', str(ROOT), *who, *words], capture_output=True,
                                      text=True, check=True).stdout.strip()
  try:
    head, changed = git('rev-parse', '--short=12', 'HEAD'), git('stash', 'create')
  except (OSError, subprocess.CalledProcessError):
    raise UserError(f'{ROOT} is not a git repository; other machines get a revision of it'
                    ) from None
  return changed or head, f'{head}-dirty' if changed else head
