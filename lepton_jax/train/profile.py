"""A trace of some steps by JAX's profiler, in the run folder."""

import contextlib
import re

import jax

from lepton_jax.errors import UserError
from lepton_jax.train import loop


def steps(text):
  """(first, last) of '20-30', or of '20'; raises UserError for anything else."""
  match = re.fullmatch(r'(\d+)(?:-(\d+))?', text)
  first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
  if first > last:
    raise UserError(f'--profile={text}: allowed are the first and the last step, as in 20-30')
  return first, last


@contextlib.contextmanager
def hooks(text, folder):
  """Gives the loop.Hooks that begin and end the trace; none for ''. A trace that is open ends.

  `folder` gets plugins/profile/TIME/, which TensorBoard reads, with a trace.json.gz for Perfetto.
  A run that is resumed behind the first step has no trace.
  """
  if not text:
    yield []
    return
  first, last = steps(text)
  opened = []

  def change(state, step):
    jax.block_until_ready(state.params)  # steps before are not part of it, the last one is
    if step == first:
      jax.profiler.start_trace(str(folder), create_perfetto_trace=True)
      opened.append(folder)
    elif opened:
      opened.pop()
      jax.profiler.stop_trace()
    return state

  try:
    yield [loop.Hook(lambda step: step in (first, last + 1), change)]
  finally:
    if opened:
      jax.profiler.stop_trace()
