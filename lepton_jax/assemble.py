"""The one place where a configuration becomes a model, data, a state, a step and hooks."""

import dataclasses
import functools
import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import layers, losses, metrics, models, registry, trees
from lepton_jax.compress.prune import masks as prune_masks
from lepton_jax.compress.prune import schedule as prune_schedule
from lepton_jax.compress.quantize import quantizers
from lepton_jax.compress.quantize import sites as quantize_sites
from lepton_jax.data import augment as augment_lib
from lepton_jax.data import batches as batches_lib
from lepton_jax.data import dataset as dataset_lib
from lepton_jax.errors import UserError
from lepton_jax.precision import at_least_single
from lepton_jax.train import optim, schedules
from lepton_jax.train import state as state_lib
from lepton_jax.train import step as step_lib

MODEL_OPTIONS = ('width', 'depth', 'activation', 'norm', 'dropout')
# Penalties are the registered ones; each is a field of config.Regularize by the same name.
STRENGTHS = ('learning_rate', 'weight_decay', 'clip_norm', 'ema_decay', 'label_smoothing', 'l1', 'l2')


@dataclasses.dataclass(frozen=True)
class Network:
  """A model on a data set: the forward pass as pure functions of named arrays.

  Attributes:
    module: the Flax module.
    loss: name of the objective.
    prunable: names of the kernels that pruning ranks; empty when it is off.
    quantized: names of the kernels that are rounded; empty when quantisation is off.
    sites: paths of the layers whose inputs are rounded; empty when activations are not.
  """
  config: typing.Any
  module: typing.Any
  loss: str
  mean: np.ndarray
  std: np.ndarray
  target: tuple
  prunable: tuple = ()
  quantized: tuple = ()
  sites: tuple = ()

  def normalize(self, inputs):
    """Raw inputs[batch, ...] to zero mean and unit deviation in the compute precision."""
    dtype = at_least_single(self.config.architecture.dtype)
    return (inputs.astype(dtype) - self.mean.astype(dtype)) / self.std.astype(dtype)

  def normalize_batch(self, batch):
    """A batch with normalised inputs and, in regression, targets."""
    batch = dict(batch, inputs=self.normalize(batch['inputs']))
    if 'other_inputs' in batch:
      batch['other_inputs'] = self.normalize(batch['other_inputs'])
    if self.loss == 'mse':
      batch['label'] = (batch['label'] - self.target[0]) / self.target[1]
    return batch

  def forward(self, weights, model_state, inputs, hparams, training=None, key=None):
    """Logits f32[batch, outputs] and the new model_state, from weights that count already and normalised inputs."""
    precision = at_least_single(self.config.architecture.dtype)
    call = functools.partial(self.module.apply, {'params': weights['params'], **model_state},
                             inputs.astype(self.config.architecture.dtype), training,
                             rngs=None if key is None else {'dropout': key},
                             mutable=list(model_state) if training is not None else False)
    if not self.sites:
      result = call()
    else:
      ranges = trees.named(weights['quant'])
      if self.config.quantize.quantize_ranges == 'calibrated':
        ranges = jax.lax.stop_gradient(ranges)

      def rounded(path, x):
        if path not in self.sites:
          return x
        return quantizers.affine(x, ranges[f'{path}/low'], ranges[f'{path}/high'], hparams['activation_bits'])

      with quantize_sites.intercept_inputs(rounded):
        result = call()
    logits, model_state = result if training is not None else (result, model_state)
    return logits.astype(precision), model_state

  def round_kernels(self, weights, hparams):
    """Weights with the quantised kernels on their levels."""
    if 'weight_bits' not in hparams:
      return weights
    return dict(weights, params=quantizers.quantize_kernels(weights['params'], hparams['weight_bits'], self.quantized))

  def predict(self, weights, inputs, hparams):
    """Logits f32[batch, outputs] of raw inputs, from {'params', 'quant', 'model_state'} as a run saves them."""
    counted = self.round_kernels(weights, hparams)
    return self.forward(counted, weights['model_state'], self.normalize(inputs), hparams)[0]

  def loss_per_example(self, logits, batch, hparams):
    return registry.LOSSES.get(self.loss)(logits, batch['label'], hparams.get('label_smoothing'))

  def measure(self, logits, batch):
    """f32[batch]: 1 where the class is right; squared error in regression."""
    return losses.mse(logits, batch['label']) if self.loss == 'mse' else metrics.correct(logits, batch['label'])


@dataclasses.dataclass(frozen=True)
class Assembly:
  """All that a training loop needs; functions are pure and not yet compiled.

  Attributes:
    state: the initial TrainState, on the default device.
    train_step: axis -> ((state, batch) -> (state, measurements)).
    make_hooks: (put_examples, rows, compile) -> list of (state, step) -> state.
    selectable_from: the first step whose weights may be kept as the best.
  """
  config: typing.Any
  dataset: dataset_lib.Dataset
  network: Network
  state: state_lib.TrainState
  batches: batches_lib.Batches
  total_steps: int
  train_step: typing.Callable
  make_hooks: typing.Callable
  selectable_from: int


def load_data(config):
  """The data set; done before anything heavy is imported or compiled, so that its errors come at once."""
  return dataset_lib.load(config.data, config.optimization.loss)


def build(config, dataset, initial=None):
  """The Assembly of a configuration on a data set.

  `initial` holds weights to start from, {'params', 'quant', 'model_state'} of another run. Raises
  UserError where options do not fit the model, the data or each other.
  """
  network = make_network(config, dataset)
  key = jax.random.key(config.training.seed)
  variables = init_variables(network, dataset, key)
  params, model_state = variables['params'], {k: v for k, v in variables.items() if k != 'params'}
  if initial is not None:
    params, model_state = transplant(params, model_state, initial)
  network = with_compression(network, params, model_state, dataset)
  frozen = trees.matching(config.training.freeze, list(trees.named(params)), 'freeze')
  hparams = strengths(config, network)

  batches = batches_lib.Batches(*dataset.splits['train'], config.data.batch_size, config.training.seed,
                                pairs=bool(config.augment.augment_mixup or config.augment.augment_cutmix))
  total_steps = batches.steps_per_epoch * config.training.epochs
  schedule = schedules.make_schedule(config.optimization, total_steps, batches.steps_per_epoch)
  optimizer = optim.make_optimizer(config.optimization, schedule, {f'params/{n}' for n in frozen})
  train_step = functools.partial(make_step, network, optimizer, frozen, len(dataset.classes))
  state = initial_state(config, network, params, model_state, optimizer, hparams, initial)
  prune_steps = prune_schedule.update_steps(total_steps, config.prune.prune_begin, config.prune.prune_end, config.prune.prune_updates)
  make_hooks = functools.partial(hooks, network, batches, prune_steps)
  return Assembly(config, dataset, network, state, batches, total_steps, train_step, make_hooks,
                  selectable_from=prune_steps[-1] + 1 if network.prunable else 0)


def make_network(config, dataset):
  """The Network without compression; picks the loss where the flag is unset and checks that it fits."""
  architecture, loss = config.architecture, config.optimization.loss
  if architecture.dtype == 'float64' and not jax.config.jax_enable_x64:
    raise UserError('--dtype=float64 needs JAX_ENABLE_X64=1 in the environment')
  function = registry.MODELS.get(architecture.model)
  parameters = inspect.signature(function).parameters
  own_outputs = parameters['outputs'].default
  if loss is None:
    loss = 'mse' if dataset.task == 'regression' else 'cross_entropy' if own_outputs is inspect.Parameter.empty else 'binary'
  if (loss == 'mse') != (dataset.task == 'regression'):
    raise UserError(f'--loss={loss} does not fit {dataset.name}, a {dataset.task} data set')
  if loss == 'binary' and len(dataset.classes) != 2:
    raise UserError(f'the binary loss, which {architecture.model} uses unless --loss is given, needs 2 classes; {dataset.name} has {len(dataset.classes)}')
  chosen = {name: getattr(architecture, name) for name in MODEL_OPTIONS if getattr(architecture, name) is not None}
  for name in chosen:
    if name not in parameters:
      allowed = ', '.join(f'--{n}' for n in MODEL_OPTIONS if n in parameters) or 'none'
      raise UserError(f'--{name} does not apply to model {architecture.model}; it takes: {allowed}')
  module = function(outputs=losses.outputs_for(loss, len(dataset.classes)), **chosen)
  return Network(config, module, loss, dataset.mean, dataset.std, (dataset.target_mean, dataset.target_std))


def init_variables(network, dataset, key):
  """Freshly initialised {'params', 'batch_stats', ...}."""
  inputs = jnp.zeros((1, *dataset.input_shape), network.config.architecture.dtype)
  return jax.jit(lambda k: network.module.init(k, inputs, None))(key)


def transplant(params, model_state, initial):
  """Another run's weights in this run's structure; a head whose shape differs starts anew.

  Raises UserError naming the arrays that are missing or of another shape anywhere else.
  """
  def take(mine, theirs):
    theirs = trees.named(theirs)
    differing = [n for n, leaf in trees.named(mine).items() if n not in theirs or theirs[n].shape != leaf.shape]
    wrong = [n for n in differing if n.split('/')[0] != models.HEAD] + sorted(theirs.keys() - trees.named(mine).keys())
    if wrong:
      raise UserError(f'--init_from holds another network; only {models.HEAD!r} may differ, but so do: {", ".join(wrong[:8])}')
    # A head is replaced whole: a kernel kept beside a new bias would mean nothing.
    anew = {n for n in trees.named(mine) if differing and n.split('/')[0] == models.HEAD}
    return trees.map_named(lambda n, leaf: leaf if n in anew else jnp.asarray(theirs[n], leaf.dtype), mine)

  return take(params, initial['params']), take(model_state, initial['model_state'])


def with_compression(network, params, model_state, dataset):
  """The Network with the kernels and layers that the pruning and quantisation flags reach."""
  config, kernels = network.config, trees.kernels(params)
  dense = trees.matching(config.prune.prune_exclude, kernels, 'prune_exclude')
  prunable = tuple(n for n in kernels if n not in dense) if config.prune.prune_sparsity else ()
  if config.prune.prune_sparsity and not prunable:
    raise UserError(f'--prune_exclude={config.prune.prune_exclude!r} leaves no kernel to prune')
  floating = trees.matching(config.quantize.quantize_exclude, kernels, 'quantize_exclude')
  wanted = tuple(n for n in kernels if n not in floating)
  weight_bits, activation_bits = config.quantize.quantize_weight_bits, config.quantize.quantize_activation_bits
  if (weight_bits or activation_bits) and not wanted:
    raise UserError(f'--quantize_exclude={config.quantize.quantize_exclude!r} leaves no kernel to quantise')
  called = ()
  if activation_bits:
    owners = {quantize_sites.owner(n) for n in wanted}
    inputs = jax.ShapeDtypeStruct((1, *dataset.input_shape), jnp.float32)
    ranges = jax.eval_shape(lambda x: quantize_sites.observe(
        lambda: network.forward(dict(params=params, quant={}), model_state, x, {}), owners), inputs)
    called = tuple(sorted(ranges))
  return dataclasses.replace(network, prunable=prunable, quantized=wanted if weight_bits else (), sites=called)


def strengths(config, network):
  """{name: scalar} of the strengths that are not zero; what is absent is absent from the program."""
  values = {name: getattr(group, name) for group in (config.optimization, config.regularize) for name in STRENGTHS if hasattr(group, name)}
  default = inspect.signature(registry.MODELS.get(config.architecture.model)).parameters.get('dropout')
  dropout = config.architecture.dropout
  values['dropout'] = dropout if dropout is not None else default.default if default is not None else 0.0
  values['weight_bits'] = config.quantize.quantize_weight_bits if network.quantized else 0
  values['activation_bits'] = config.quantize.quantize_activation_bits if network.sites else 0
  return {name: jnp.asarray(value, at_least_single(config.architecture.dtype)) for name, value in values.items() if value}


def make_step(network, optimizer, frozen, num_classes, axis=None):
  """The pure train step, for one device or for one of several along a pmap axis."""
  augment = augment_lib.make_augment(network.config.augment, num_classes, network.std)

  def prepare(batch, key):
    batch = network.normalize_batch(batch)
    return batch if augment is None else augment(batch, key)

  def apply_fn(weights, model_state, batch, hparams, key, axis):
    training = layers.Training(example=batch['example'], dropout=hparams.get('dropout'), axis=axis)
    return network.forward(weights, model_state, batch['inputs'], hparams, training, key)

  def effective(trained, state):
    params = trees.map_named(lambda n, leaf: jax.lax.stop_gradient(leaf) if n in frozen else leaf, trained['params'])
    params = prune_masks.apply_masks(params, state.masks)
    return network.round_kernels(dict(trained, params=params), state.hparams)

  def penalty(name, weights, hparams):
    kernels = {n: leaf for n, leaf in trees.named(weights['params']).items() if trees.is_kernel(n)}
    return hparams[name] * registry.PENALTIES.get(name)(kernels)

  def finish(trained, state):
    return dict(trained, params=prune_masks.apply_masks(trained['params'], state.masks))

  terms = [functools.partial(penalty, name) for name in registry.PENALTIES.names() if getattr(network.config.regularize, name)]
  return step_lib.make_train_step(apply_fn, optimizer, network.loss_per_example, network.measure, prepare=prepare,
                                  effective=effective, terms=terms, finish=finish, axis=axis)


def initial_state(config, network, params, model_state, optimizer, hparams, initial):
  """The TrainState before the first step. Activation ranges start at 0 and are calibrated by a hook."""
  ranges = {f'{site}/{end}': jnp.zeros((), at_least_single(config.architecture.dtype)) for site in network.sites for end in ('low', 'high')}
  trained = dict(params=params, quant=trees.nest(ranges))
  named = trees.named(params)
  state = state_lib.TrainState(
      step=jnp.zeros((), jnp.int32), **trained, model_state=model_state, opt_state=optimizer.init(trained, hparams),
      masks={n: jnp.ones_like(named[n]) for n in network.prunable},
      ema=jax.tree.map(jnp.copy, trained) if config.optimization.ema_decay else {},
      best={}, stale=jnp.zeros((), jnp.int32), totals=state_lib.zero_totals(), hparams=hparams,
      key=jax.random.key_data(jax.random.fold_in(jax.random.key(config.training.seed), 1)))
  if config.training.select == 'best' or config.training.patience:
    state = state.replace(best=dict(score=jnp.full((), -jnp.inf, jnp.float32), loss=jnp.full((), jnp.inf, jnp.float32),
                                    step=jnp.zeros((), jnp.int32), weights=jax.tree.map(jnp.copy, state.evaluated)))
  return state


def hooks(network, batches, prune_steps, put_examples, rows, compiled):
  """What happens before a step: calibrating activation ranges, renewing masks. Each is (state, step) -> state."""
  config, found = network.config, []
  if network.sites:
    def observe(state, batch):
      training = layers.Training(example=batch['example'])
      weights = network.round_kernels(dict(state.trained, params=prune_masks.apply_masks(state.params, state.masks)), state.hparams)
      inputs = network.normalize_batch(batch)['inputs']
      plain = dataclasses.replace(network, sites=())
      return quantize_sites.observe(lambda: plain.forward(weights, state.model_state, inputs, state.hparams, training), network.sites)

    observe = compiled(observe)

    def calibrate(state, step):
      if step and (config.quantize.quantize_ranges == 'learned' or step % batches.steps_per_epoch):
        return state
      seen = [observe(state, put_examples(batches.at(step + i, rows))) for i in range(config.quantize.quantize_calibration)]
      ranges = {f'{site}/{end}': sum(s[site][end] for s in seen) / len(seen) for site in network.sites for end in ('low', 'high')}
      quant = jax.tree.map(lambda new, old: new.astype(old.dtype), trees.nest(ranges), state.quant)
      return state.replace(quant=quant, ema=dict(state.ema, quant=jax.tree.map(jnp.copy, quant)) if state.ema else {})

    found.append(calibrate)

  if network.prunable:
    score = registry.SCORES.get(config.prune.prune_score)

    def prune(state, step):
      if step not in prune_steps:
        return state
      named = trees.named(state.params)
      total = sum(named[n].size for n in network.prunable)
      count = round(prune_schedule.cubic(step, prune_steps, config.prune.prune_sparsity) * total)
      masks = prune_masks.remask(score({n: named[n] for n in network.prunable}), np.int32(count))
      ema = dict(state.ema, params=prune_masks.apply_masks(state.ema['params'], masks)) if state.ema else {}
      return state.replace(masks=masks, params=prune_masks.apply_masks(state.params, masks), ema=ema)

    found.append(prune)
  return found
