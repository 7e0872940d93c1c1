"""Distillation: a network learns from the answers of a finished run (arXiv:1503.02531)."""

import jax
import jax.numpy as jnp

from lepton_jax import losses, network, trees
from lepton_jax.errors import UserError
from lepton_jax.layers import watch
from lepton_jax.precision import at_least_single
from lepton_jax.regularize.outputs import log_probabilities

TINY = 1e-12  # keeps the lengths of zeros from dividing
LEAST = 1e-3  # mean square that a layer's answers are taken to have at least


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
    if mine[path].shape[:-1] != other.shape[:-1]:
      raise UserError(f'--distill_layers: {path} answers {list(mine[path].shape)}, in the teacher '
                      f'{list(other.shape)}; only the last number, its width, may be another')
  # Without positions there is nothing that layers of other widths have in common.
  usable = {path for path in found if mine[path].ndim > 2 or mine[path].shape == theirs[path].shape}
  if not usable:
    raise UserError(f'--distill_layers={options.distill_layers!r}: in the teacher '
                    f'{", ".join(sorted(found))} have other widths, and there are no positions by '
                    f'which they could be compared')
  return frozenset(usable)


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


def hint(mine, theirs, exists=None):
  """How far layers' answers {path: array[batch, ..., features]} are from the teacher's, f32[batch].

  The mean over layers: of equal widths the mean square of the difference over that of the teacher's
  answers (arXiv:1412.6550, without a regressor), of others the squared distance between maps of the
  squares at each position, each map of length 1 (arXiv:1612.03928, equation 2 with squares).
  Steps without `exists`, bool[batch, time], count in neither.
  """
  def seen(array):
    array = array.astype(at_least_single(array.dtype))
    if exists is not None and array.shape[:2] == exists.shape:
      array = array * exists.reshape(*exists.shape, *(1,) * (array.ndim - 2)).astype(array.dtype)
    return array

  def of_length_one(array):
    squares = jnp.sum(jnp.square(array), -1).reshape(len(array), -1)
    return squares / jnp.sqrt(jnp.sum(jnp.square(squares), -1, keepdims=True) + TINY)

  def of_layer(answer, wanted):
    if answer.shape != wanted.shape:
      return jnp.sum(jnp.square(of_length_one(answer) - of_length_one(wanted)), -1)
    square = lambda array: jnp.mean(jnp.square(array), tuple(range(1, array.ndim)))
    return square(answer - wanted) / jnp.maximum(square(wanted), LEAST)

  return sum(of_layer(seen(mine[path]), seen(theirs[path])) for path in mine) / len(mine)


def distance(values, teacher):
  """The mean squared distance of values from the teacher's, f32[batch]."""
  return jnp.mean(jnp.square(values - teacher), tuple(range(1, values.ndim)))
