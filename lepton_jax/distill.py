"""Distillation: a network learns from the answers of a finished run (arXiv:1503.02531)."""

import jax.numpy as jnp

from lepton_jax import losses
from lepton_jax.errors import UserError
from lepton_jax.regularize.outputs import log_probabilities


def check(config, teacher, dataset):
  """Raises UserError where a teacher is missing, teaches nothing, or teaches something else."""
  options = config.distill
  if bool(options.teacher) != bool(options.distill):
    raise UserError(f'--teacher={options.teacher!r} --distill={options.distill}: one names the run '
                    f'to learn from, the other says how much; both or neither')
  if teacher is None:
    return
  if dataset.stream:
    raise UserError(f'--teacher: {dataset.name} is running text, whose state a teacher would need')
  theirs = teacher.config.data
  for what in ('classes', 'vocabulary', 'input_shape', 'task', 'columns', 'targets'):
    same = getattr(teacher.data, what) == getattr(dataset, what)
    if what == 'targets':
      same &= (theirs.target, theirs.relative) == (config.data.target, config.data.relative)
    if not same:
      raise UserError(f'--teacher={options.teacher} was trained on other {what.replace("_", " ")}')


def answers(teacher, scaling):
  """A function from inputs, scaled by `scaling`, to the teacher's logits."""
  counted = teacher.network.compression.counted(teacher.weights, teacher.hparams)
  theirs = teacher.network.scaling

  def answer(inputs):
    if inputs.dtype != jnp.int32:
      raw = inputs * scaling.std.astype(inputs.dtype) + scaling.mean.astype(inputs.dtype)
      inputs = (raw - theirs.mean.astype(raw.dtype)) / theirs.std.astype(raw.dtype)
    found = teacher.network.forward(counted, teacher.weights['model_state'], inputs,
                                    teacher.hparams)[0]
    if not teacher.network.objective.regression:
      return found
    (mean, std), (own_mean, own_std) = theirs.target, scaling.target
    as_mine = lambda number: jnp.asarray(number, found.dtype)
    return (found * as_mine(std) + as_mine(mean) - as_mine(own_mean)) / as_mine(own_std)

  return answer


def term(logits, teacher, label, temperature):
  """T^2 times the divergence of softened answers from the teacher's, nats, f32[batch]."""
  soft, mine = log_probabilities(teacher / temperature), log_probabilities(logits / temperature)
  found = temperature ** 2 * jnp.sum(jnp.exp(soft) * (soft - mine), -1)
  return losses.over_steps(found, losses.exists(label))


def distance(values, teacher):
  """The mean squared distance of values from the teacher's, f32[batch]."""
  return jnp.mean(jnp.square(values - teacher), tuple(range(1, values.ndim)))
