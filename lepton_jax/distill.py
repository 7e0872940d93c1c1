"""Distillation: a network learns from the answers of a finished run (arXiv:1503.02531)."""

import jax
import jax.numpy as jnp

from lepton_jax import losses, network
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
  theirs = teacher.config.data
  for what in ('classes', 'vocabulary', 'input_shape', 'task', 'columns', 'targets'):
    same = getattr(teacher.data, what) == getattr(dataset, what)
    if what == 'targets':
      same &= (theirs.target, theirs.relative) == (config.data.target, config.data.relative)
    if not same:
      raise UserError(f'--teacher={options.teacher} was trained on other {what.replace("_", " ")}')


TEACHER = 'teacher'  # in a batch its answers; in a carry its state after the text so far
CARRY = 'teacher_carry'  # in a batch: that state after the batch's text


def carried(carry, teacher):
  """A student's empty carry with the teacher's for as many rows, where there is one."""
  if teacher is None:
    return carry
  rows = len(jax.tree.leaves(carry)[0])
  return dict(carry, **{TEACHER: teacher.network.carry(rows)})


def known(teacher, config, dataset):
  """{TEACHER: logits f32[n, outputs]} for the training part, where all steps see it as it is.

  {} where they do not: augmented, running text, a class for each word, values of another scale.
  """
  if teacher is None or config.augment.on or dataset.labels_steps or dataset.task == 'regression':
    return {}
  return {TEACHER: teacher.outputs(dataset.splits['train'][0])}


def teaching(teacher, scaling):
  """A function (batch with inputs scaled by `scaling`, model_state) -> batch with TEACHER.

  These are the teacher's logits; of running text CARRY comes with them. A batch that has logits
  stays.
  """
  counted = teacher.network.compression.counted(teacher.weights, teacher.hparams)
  theirs = teacher.network.scaling

  def values(inputs):
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

  def teach(batch, model_state):
    if TEACHER in batch:
      return batch
    if 'carry' not in model_state:
      return dict(batch, **{TEACHER: values(batch['inputs'])})
    own = network.rows_of(model_state['carry'][TEACHER], batch)
    logits, carry = teacher.network.continue_text(teacher.weights, own, batch['inputs'],
                                                  teacher.hparams)
    return dict(batch, **{TEACHER: logits, CARRY: carry})

  return teach


def term(logits, teacher, label, temperature):
  """T^2 times the divergence of softened answers from the teacher's, nats, f32[batch]."""
  soft, mine = log_probabilities(teacher / temperature), log_probabilities(logits / temperature)
  found = temperature ** 2 * jnp.sum(jnp.exp(soft) * (soft - mine), -1)
  return losses.over_steps(found, losses.exists(label))


def distance(values, teacher):
  """The mean squared distance of values from the teacher's, f32[batch]."""
  return jnp.mean(jnp.square(values - teacher), tuple(range(1, values.ndim)))
