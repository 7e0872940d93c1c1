"""Learning rates: each maps progress f32[] in [0, 1] after warm-up to a factor of the peak rate."""

import jax.numpy as jnp

from lepton_jax.errors import UserError
from lepton_jax.registry import SCHEDULES


@SCHEDULES.register
def constant(progress, options):
  """The peak rate throughout."""
  del options
  return jnp.ones_like(progress)


@SCHEDULES.register
def step(progress, options):
  """Times `schedule_factor` at each of `schedule_boundaries`."""
  passed = sum((progress >= b).astype(jnp.float32) for b in boundaries(options))
  return options.schedule_factor ** passed


@SCHEDULES.register
def exponential(progress, options):
  """Falls evenly on a log scale, down to `schedule_factor` at the end."""
  return options.schedule_factor ** progress


@SCHEDULES.register
def cosine(progress, options):
  """Half a cosine down to 0 (arXiv:1608.03983, without restarts)."""
  del options
  return 0.5 * (1 + jnp.cos(jnp.pi * progress))


@SCHEDULES.register
def one_cycle(progress, options):
  """Linear from 1/25 to the peak at 30 % of the run, then down to 1/10,000 (arXiv:1708.07120)."""
  del options
  return jnp.interp(progress, jnp.array([0.0, 0.3, 1.0]), jnp.array([1 / 25, 1.0, 1e-4]))


def boundaries(options):
  """`schedule_boundaries` as numbers; raises UserError unless they rise within 0 to 1."""
  text = options.schedule_boundaries
  try:
    values = [float(b) for b in text.split(',')]
  except ValueError:
    values = [-1.0]
  if values != sorted(values) or values[0] < 0 or values[-1] > 1:
    raise UserError(f"--schedule_boundaries={text}: give rising shares of the run such as 0.5,0.75")
  return values


def make_schedule(options, total_steps, steps_per_epoch):
  """A function from the step (int32[], traced) to the factor f32[] on the peak learning rate."""
  shape = SCHEDULES.get(options.schedule)
  warmup = round(options.warmup_epochs * steps_per_epoch)
  if warmup >= total_steps:
    raise UserError(
        f'--warmup_epochs={options.warmup_epochs}: the whole run has '
        f'{total_steps / steps_per_epoch:g} epochs')
  if options.schedule == 'step':
    boundaries(options)

  def factor(now):
    now = now.astype(jnp.float32)
    rise = jnp.minimum((now + 1) / warmup, 1.0) if warmup else 1.0
    return rise * shape(jnp.clip((now - warmup) / (total_steps - warmup), 0.0, 1.0), options)

  return factor
