"""A model on a data set as pure functions of named arrays."""

import dataclasses
import inspect
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import losses, metrics, models, objective, registry, trees
from lepton_jax.compress import coupling
from lepton_jax.compress.method import Compression
from lepton_jax.compress.quantize import sites as quantize_sites
from lepton_jax.errors import UserError
from lepton_jax.layers import platform, watch
from lepton_jax.layers import widths as widths_lib
from lepton_jax.precision import at_least_single
from lepton_jax.scaling import Scaling

MODEL_OPTIONS = ('width', 'depth', 'hidden', 'embedding', 'activation', 'norm', 'pooling', 'tied',
                 'dropout', 'recurrent_dropout', 'stochastic_depth')


@dataclasses.dataclass(frozen=True)
class Network:
  """The forward pass of a Flax module between its Scaling and its Objective.

  `weights` is {'params', 'learned', 'held'}, and for `predict` 'model_state', as a run saves them.
  `widths` are output features of layers, by path, where channels were removed.
  """
  config: typing.Any
  module: typing.Any
  objective: objective.Objective
  scaling: Scaling
  compression: Compression = Compression()
  widths: dict = dataclasses.field(default_factory=dict)

  def forward(self, weights, model_state, inputs, hparams, training=None, key=None, collect=()):
    """Logits f32[batch, outputs] and the new model_state.

    Weights are those that count, inputs are scaled. Collections in `collect` are updated in
    evaluation as well.
    """
    with self.compression.reading(weights, hparams):
      return self._apply(weights, model_state, inputs, training, key, collect)

  def observe(self, weights, model_state, inputs, sites, training=None):
    """{site: statistics} of the layers' inputs in one pass that rounds none."""
    with quantize_sites.watching(sites):
      _, seen = self._apply(weights, model_state, inputs, training, None, ('intermediates',))
    return quantize_sites.statistics(seen['intermediates'], sites)

  def _apply(self, weights, model_state, inputs, training, key, collect=()):
    """The module; collections in `collect` come back with the model_state."""
    if jnp.issubdtype(inputs.dtype, jnp.floating):
      inputs = inputs.astype(self.config.architecture.dtype)
    mutable = [*(model_state if training is not None else ()), *collect]
    with platform.using(self.config.run.convolution), widths_lib.using(self.widths):
      result = self.module.apply({'params': weights['params'], **model_state}, inputs, training,
                                 rngs=None if key is None else {'dropout': key},
                                 mutable=mutable or False)
    logits, changed = result if mutable else (result, {})
    precision = at_least_single(self.config.architecture.dtype)
    return logits.astype(precision), {**model_state, **changed}

  def scaled(self, batch):
    """A batch with scaled inputs and, in regression, scaled targets."""
    return self.scaling.batch(batch, self.objective.regression)

  def predict(self, weights, inputs, hparams):
    """Logits f32[batch, outputs] of raw inputs."""
    counted = self.compression.counted(weights, hparams)
    return self.forward(counted, weights['model_state'], self.scaling.inputs(inputs), hparams)[0]

  def continue_text(self, weights, carry, inputs, hparams):
    """(logits f32[batch, time, characters], carry) of more of each row's text."""
    counted = self.compression.counted(weights, hparams)
    state = dict(weights['model_state'], carry=carry)
    logits, changed = self.forward(counted, state, inputs, hparams, collect=('carry',))
    return logits, changed['carry']

  def predict_stream(self, weights, carry, batch, hparams):
    """(sum of losses, number of right answers, of characters, carry) of a piece of running text."""
    logits, carry = self.continue_text(weights, carry, batch['inputs'], hparams)
    exists = batch['label'] >= 0
    per_row = jnp.sum(exists, -1).astype(logits.dtype)
    total = jnp.sum(self.objective.per_example(logits, batch, {}) * per_row)
    right = jnp.sum(metrics.correct(logits, batch['label']).astype(logits.dtype) * per_row)
    return total, right, jnp.sum(exists), carry

  def carry(self, batch_size):
    """The empty state of `batch_size` rows of running text."""
    inputs = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(lambda: self.init(jax.random.key(0), inputs)[1])['carry']
    return fresh_carry(shapes, batch_size)

  def begun(self, model_state, dataset):
    """A model_state for one row; of running text with its empty state."""
    return dict(model_state, carry=self.carry(1)) if dataset.stream else model_state

  def init(self, key, inputs):
    """(output, fresh variables) of the module."""
    with widths_lib.using(self.widths):
      return self.module.init_with_output(key, inputs, None)


def make_network(config, dataset, widths=None):
  """The Network without compression; raises UserError where model, loss and data do not fit."""
  platform.check(config.run.convolution)
  architecture = config.architecture
  if architecture.dtype == 'float64' and not jax.config.jax_enable_x64:
    raise UserError('--dtype=float64 needs JAX_ENABLE_X64=1 in the environment')
  function = registry.MODELS.get(architecture.model)
  parameters = inspect.signature(function).parameters
  required = inspect.Parameter.empty
  goal = objective.make_objective(config, dataset, parameters['outputs'].default is not required)
  chosen = model_options(architecture, parameters)
  reads_text = 'vocabulary' in parameters
  needs_text = reads_text and parameters['vocabulary'].default is required
  if dataset.vocabulary and not reads_text:
    raise UserError(f'{architecture.model} reads no text, and {dataset.name} is text')
  if needs_text and not dataset.vocabulary:
    raise UserError(f'{architecture.model} reads only text, and {dataset.name} is not text')
  if reads_text:
    chosen['vocabulary'] = len(dataset.vocabulary)
  if 'dtype' in parameters:  # numbers of words have none that layers could follow
    chosen['dtype'] = architecture.dtype
  outputs = losses.outputs_for(goal.loss, len(dataset.classes), dataset.label_size)
  module = function(outputs=outputs, **chosen)
  scaling = Scaling(dataset.mean, dataset.std, (dataset.target_mean, dataset.target_std),
                    dataset.targets if config.data.relative else (), architecture.dtype)
  return Network(config, module, goal, scaling, widths=widths or {})


def model_options(architecture, parameters):
  """{option: value} of those that are set; raises UserError for one that the model lacks."""
  chosen = {name: getattr(architecture, name) for name in MODEL_OPTIONS}
  chosen = {name: value for name, value in chosen.items() if value is not None}
  for name in chosen:
    if name not in parameters:
      allowed = ', '.join(f'--{n}' for n in MODEL_OPTIONS if n in parameters) or 'none'
      raise UserError(f'--{name} does not apply to model {architecture.model}; it takes: {allowed}')
  return chosen


def example_inputs(config, dataset):
  """One scaled input of zeros, to learn shapes from."""
  if dataset.stream:
    return jnp.zeros((1, config.data.sequence_length), jnp.int32)
  dtype = jnp.int32 if dataset.vocabulary else config.architecture.dtype
  return jnp.zeros((1, *dataset.input_shape), dtype)


def make_init(network, dataset):
  """A function from a key to freshly initialised {'params', 'batch_stats', ...}, compiled once.

  It raises UserError where model and data do not fit.
  """
  inputs, model = example_inputs(network.config, dataset), network.config.architecture.model
  compiled = jax.jit(lambda key: network.init(key, inputs))

  def init(key):
    try:
      output, variables = compiled(key)
    except UserError:
      raise
    except (TypeError, ValueError, IndexError) as error:
      raise UserError(
          f'{model} cannot read {dataset.name}, whose inputs have shape {dataset.input_shape}; '
          f'choose another --model ({str(error).splitlines()[0]})') from error
    if (output.ndim == 3) != dataset.labels_steps:
      answers, labels = ('step', 'example') if output.ndim == 3 else ('example', 'step')
      raise UserError(f'{model} gives an answer for each {answers}; {dataset.name} has a label for '
                      f'each {labels}')
    return variables

  return init


def transplant(params, model_state, initial):
  """Another run's weights in this run's structure; a head whose shape differs starts anew.

  Raises UserError naming the arrays that are missing or of another shape anywhere else.
  """
  def is_head(name):
    return name.split('/')[0] == models.HEAD

  def take(mine, theirs):
    own, theirs = trees.named(mine), trees.named(theirs)
    differing = [n for n, leaf in own.items()
                 if n not in theirs or theirs[n].shape != leaf.shape]
    wrong = [n for n in differing if not is_head(n)] + sorted(theirs.keys() - own.keys())
    if wrong:
      raise UserError(f'--init_from holds another network; only {models.HEAD!r} may differ, but so '
                      f'do: {", ".join(wrong[:8])}')

    # A head is replaced whole: a kernel kept beside a new bias would mean nothing.
    def chosen(name, leaf):
      return leaf if differing and is_head(name) else jnp.asarray(theirs[name], leaf.dtype)

    return trees.map_named(chosen, mine)

  return take(params, initial['params']), take(model_state, initial['model_state'])


def layers_that_read(network, params, model_state, dataset):
  """Paths of the layers with kernels whose inputs are floating point, found by tracing one pass."""
  owners = {quantize_sites.owner(name) for name in trees.kernels(params)}
  inputs = example_inputs(network.config, dataset)
  model_state = network.begun(model_state, dataset)
  look = lambda params, state, x: network.observe(dict(params=params), state, x, owners)
  return frozenset(jax.eval_shape(look, params, model_state, inputs))


def macs(network, weights, dataset):
  """{kernel: multiply-accumulates of one example}, by tracing one pass; 0 for tables of words."""
  params, model_state = weights['params'], weights['model_state']
  names, inputs = trees.kernels(params), example_inputs(network.config, dataset)
  model_state = network.begun(model_state, dataset)

  def count(module, path, y):
    del path
    module.sow('intermediates', 'rows', jnp.zeros(y.shape[:-1]))  # a scan adds its steps

  def look(params, model_state, inputs):
    with watch.inputs({quantize_sites.owner(name) for name in names}, lambda _, path, x: x,
                      answered=count):
      return network._apply(dict(params=params), model_state, inputs, None, None,
                            ('intermediates',))[1]['intermediates']

  rows = dict.fromkeys(names, 0)
  for name, leaf in trees.named(jax.eval_shape(look, params, model_state, inputs)).items():
    site = name.rpartition('/rows/')[0]
    for kernel in names:
      if quantize_sites.owner(kernel) == site:
        rows[kernel] += leaf.size
  sizes = {name: int(np.prod(leaf.shape)) for name, leaf in trees.named(params).items()}
  return {name: count * sizes[name] for name, count in rows.items()}


def grouped_layers(network, dataset):
  """Paths of the layers whose kernels see a part of the channels each, such as depthwise ones."""
  found = set()

  def look(next_function, args, kwargs, context):
    if context.method_name == '__call__' and getattr(context.module, 'groups', 1) > 1:
      found.add('/'.join(context.module.path))
    return next_function(*args, **kwargs)

  with nn.intercept_methods(look):
    jax.eval_shape(network.init, jax.random.key(0), example_inputs(network.config, dataset))
  return found


def coupled(network, params, model_state, dataset):
  """The Coupling of a network's channels, found by tracing one pass."""
  model_state = network.begun(model_state, dataset)

  def look(variables, inputs):
    state = {name: leaf for name, leaf in variables.items() if name != 'params'}
    with platform.using('portable'):
      return network.forward(variables, state, inputs, {})[0]

  bare = dataclasses.replace(network, compression=Compression())
  network, inputs = bare, example_inputs(bare.config, dataset)
  return coupling.couple(look, dict(model_state, params=params), inputs)


def fresh_carry(carry, batch_size):
  """The state of recurrent layers before the first step of each of `batch_size` rows."""
  return jax.tree.map(lambda c: jnp.zeros((batch_size, *c.shape[1:]), c.dtype), carry)
