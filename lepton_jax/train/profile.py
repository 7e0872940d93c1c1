"""A trace of some steps by JAX's profiler, in the run folder."""

import contextlib
import re

import jax

from lepton_jax import files
from lepton_jax.errors import UserError
from lepton_jax.train import loop


def steps(text):
  """(first, last) of '20-30', or of '20'; raises UserError for anything else."""
  match = re.fullmatch(r'(\d+)(?:-(\d+))?', text)
  first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
  if first > last:
    raise UserError(f'--profile={text}: allowed are the first and the last step, as in 20-30')
  return first, last


def check(options):
  """Raises UserError for a --profile that says no steps, or that cannot be written."""
  if options.profile:
    steps(options.profile)
    if files.remote(options.runs_dir):
      raise UserError(f'--profile={options.profile}: a trace is written on a local disk, and '
                      f'--runs_dir={options.runs_dir} is none')


@contextlib.contextmanager
def hooks(text, folder, first_process):
  """Gives the loop.Hooks that begin and end the trace; none for ''. A trace that is open ends.

  `folder` gets plugins/profile/TIME/, which TensorBoard reads, with perfetto_trace.json.gz. Only
  the first process writes; the others have the same hooks, so that all make the same calls.
  """
  if not text:
    yield []
    return
  first, last = steps(text)
  opened, made = [], []

  def change(state, step):
    jax.block_until_ready(state.params)  # steps before are not part of it, the last one is
    if not first_process:
      return state
    if step == first:
      jax.profiler.start_trace(str(folder), create_perfetto_trace=True)
      opened.append(folder)
      made.append(folder)
    elif opened:
      opened.pop()
      jax.profiler.stop_trace()
    return state

  try:
    yield [loop.Hook(lambda step: step in (first, last + 1), change)]
  finally:
    if opened:
      jax.profiler.stop_trace()
    if first_process and not made:
      print(f'--profile={text}: no trace, this process did not begin with step {first}')
