"""The one place where a configuration becomes a model, data, a state, a step and hooks."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import layers, linear, registry, trees
from lepton_jax import network as network_lib
from lepton_jax.compress.prune import masks as prune_masks
from lepton_jax.compress.prune import schedule as prune_schedule
from lepton_jax.data import augment as augment_lib
from lepton_jax.data import batches as batches_lib
from lepton_jax.data import dataset as dataset_lib
from lepton_jax.errors import UserError
from lepton_jax.layers import columns, platform
from lepton_jax.precision import at_least_single
from lepton_jax.regularize import checks, constraints, feature_maps, noise, outputs
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
    another: config -> the Assembly of a run whose `config.program()` is the same: its own seed and strengths,
      but the functions of this one, so that nothing is compiled anew.
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


def build(config, dataset, initial=None):
  """The Assembly of a configuration on a data set.

  `initial` holds weights to start from, {'params', 'model_state', ...} of another run; activation ranges
  are calibrated anew. Raises UserError where options do not fit the model, the data or each other.
  """
  if config.optimization.solver == 'closed_form':
    linear.check(config)
  network = network_lib.make_network(config, dataset)
  init = network_lib.make_init(network, dataset)
  variables = init(jax.random.key(config.training.seed))
  start = params, model_state = weights_of(variables, initial)
  frozen = trees.matching(config.training.freeze, list(trees.named(params)), 'freeze')
  network = network_lib.with_compression(network, params, model_state, dataset, frozen)
  checks.check(network_lib.strengths(config, network).keys(), config.architecture.model, network.loss, params)

  batches = make_batches(config, dataset)
  total_steps = batches.steps_per_epoch * config.training.epochs
  schedule = schedules.make_schedule(config.optimization, total_steps, batches.steps_per_epoch)
  optimizer = optim.make_optimizer(config.optimization, schedule, {f'params/{n}' for n in frozen})
  train_step = functools.partial(make_step, network, optimizer, frozen, len(dataset.classes), total_steps)
  prune_steps = prune_schedule.update_steps(total_steps, config.prune.prune_begin, config.prune.prune_end, config.prune.prune_updates)
  observe = functools.partial(observe_inputs, network)
  # One program, kept in the cache, where dozens of small ones would be compiled at each start.
  first_state = jax.jit(functools.partial(initial_state, config, network, optimizer))

  def assembly(config, variables, start, batches):
    mine, (params, model_state) = dataclasses.replace(network, config=config), start
    if 'carry' in variables:
      model_state = dict(model_state, carry=network_lib.fresh_carry(variables['carry'], config.data.batch_size))
    masks = first_masks(network.prunable, trees.named(params), config.training.init_from and config.prune.keep_zeros)
    state = first_state(jax.random.key(config.training.seed), params, model_state, masks, network_lib.strengths(config, mine))
    make_hooks = functools.partial(hooks, mine, batches, prune_steps, observe)
    return Assembly(config, dataset, mine, state, batches, total_steps, train_step, make_hooks, prune_steps[-1] + 1 if network.prunable else 0, another)

  def another(config):
    variables = init(jax.random.key(config.training.seed))
    return assembly(config, variables, weights_of(variables, initial), make_batches(config, dataset))

  return assembly(config, variables, start, batches)


def weights_of(variables, initial):
  """(params, model_state) that a run starts from: freshly initialised ones, or another run's where they fit."""
  params, model_state = variables['params'], {k: v for k, v in variables.items() if k not in ('params', 'carry')}
  return (params, model_state) if initial is None else network_lib.transplant(params, model_state, initial)


def make_batches(config, dataset):
  """Batches of the training part: by length for text, with partners where augmentation mixes examples."""
  common = (*dataset.splits['train'], config.data.batch_size, config.training.seed)
  if dataset.stream:
    return batches_lib.StreamBatches(dataset.splits['train'][0], config.data.batch_size, config.data.sequence_length)
  on = [name for name, value in dataclasses.asdict(config.augment).items() if value]
  mixing = bool({'augment_mixup', 'augment_cutmix'} & set(on))
  for name in on:
    kind, fits = ('words', dataset.vocabulary) if name == 'augment_word_dropout' else ('images', not dataset.vocabulary and len(dataset.input_shape) == 3)
    if not fits:
      raise UserError(f'--{name} changes {kind}; {dataset.name} has none')
  if config.regularize.input_noise and dataset.vocabulary:
    raise UserError(f'--input_noise is added to numbers; {dataset.name} has words')
  if mixing and dataset.task == 'regression':
    raise UserError(f'--augment_mixup and --augment_cutmix mix classes; {dataset.name} has none')
  if dataset.vocabulary:
    return batches_lib.BucketBatches(*common, config.data.buckets)
  return batches_lib.Batches(*common, pairs=mixing)


def make_step(network, optimizer, frozen, num_classes, total_steps, axis=None):
  """The pure train step, for one device or for one of several along a pmap axis."""
  augment, on = augment_lib.make_augment(network.config.augment, num_classes, network.std), network.config.regularize

  def prepare(batch, key, hparams):
    batch = network.normalize_batch(batch)
    batch = batch if augment is None else augment(batch, key, hparams)
    if 'input_noise' in hparams:
      batch = dict(batch, inputs=noise.input_noise(batch['inputs'], batch['example'], hparams['input_noise'], jax.random.fold_in(key, 1)))
    return batch

  def apply_fn(weights, model_state, batch, hparams, key, axis):
    rates = {name: hparams.get(name) for name in ('dropout', 'recurrent_dropout', 'stochastic_depth')}
    training = layers.Training(example=batch['example'], axis=axis, **rates)
    weights = dict(weights, params=disturbed(weights['params'], hparams, key))
    if 'spatial_dropout' in hparams:
      with feature_maps.spatial_dropout(training, hparams['spatial_dropout']):
        return answer(weights, model_state, batch, hparams, training, key, axis)
    return answer(weights, model_state, batch, hparams, training, key, axis)

  def answer(weights, model_state, batch, hparams, training, key, axis):
    if axis is None or 'carry' not in model_state:
      return network.forward(weights, model_state, batch['inputs'], hparams, training, key)
    # Under pmap the carry is whole on every device; each continues its own rows and all share the result.
    mine = dict(model_state, carry=jax.tree.map(lambda c: c[batch['example']], model_state['carry']))
    logits, changed = network.forward(weights, mine, batch['inputs'], hparams, training, key)
    return logits, dict(changed, carry=jax.lax.all_gather(changed['carry'], axis, tiled=True))

  def effective(trained, state):
    params = trees.map_named(lambda n, leaf: jax.lax.stop_gradient(leaf) if n in frozen else leaf, trained['params'])
    params = prune_masks.apply_masks(params, state.masks)
    return network.round_kernels(dict(trained, params=params), state.hparams)

  def penalty(name, weights, hparams):
    kernels = {n: leaf for n, leaf in trees.named(weights['params']).items() if trees.is_kernel(n)}
    return hparams[name] * registry.PENALTIES.get(name)(kernels)

  def finish(trained, state):
    params = prune_masks.apply_masks(trained['params'], state.masks)
    if 'max_norm' in state.hparams:
      limit = lambda n, leaf: constraints.max_norm(leaf, state.hparams['max_norm']) if trees.is_kernel(n) and n not in frozen else leaf
      params = trees.map_named(limit, params)
    return dict(trained, params=params)

  def norm(gradients):
    with platform.using(network.config.run.convolution):
      return columns.global_norm(gradients)

  terms = [functools.partial(penalty, name) for name in registry.PENALTIES.names() if getattr(network.config.regularize, name)]
  return step_lib.make_train_step(apply_fn, optimizer, network.training_loss, network.measure, prepare=prepare,
                                  effective=effective, terms=terms, finish=finish, axis=axis,
                                  output_terms=[functools.partial(output_term, name) for name in OUTPUT_TERMS if getattr(on, name)],
                                  twice=bool(on.r_drop), uphill=uphill if on.sam else None, disturb=disturb if on.gradient_noise else None,
                                  average=functools.partial(step_lib.kept_share, total_steps=total_steps), norm=norm)


# Terms on answers: (logits, those of the second pass or None, labels) -> f32[batch].
OUTPUT_TERMS = dict(confidence_penalty=lambda logits, other, label: outputs.confidence_penalty(logits, label), r_drop=outputs.r_drop)


def output_term(name, logits, other, batch, hparams):
  return hparams[name] * OUTPUT_TERMS[name](logits, other, batch['label'])


def uphill(trained, gradients, hparams):
  return constraints.sharpest(trained, gradients, hparams['sam'])


def disturb(gradients, step, hparams, key):
  return noise.gradient_noise(gradients, hparams['gradient_noise'], step, key)


def disturbed(params, hparams, key):
  """Parameters with the noise of this step on their kernels."""
  kernels = {n: leaf for n, leaf in trees.named(params).items() if trees.is_kernel(n)}
  for i, name in enumerate(('weight_noise', 'drop_connect')):
    if name in hparams:
      kernels = getattr(noise, name)(kernels, hparams[name], jax.random.fold_in(key, 3 + i))
  return trees.map_named(lambda n, leaf: kernels.get(n, leaf), params)


def initial_state(config, network, optimizer, key, params, model_state, masks, hparams):
  """The TrainState before the first step. Activation ranges start at 0 and are calibrated by a hook."""
  ranges = {f'{site}/{end}': jnp.zeros((), at_least_single(config.architecture.dtype)) for site in network.sites for end in ('low', 'high')}
  trained = dict(params=params, quant=trees.nest(ranges))
  state = state_lib.TrainState(
      step=jnp.zeros((), jnp.int32), **trained, model_state=model_state, opt_state=optimizer.init(trained, hparams),
      masks=masks,
      ema=jax.tree.map(jnp.copy, trained) if config.optimization.ema_decay or config.optimization.swa_start else {},
      best={}, stale=jnp.zeros((), jnp.int32), totals=state_lib.zero_totals(network.measured), hparams=hparams,
      key=jax.random.key_data(jax.random.fold_in(key, 1)))
  if config.training.select == 'best' or config.training.patience:
    state = state.replace(best=dict(score=jnp.full((), -jnp.inf, jnp.float32), loss=jnp.full((), jnp.inf, jnp.float32),
                                    step=jnp.zeros((), jnp.int32), weights=jax.tree.map(jnp.copy, state.evaluated)))
  return state


def first_masks(prunable, kernels, keep_zeros):
  """Masks before pruning begins: of all prunable kernels, and with `keep_zeros` of every kernel that has zeros, which stay."""
  if not keep_zeros:
    return {n: np.ones(kernels[n].shape, kernels[n].dtype) for n in prunable}
  sparse = [n for n, leaf in kernels.items() if trees.is_kernel(n) and (n in prunable or not np.all(np.asarray(leaf)))]
  return {n: (kernels[n] != 0).astype(kernels[n].dtype) for n in sparse}


def observe_inputs(network, state, batch):
  """The ranges of the layers' inputs on a batch, with the weights that count."""
  training = layers.Training(example=batch['example'])
  weights = network.round_kernels(dict(state.trained, params=prune_masks.apply_masks(state.params, state.masks)), state.hparams)
  inputs = network.normalize_batch(batch)['inputs']
  return network.observe(weights, state.model_state, inputs, network.sites, training)


def hooks(network, batches, prune_steps, observe, put_examples, rows, compiled):
  """What happens before a step: calibrating activation ranges, renewing masks. Each is a loop.Hook."""
  config, found = network.config, []
  at_epoch = lambda step: step % batches.steps_per_epoch == 0

  def restart(state, step):
    del step
    return state.replace(model_state=dict(state.model_state, carry=jax.tree.map(jnp.zeros_like, state.model_state['carry'])))

  if isinstance(batches, batches_lib.StreamBatches):
    found.append(loop.Hook(at_epoch, restart))
  if network.sites:
    observe = compiled(observe)

    def calibrate(state, step):
      seen = [observe(state, put_examples(batches.at(step + i, rows))) for i in range(config.quantize.quantize_calibration)]
      ranges = {f'{site}/{end}': sum(s[site][end] for s in seen) / len(seen) for site in network.sites for end in ('low', 'high')}
      quant = jax.tree.map(lambda new, old: new.astype(old.dtype), trees.nest(ranges), state.quant)
      return state.replace(quant=quant, ema=dict(state.ema, quant=jax.tree.map(jnp.copy, quant)) if state.ema else {})

    found.append(loop.Hook(at_epoch if config.quantize.quantize_ranges == 'calibrated' else lambda step: step == 0, calibrate))

  if network.prunable:
    score = registry.SCORES.get(config.prune.prune_score)

    def prune(state, step):
      named = trees.named(state.params)
      total = sum(named[n].size for n in network.prunable)
      gone = prune_masks.zeros(state.masks[n] for n in network.prunable)  # zeros that a run began with never come back
      count = max(gone, round(prune_schedule.cubic(step, prune_steps, config.prune.prune_sparsity) * total))
      masks = {**state.masks, **prune_masks.remask({n: named[n] for n in network.prunable}, np.int32(count), score)}
      ema = dict(state.ema, params=prune_masks.apply_masks(state.ema['params'], masks)) if state.ema else {}
      return state.replace(masks=masks, params=prune_masks.apply_masks(state.params, masks), ema=ema)

    found.append(loop.Hook(lambda step: step in prune_steps, prune))
  return found
