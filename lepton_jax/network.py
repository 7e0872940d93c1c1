"""A model on a data set as pure functions of named arrays, and which of its kernels compression reaches."""

import dataclasses
import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import config as config_lib
from lepton_jax import losses, metrics, models, registry, trees
from lepton_jax.compress.quantize import quantizers
from lepton_jax.compress.quantize import sites as quantize_sites
from lepton_jax.data import series
from lepton_jax.errors import UserError
from lepton_jax.layers import platform
from lepton_jax.precision import at_least_single

MODEL_OPTIONS = ('width', 'depth', 'hidden', 'embedding', 'activation', 'norm', 'pooling', 'tied', 'dropout', 'recurrent_dropout', 'stochastic_depth')


@dataclasses.dataclass(frozen=True)
class Network:
  """A model on a data set: the forward pass as pure functions of named arrays.

  Attributes:
    module: the Flax module.
    loss: name of the objective.
    relative_to: places of the columns that a series is forecast relative to; empty where values are absolute.
    class_weights: f32[classes], mean 1 over the training examples, or None.
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
  relative_to: tuple = ()
  class_weights: np.ndarray | None = None
  prunable: tuple = ()
  quantized: tuple = ()
  sites: tuple = ()

  def normalize(self, inputs):
    """Raw inputs[batch, ...] to zero mean and unit deviation, in single precision at least; tokens stay as they are."""
    if inputs.dtype == jnp.int32:
      return inputs
    dtype = at_least_single(self.config.architecture.dtype)
    if self.relative_to:
      inputs = series.changes(inputs)
    return (inputs.astype(dtype) - self.mean.astype(dtype)) / self.std.astype(dtype)

  def normalize_batch(self, batch):
    """A batch with normalised inputs and, in regression, targets."""
    if self.loss == 'mse':
      batch = dict(batch, label=(self.to_changes(batch['inputs'], batch['label']) - self.target[0]) / self.target[1])
    batch = dict(batch, inputs=self.normalize(batch['inputs']))
    if 'other_inputs' in batch:
      batch['other_inputs'] = self.normalize(batch['other_inputs'])
    return batch

  def to_changes(self, inputs, values):
    """Values[n, outputs] as changes from the last ones in raw inputs, where the network forecasts those; else as they are."""
    return values - series.level(inputs, self.relative_to, values.shape[1]) if self.relative_to else values

  def to_values(self, inputs, outputs):
    """The network's outputs[n, outputs] in the target's units, f64."""
    values = outputs.astype(np.float64) * self.target[1] + self.target[0]
    return values + series.level(inputs, self.relative_to, values.shape[1]) if self.relative_to else values

  def forward(self, weights, model_state, inputs, hparams, training=None, key=None, collect=()):
    """Logits f32[batch, outputs] and the new model_state, from weights that count already and normalised inputs.

    Collections in `collect` are updated in evaluation as well.
    """
    if not self.sites:
      return self._apply(weights, model_state, inputs, training, key, collect)
    limits = trees.named(weights['quant'])
    if self.config.quantize.quantize_ranges == 'calibrated':
      limits = jax.lax.stop_gradient(limits)

    def rounded(path, x):
      return quantizers.affine(x, limits[f'{path}/low'], limits[f'{path}/high'], hparams['activation_bits'])

    with quantize_sites.replace_inputs(self.sites, rounded):
      return self._apply(weights, model_state, inputs, training, key, collect)

  def observe(self, weights, model_state, inputs, sites, training=None):
    """{site: {'low', 'high'}}, the extremes of the layers' inputs in one unrounded pass."""
    with quantize_sites.watch_inputs(sites):
      _, seen = self._apply(weights, model_state, inputs, training, None, collect=('intermediates',))
    return quantize_sites.ranges(seen['intermediates'], sites)

  def _apply(self, weights, model_state, inputs, training, key, collect=()):
    """The module on normalised inputs; collections in `collect` come back with the model_state."""
    precision = at_least_single(self.config.architecture.dtype)
    if jnp.issubdtype(inputs.dtype, jnp.floating):
      inputs = inputs.astype(self.config.architecture.dtype)
    mutable = [*(model_state if training is not None else ()), *collect]
    with platform.using(self.config.run.convolution):
      result = self.module.apply({'params': weights['params'], **model_state}, inputs, training,
                                 rngs=None if key is None else {'dropout': key}, mutable=mutable or False)
    logits, changed = result if mutable else (result, {})
    return logits.astype(precision), {**model_state, **changed}

  def round_kernels(self, weights, hparams):
    """Weights with the quantised kernels on their levels."""
    if 'weight_bits' not in hparams:
      return weights
    return dict(weights, params=quantizers.quantize_kernels(weights['params'], hparams['weight_bits'], self.quantized))

  def continue_text(self, weights, carry, inputs, hparams):
    """(logits f32[batch, time, characters], carry) of more of each row's text; nothing is trained."""
    counted = self.round_kernels(weights, hparams)
    state = dict(weights['model_state'], carry=carry)
    logits, changed = self.forward(counted, state, inputs, hparams, collect=('carry',))
    return logits, changed['carry']

  def carry(self, batch_size):
    """The empty state of `batch_size` rows of running text."""
    inputs = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(lambda: self.module.init(jax.random.key(0), inputs, None))['carry']
    return fresh_carry(shapes, batch_size)

  def predict(self, weights, inputs, hparams):
    """Logits f32[batch, outputs] of raw inputs, from {'params', 'quant', 'model_state'} as a run saves them."""
    counted = self.round_kernels(weights, hparams)
    return self.forward(counted, weights['model_state'], self.normalize(inputs), hparams)[0]

  def predict_stream(self, weights, carry, batch, hparams):
    """(sum of losses, count of right answers, count of characters, carry) of a piece of running text."""
    logits, carry = self.continue_text(weights, carry, batch['inputs'], hparams)
    exists = batch['label'] >= 0
    count = jnp.sum(exists)
    per_row = jnp.sum(exists, -1).astype(logits.dtype)
    total = jnp.sum(self.loss_per_example(logits, batch, {}) * per_row)
    right = jnp.sum(metrics.correct(logits, batch['label']).astype(logits.dtype) * per_row)
    return total, right, count, carry

  def training_loss(self, logits, batch, hparams):
    """Loss per example, with the weight of its class where --class_weights asks for it."""
    loss = self.loss_per_example(logits, batch, hparams)
    if self.class_weights is None:
      return loss
    label, weights = batch['label'], jnp.asarray(self.class_weights, loss.dtype)
    return loss * (weights[label] if jnp.issubdtype(label.dtype, jnp.integer) else label.astype(loss.dtype) @ weights)

  def loss_per_example(self, logits, batch, hparams):
    return registry.LOSSES.get(self.loss)(logits, batch['label'], hparams.get('label_smoothing'))

  @property
  def measured(self):
    """Names of what a step reports."""
    return ('loss', 'gradient_norm') if self.loss == 'mse' else ('loss', 'accuracy', 'gradient_norm')

  def measure(self, logits, batch):
    """{'accuracy': f32[batch]}; nothing in regression, where the loss says it all."""
    return {} if self.loss == 'mse' else dict(accuracy=metrics.correct(logits, batch['label']))


def make_network(config, dataset):
  """The Network without compression; picks the loss where the flag is unset and checks that it fits."""
  platform.check(config.run.convolution)
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
  if bool(dataset.vocabulary) != ('vocabulary' in parameters) and (dataset.vocabulary or parameters['vocabulary'].default is inspect.Parameter.empty):
    fault = 'reads no text' if dataset.vocabulary else 'reads only text'
    raise UserError(f'{architecture.model} {fault}, and {dataset.name} is {"" if dataset.vocabulary else "not "}text')
  if 'vocabulary' in parameters:
    chosen['vocabulary'] = len(dataset.vocabulary)
  if 'dtype' in parameters:  # numbers of words have none that layers could follow
    chosen['dtype'] = architecture.dtype
  module = function(outputs=losses.outputs_for(loss, len(dataset.classes), dataset.splits['train'][1][0].size), **chosen)
  return Network(config, module, loss, dataset.mean, dataset.std, (dataset.target_mean, dataset.target_std),
                 dataset.targets if config.data.relative else (), class_weights(config, dataset))


def example_inputs(config, dataset):
  """One normalised input of zeros, to learn shapes from."""
  if dataset.stream:
    return jnp.zeros((1, config.data.sequence_length), jnp.int32)
  return jnp.zeros((1, *dataset.input_shape), jnp.int32 if dataset.vocabulary else config.architecture.dtype)


def class_weights(config, dataset):
  """Inverse frequency of each class in the training part, 1 on the average example; None unless asked for."""
  if config.optimization.class_weights == 'none':
    return None
  if not dataset.classes or dataset.labels_steps:
    raise UserError(f'--class_weights applies to one class an example; {dataset.name} has none to weigh')
  counts = np.bincount(dataset.splits['train'][1], minlength=len(dataset.classes))
  return (dataset.size('train') / (len(counts) * np.maximum(counts, 1))).astype(np.float32)


def make_init(network, dataset):
  """A function from a key to freshly initialised {'params', 'batch_stats', ...}, compiled once; raises UserError where model and data do not fit."""
  inputs, model = example_inputs(network.config, dataset), network.config.architecture.model
  compiled = jax.jit(lambda key: network.module.init_with_output(key, inputs, None))

  def init(key):
    try:
      output, variables = compiled(key)
    except UserError:
      raise
    except (TypeError, ValueError, IndexError) as error:
      raise UserError(f'{model} cannot read {dataset.name}, whose inputs have shape {dataset.input_shape}; '
                      f'choose another --model ({str(error).splitlines()[0]})') from error
    if (output.ndim == 3) != dataset.labels_steps:
      network_answers, labels = ('step', 'example') if output.ndim == 3 else ('example', 'step')
      raise UserError(f'{model} gives an answer for each {network_answers}; {dataset.name} has a label for each {labels}')
    return variables

  return init


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


def with_compression(network, params, model_state, dataset, frozen=frozenset()):
  """The Network with the kernels and layers that the pruning and quantisation flags reach; frozen kernels are not pruned."""
  config, kernels = network.config, trees.kernels(params)
  dense = trees.matching(config.prune.prune_exclude, kernels, 'prune_exclude')
  prunable = tuple(n for n in kernels if n not in dense | frozen) if config.prune.prune_sparsity else ()
  if config.prune.prune_sparsity and not prunable:
    raise UserError(f'--prune_exclude={config.prune.prune_exclude!r} --freeze={config.training.freeze!r} leave no kernel to prune')
  floating = trees.matching(config.quantize.quantize_exclude, kernels, 'quantize_exclude')
  wanted = tuple(n for n in kernels if n not in floating)
  weight_bits, activation_bits = config.quantize.quantize_weight_bits, config.quantize.quantize_activation_bits
  if (weight_bits or activation_bits) and not wanted:
    raise UserError(f'--quantize_exclude={config.quantize.quantize_exclude!r} leaves no kernel to quantise')
  called = ()
  if activation_bits:
    owners = {quantize_sites.owner(n) for n in wanted}
    inputs = example_inputs(config, dataset)
    if dataset.stream:
      model_state = dict(model_state, carry=network.carry(1))
    called = tuple(sorted(jax.eval_shape(lambda x: network.observe(dict(params=params), model_state, x, owners), inputs)))
  return dataclasses.replace(network, prunable=prunable, quantized=wanted if weight_bits else (), sites=called)


def strengths(config, network):
  """{name: scalar} of the strengths that are not zero; what is absent is absent from the program."""
  concerns = dataclasses.asdict(config.optimization) | dataclasses.asdict(config.regularize) | dataclasses.asdict(config.augment)
  values = {name: value for name, value in concerns.items() if config_lib.FIELDS[name][1].metadata['traced']}
  parameters = inspect.signature(registry.MODELS.get(config.architecture.model)).parameters
  for name in ('dropout', 'recurrent_dropout', 'stochastic_depth'):
    given = getattr(config.architecture, name)
    values[name] = given if given is not None else parameters[name].default if name in parameters else 0.0
  values['weight_bits'] = config.quantize.quantize_weight_bits if network.quantized else 0
  values['activation_bits'] = config.quantize.quantize_activation_bits if network.sites else 0
  return {name: jnp.asarray(value, at_least_single(config.architecture.dtype)) for name, value in values.items() if value}


def fresh_carry(carry, batch_size):
  """The state of recurrent layers before the first step of each of `batch_size` rows."""
  return jax.tree.map(lambda c: jnp.zeros((batch_size, *c.shape[1:]), c.dtype), carry)
