"""The one place where a configuration becomes a model, data, a state, a step and hooks."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp

from lepton_jax import (
  build_network,
  distill,
  factorize,
  hooks,
  layer_facts,
  linear,
  post_training,
  training_step,
  transplant,
  trees,
)
from lepton_jax import network as network_lib
from lepton_jax import strengths as strengths_lib
from lepton_jax.data import batches as batches_lib
from lepton_jax.data import dataset as dataset_lib
from lepton_jax.errors import UserError
from lepton_jax.regularize import checks
from lepton_jax.train import optim, schedules
from lepton_jax.train import state as state_lib
from lepton_jax.train import step as step_lib


@dataclasses.dataclass(frozen=True)
class Assembly:
  """All that a training loop needs; functions are pure and not yet compiled.

  Attributes:
    state: the initial TrainState, on the default device.
    train_step: axis -> ((state, batch) -> (state, measurements)).
    make_hooks: (put_examples, rows, compile) -> list of train.loop.Hook.
    selectable_from: the first step whose weights may be kept as the best.
    another: config -> the Assembly of a run whose `config.program()` is the same: its own seed and
      strengths, but the functions of this one, so that nothing is compiled anew.
  """
  config: typing.Any
  dataset: dataset_lib.Dataset
  network: network_lib.Network
  state: state_lib.TrainState
  batches: batches_lib.Batches
  total_steps: int
  train_step: typing.Callable
  make_hooks: typing.Callable
  selectable_from: int
  another: typing.Callable


def load_data(config):
  """The data set; done before anything is compiled, so that its errors come at once."""
  return dataset_lib.load(config.data, config.optimization.loss)


def build(config, dataset, initial=None, ticket=None, widths=None, keeps=False, teacher=None):
  """The Assembly of a configuration on a data set.

  `initial` holds weights to start from, {'params', 'model_state', ...} of another run, `ticket`
  those of a run whose weights say what is pruned, `widths` output features of layers that lost
  some, `teacher` is the folder.Trained of --teacher. What compression learns is set anew, or with
  `keeps` that of the other run. Raises UserError where options do not fit the model, the data or
  each other.
  """
  if config.optimization.solver == 'closed_form':
    linear.check(config)
  post_training.check(config)
  distill.check(config, teacher, dataset)
  network = build_network.make_network(config, dataset, widths)
  init = build_network.make_init(network, dataset)
  variables = init(jax.random.key(config.training.seed))
  ranks = factorize.ranks(config.factorize, transplant.weights_of(variables, initial)[0],
                          functools.partial(layer_facts.grouped_layers, network, dataset))
  network = dataclasses.replace(network, widths=network.widths | factorize.widths(ranks))

  def first_weights(variables):
    params, model_state = transplant.weights_of(variables, initial)
    return (factorize.split(params, ranks) if ranks else params), model_state

  start = params, model_state = first_weights(variables)
  frozen = trees.matching(config.training.freeze, list(trees.named(params)), 'freeze')
  known = distill.known(teacher, config, dataset)
  batches = make_batches(config, dataset, known)
  total_steps = batches.steps_per_epoch * config.training.epochs
  network = build_network.compressed(
      network, dataset, params, model_state, frozen=frozenset(frozen), total_steps=total_steps,
      steps_per_epoch=batches.steps_per_epoch, kept=keeps,
      zeros=transplant.zeros_to_keep(config, params, ranks) if initial else frozenset(),
      ticket=trees.named(ticket['params']) if ticket else {})
  compression = network.compression
  on = strengths_lib.strengths(config, compression).keys()
  checks.check(on, config.architecture.model, network.objective.loss, params)

  schedule = schedules.make_schedule(config.optimization, total_steps, batches.steps_per_epoch)
  optimizer = optim.make_optimizer(config.optimization, schedule,
                                   functools.partial(is_frozen, frozen))
  weights = dict(params=params, model_state=model_state)
  hints = distill.hints(config, teacher,
                        lambda: layer_facts.answers(network, weights, dataset),
                        lambda: layer_facts.answers(teacher.network, teacher.weights, dataset))
  parts = training_step.parts(network, optimizer, frozen, len(dataset.classes), total_steps,
                              teacher, hints)
  train_step = functools.partial(step_lib.make_train_step, parts)
  make_tools = functools.partial(hooks.tools, network, {})
  # One program, kept in the cache, where dozens of small ones would be compiled at each start.
  first_state = jax.jit(functools.partial(initial_state, config, network, optimizer))
  earlier = transplant.learned_of(initial, params) if keeps else {}

  def assembly(config, variables, start, batches):
    mine, (params, model_state) = dataclasses.replace(network, config=config), start
    if 'carry' in variables:
      carry = network_lib.fresh_carry(variables['carry'], config.data.batch_size)
      model_state = dict(model_state, carry=distill.carried(carry, teacher))
    state = first_state(jax.random.key(config.training.seed), params, model_state,
                        strengths_lib.strengths(config, compression), earlier)
    return Assembly(config, dataset, mine, state, batches, total_steps, train_step,
                    functools.partial(hooks.make, mine, batches, make_tools), compression.settled,
                    another)

  def another(config):
    variables = init(jax.random.key(config.training.seed))
    return assembly(config, variables, first_weights(variables),
                    make_batches(config, dataset, known))

  return assembly(config, variables, start, batches)


def is_frozen(frozen, name):
  """Whether something trained is one of the parameters `frozen`, or was learned of one of them."""
  kind, _, rest = name.partition('/')
  return (rest if kind == 'params' else transplant.learned_from(rest)) in frozen


def make_batches(config, dataset, more=None):
  """Batches of the training part: by length for text, in pairs where augmentation mixes them.

  `more` is {name: array} for all of its examples.
  """
  common = (*dataset.splits['train'], config.data.batch_size, config.training.seed)
  if dataset.stream:
    return batches_lib.StreamBatches(dataset.splits['train'][0], config.data.batch_size,
                                     config.data.sequence_length)
  images = not dataset.vocabulary and len(dataset.input_shape) == 3
  on = config.augment.on
  for name in on:
    words = name == 'augment_word_dropout'
    if not (dataset.vocabulary if words else images):
      raise UserError(f'--{name} changes {"words" if words else "images"}; {dataset.name} has none')
  mixing = bool({'augment_mixup', 'augment_cutmix'} & set(on))
  if config.regularize.input_noise and dataset.vocabulary:
    raise UserError(f'--input_noise is added to numbers; {dataset.name} has words')
  if mixing and dataset.task == 'regression':
    raise UserError(f'--augment_mixup and --augment_cutmix mix classes; {dataset.name} has none')
  if dataset.vocabulary:
    return batches_lib.BucketBatches(*common, config.data.buckets, more)
  return batches_lib.Batches(*common, mixing, more)


def initial_state(config, network, optimizer, key, params, model_state, hparams, earlier):
  """The TrainState before the first step; `earlier` are arrays of another run that are kept."""
  learned, held = network.compression.init(params, hparams, earlier)
  trained = dict(params=params, learned=learned)
  averaged = config.optimization.ema_decay or config.optimization.swa_start
  first = dict(trained, model_state=state_lib.lasting(model_state))
  state = state_lib.TrainState(
      step=jnp.zeros((), jnp.int32), **trained, model_state=model_state,
      opt_state=optimizer.init(trained, hparams), held=held,
      ema=jax.tree.map(jnp.copy, first) if averaged else {}, best={},
      stale=jnp.zeros((), jnp.int32), totals=state_lib.zero_totals(network.objective.measured),
      hparams=hparams, key=jax.random.key_data(jax.random.fold_in(key, 1)))
  if config.training.select == 'best' or config.training.patience:
    worst = jnp.full((), jnp.inf, jnp.float32)
    state = state.replace(best=dict(score=-worst, loss=worst, step=jnp.zeros((), jnp.int32),
                                    weights=jax.tree.map(jnp.copy, state.evaluated)))
  return state
