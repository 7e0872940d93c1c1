"""The one place where a configuration becomes a model, data, a state, a step and hooks."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import (
  distill,
  factorize,
  layers,
  linear,
  post_training,
  removal,
  training_step,
  trees,
)
from lepton_jax import network as network_lib
from lepton_jax import strengths as strengths_lib
from lepton_jax.compress import methods
from lepton_jax.compress.method import Setting, Tools
from lepton_jax.compress.prune import method as prune
from lepton_jax.data import batches as batches_lib
from lepton_jax.data import dataset as dataset_lib
from lepton_jax.errors import UserError
from lepton_jax.regularize import checks
from lepton_jax.train import loop, optim, schedules
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
  if config.quantize.quantize_after:
    post_training.check(config)
  distill.check(config, teacher, dataset)
  network = network_lib.make_network(config, dataset, widths)
  init = network_lib.make_init(network, dataset)
  variables = init(jax.random.key(config.training.seed))
  ranks = factorize.ranks(config.factorize, weights_of(variables, initial)[0],
                          functools.partial(network_lib.grouped_layers, network, dataset))
  network = dataclasses.replace(network, widths=network.widths | factorize.widths(ranks))
  keeps = keeps and not ranks  # what was learned of one kernel says nothing of its two factors

  def first_weights(variables):
    params, model_state = weights_of(variables, initial)
    return (factorize.split(params, ranks) if ranks else params), model_state

  start = params, model_state = first_weights(variables)
  frozen = trees.matching(config.training.freeze, list(trees.named(params)), 'freeze')
  batches = make_batches(config, dataset)
  total_steps = batches.steps_per_epoch * config.training.epochs
  network = compressed(
      network, dataset, params, model_state, frozen=frozenset(frozen), total_steps=total_steps,
      steps_per_epoch=batches.steps_per_epoch, kept=keeps,
      zeros=zeros_to_keep(config, params) if initial and not ranks else frozenset(),
      ticket=trees.named(ticket['params']) if ticket else {})
  compression = network.compression
  on = strengths_lib.strengths(config, compression).keys()
  checks.check(on, config.architecture.model, network.objective.loss, params)

  schedule = schedules.make_schedule(config.optimization, total_steps, batches.steps_per_epoch)
  frozen_names = {f'params/{n}' for n in frozen}
  optimizer = optim.make_optimizer(config.optimization, schedule, frozen_names)
  parts = training_step.parts(network, optimizer, frozen, len(dataset.classes), total_steps,
                              teacher)
  train_step = functools.partial(step_lib.make_train_step, parts)
  make_tools = functools.partial(tools, network, {})
  # One program, kept in the cache, where dozens of small ones would be compiled at each start.
  first_state = jax.jit(functools.partial(initial_state, config, network, optimizer))
  earlier = {kind: initial[kind] for kind in ('learned', 'held')} if keeps else {}

  def assembly(config, variables, start, batches):
    mine, (params, model_state) = dataclasses.replace(network, config=config), start
    if 'carry' in variables:
      carry = network_lib.fresh_carry(variables['carry'], config.data.batch_size)
      model_state = dict(model_state, carry=carry)
    state = first_state(jax.random.key(config.training.seed), params, model_state,
                        strengths_lib.strengths(config, compression), earlier)
    return Assembly(config, dataset, mine, state, batches, total_steps, train_step,
                    functools.partial(hooks, mine, batches, make_tools), compression.settled,
                    another)

  def another(config):
    variables = init(jax.random.key(config.training.seed))
    return assembly(config, variables, first_weights(variables),
                    make_batches(config, dataset))

  return assembly(config, variables, start, batches)


def compressed(network, dataset, params, model_state, **facts):
  """The Network with the methods of its configuration; `facts` are fields of a Setting."""
  kernels = {n: leaf for n, leaf in trees.named(params).items() if trees.is_kernel(n)}
  traced = lambda function: functools.cache(functools.partial(
      function, network, params, model_state, dataset))
  setting = Setting(kernels=kernels, reading=traced(network_lib.layers_that_read),
                    coupling=traced(network_lib.coupled), **facts)
  return dataclasses.replace(network, compression=methods.build(network.config, setting))


def finished(config, dataset, weights, widths):
  """The Network of a finished run, for its weights and the widths of its layers."""
  network = network_lib.make_network(config, dataset, widths)
  return compressed(network, dataset, weights['params'], weights['model_state'],
                    zeros=prune.masked_names(weights))


def narrowed(network, dataset, weights, hparams):
  """(Network, weights) of a run at its end, without the channels that compression made zero."""
  if not any(method.removes for method in network.compression.methods):
    return network, weights
  small, fewer = removal.without_channels(network, dataset, weights)
  if small is not network:
    small = compressed(small, dataset, fewer['params'], fewer['model_state'],
                       zeros=prune.masked_names(fewer))
    removal.check(network, small, weights, fewer, dataset, hparams)
  return small, fewer


def weights_of(variables, initial):
  """(params, model_state) that a run starts from: fresh ones, or another run's where they fit."""
  params = variables['params']
  model_state = {k: v for k, v in variables.items() if k not in ('params', 'carry')}
  if initial is None:
    return params, model_state
  return network_lib.transplant(params, model_state, prune.without_dead(initial))


def zeros_to_keep(config, params):
  """Names of kernels of another run that hold zeros, if those stay."""
  if not config.prune.keep_zeros:
    return frozenset()
  return frozenset(name for name, leaf in trees.named(params).items()
                   if trees.is_kernel(name) and not np.all(np.asarray(leaf)))


def make_batches(config, dataset):
  """Batches of the training part: by length for text, in pairs where augmentation mixes them."""
  common = (*dataset.splits['train'], config.data.batch_size, config.training.seed)
  if dataset.stream:
    return batches_lib.StreamBatches(dataset.splits['train'][0], config.data.batch_size,
                                     config.data.sequence_length)
  images = not dataset.vocabulary and len(dataset.input_shape) == 3
  on = [name for name, value in dataclasses.asdict(config.augment).items() if value]
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
    return batches_lib.BucketBatches(*common, config.data.buckets)
  return batches_lib.Batches(*common, pairs=mixing)


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


def tools(network, cache, batches, put_examples, rows, compiled):
  """What the hooks of methods may use; functions are kept in `cache`, for all trials."""
  def counted(state):
    return network.compression.counted(dict(state.trained, held=state.held), state.hparams)

  def observe(state, batch):
    training = layers.Training(example=batch['example'])
    return network.observe(counted(state), state.model_state, network.scaled(batch)['inputs'],
                           network.compression.sites, training)

  def loss(params, state, batch):
    batch, weights = network.scaled(batch), dict(state.trained, held=state.held, params=params)
    logits, _ = network.forward(weights, state.model_state, batch['inputs'], state.hparams,
                                layers.Training(example=batch['example']))
    return jnp.mean(network.objective.training(logits, batch, state.hparams))

  def outputs(params, state, batch):
    inputs, weights = batch['inputs'], dict(state.trained, held=state.held, params=params)
    if inputs.dtype != jnp.int32:
      inputs = jnp.ones_like(network.scaling.inputs(inputs))
    return network.forward(weights, state.model_state, inputs, state.hparams)[0]

  def once(name, function):
    if name not in cache:
      cache[name] = compiled(function)
    return cache[name]

  return Tools(batch=lambda step: put_examples(batches.at(step, rows)),
               observe=once('observe', observe),
               counted=once('counted', lambda state: counted(state)['params']),
               loss=loss, outputs=outputs, once=once)


def hooks(network, batches, make_tools, put_examples, rows, compiled):
  """What happens before steps: text begins anew, compression changes its arrays; loop.Hooks."""
  found = []

  def restart(state, step):
    del step
    empty = jax.tree.map(jnp.zeros_like, state.model_state['carry'])
    return state.replace(model_state=dict(state.model_state, carry=empty))

  if isinstance(batches, batches_lib.StreamBatches):
    found.append(loop.Hook(lambda step: step % batches.steps_per_epoch == 0, restart))
  given = make_tools(batches, put_examples, rows, compiled)
  return found + [loop.Hook(*hook) for hook in network.compression.hooks(network.config, given)]
