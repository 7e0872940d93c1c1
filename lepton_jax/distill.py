"""Distillation: a network learns from the answers of a finished run (arXiv:1503.02531)."""

import jax
import jax.numpy as jnp

from lepton_jax import losses, network, trees
from lepton_jax.errors import UserError
from lepton_jax.layers import watch
from lepton_jax.precision import at_least_single
from lepton_jax.regularize.outputs import log_probabilities

TINY = 1e-12  # keeps the lengths of zeros from dividing


def check(config, teacher, dataset):
  """Raises UserError where a teacher is missing, teaches nothing, or teaches something else."""
  options = config.distill
  if bool(options.teacher) != options.on:
    raise UserError(f'--teacher={options.teacher!r} --distill={options.distill} '
                    f'--distill_hints={options.distill_hints}: one names the run to learn from, '
                    f'the others say how much; both or neither')
  if teacher is None:
    return
  theirs = teacher.config.data
  for what in ('classes', 'vocabulary', 'input_shape', 'task', 'columns', 'targets'):
    same = getattr(teacher.data, what) == getattr(dataset, what)
    if what == 'targets':
      same &= (theirs.target, theirs.relative) == (config.data.target, config.data.relative)
    if not same:
      raise UserError(f'--teacher={options.teacher} was trained on other {what.replace("_", " ")}')


HINTS = 'hints'  # in a batch: what layers of the teacher answer, by path
TEACHER = 'teacher'  # in a batch its answers; in a carry its state after the text so far
CARRY = 'teacher_carry'  # in a batch: that state after the batch's text


def carried(carry, teacher):
  """A student's empty carry with the teacher's for as many rows, where there is one."""
  if teacher is None:
    return carry
  rows = len(jax.tree.leaves(carry)[0])
  return dict(carry, **{TEACHER: teacher.network.carry(rows)})


def hints(config, teacher, mine, theirs):
  """Paths of the layers of --distill_layers, whose answers have to be those of the teacher's.

  `mine` and `theirs` are {path: shape and dtype} of what layers answer, functions without
  arguments. Raises UserError for layers that cannot be compared.
  """
  options = config.distill
  if bool(options.distill_hints) != bool(options.distill_layers):
    raise UserError(f'--distill_hints={options.distill_hints} '
                    f'--distill_layers={options.distill_layers!r}: one says how much hints count, '
                    f'the other which layers give them; both or neither')
  if not options.distill_hints:
    return frozenset()
  mine, theirs = mine(), theirs()
  found = trees.matching(options.distill_layers, sorted(mine), 'distill_layers')
  for path in sorted(found):
    other = theirs.get(path)
    if other is None:
      raise UserError(f'--distill_layers: {path} is no layer of the teacher, which has '
                      f'{", ".join(sorted(theirs))}')
    same = mine[path].shape[:-1] == other.shape[:-1]
    if not same or mine[path].ndim == 2 and mine[path].shape != other.shape:
      raise UserError(f'--distill_layers: {path} answers {list(mine[path].shape)}, in the teacher '
                      f'{list(other.shape)}; their widths may differ, where there are positions')
  return frozenset(found)


def known(teacher, config, dataset):
  """{TEACHER: logits f32[n, outputs]} for the training part, where all steps see it as it is.

  {} where they do not: augmented, running text, a class for each word, values of another scale; and
  with hints, which would take too much room.
  """
  changed = config.augment.on or config.distill.distill_hints
  if teacher is None or changed or dataset.labels_steps or dataset.task == 'regression':
    return {}
  return {TEACHER: teacher.outputs(dataset.splits['train'][0])}


def teaching(teacher, scaling, layers=frozenset()):
  """A function (batch with inputs scaled by `scaling`, model_state) -> batch with TEACHER, HINTS.

  The first are the teacher's logits, the second what its `layers` answer, {path: array}; of running
  text CARRY comes with them. A batch that has logits stays.
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
    with watch.answers(layers) as inside:
      if 'carry' not in model_state:
        return dict(batch, **{TEACHER: values(batch['inputs']), HINTS: inside})
      own = network.rows_of(model_state['carry'][TEACHER], batch)
      logits, carry = teacher.network.continue_text(teacher.weights, own, batch['inputs'],
                                                    teacher.hparams)
    return dict(batch, **{TEACHER: logits, CARRY: carry, HINTS: inside})

  return teach


def term(logits, teacher, label, temperature):
  """T^2 times the divergence of softened answers from the teacher's, nats, f32[batch]."""
  soft, mine = log_probabilities(teacher / temperature), log_probabilities(logits / temperature)
  found = temperature ** 2 * jnp.sum(jnp.exp(soft) * (soft - mine), -1)
  return losses.over_steps(found, losses.exists(label))


def hint(mine, theirs):
  """How far layers' answers {path: array[batch, ..., features]} are from the teacher's, f32[batch].

  The mean over layers: of equal widths the squared distance over the teacher's squared length
  (arXiv:1412.6550, without a regressor), of others the squared distance between the maps of where
  they are active, each of length 1 (arXiv:1612.03928, equation 2 with squares).
  """
  def flat(array):
    return array.astype(at_least_single(array.dtype)).reshape(len(array), -1)

  def of_layer(answer, wanted):
    if answer.shape != wanted.shape:
      answer, wanted = (jnp.sum(jnp.square(array), -1) for array in (answer, wanted))
      length = lambda array: jnp.sqrt(jnp.sum(jnp.square(array), -1, keepdims=True) + TINY)
      answer, wanted = (flat(one) / length(flat(one)) for one in (answer, wanted))
    answer, wanted = flat(answer), flat(wanted)
    return jnp.sum(jnp.square(answer - wanted), -1) / (jnp.sum(jnp.square(wanted), -1) + TINY)

  return sum(of_layer(answer, theirs[path]) for path, answer in mine.items()) / len(mine)


def distance(values, teacher):
  """The mean squared distance of values from the teacher's, f32[batch]."""
  return jnp.mean(jnp.square(values - teacher), tuple(range(1, values.ndim)))
