"""From a configuration and a data set to a Network, with its first variables and compression."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp

from lepton_jax import layer_facts, losses, objective, registry, trees
from lepton_jax.compress import methods
from lepton_jax.compress.method import Setting
from lepton_jax.compress.prune import method as prune
from lepton_jax.errors import UserError
from lepton_jax.layers import platform
from lepton_jax.network import Network, fresh
from lepton_jax.scaling import Scaling

MODEL_OPTIONS = ('width', 'depth', 'hidden', 'embedding', 'activation', 'norm', 'pooling', 'tied',
                 'dropout', 'recurrent_dropout', 'stochastic_depth')


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


@functools.partial(jax.jit, static_argnames=('module', 'widths', 'shape', 'dtype'))
def _first(key, module, widths, shape, dtype):
  """(an empty array of as many axes as the output has, fresh variables).

  Compiled once for all networks of an architecture, without the forward pass.
  """
  output, variables = fresh(module, dict(widths), key, jnp.zeros(shape, dtype))
  return jnp.zeros((0,) * output.ndim), variables


def make_init(network, dataset):
  """A function from a key to freshly initialised {'params', 'batch_stats', ...}.

  It raises UserError where model and data do not fit.
  """
  inputs, model = network.example_inputs(dataset), network.config.architecture.model
  compiled = functools.partial(_first, module=network.module, shape=inputs.shape,
                               widths=tuple(network.widths.items()), dtype=inputs.dtype)

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


def compressed(network, dataset, params, model_state, **facts):
  """The Network with the methods of its configuration; `facts` are fields of a Setting."""
  kernels = {n: leaf for n, leaf in trees.named(params).items() if trees.is_kernel(n)}
  traced = lambda function: functools.cache(functools.partial(
      function, network, params, model_state, dataset))
  setting = Setting(kernels=kernels, reading=traced(layer_facts.layers_that_read),
                    coupling=traced(layer_facts.coupled), **facts)
  return dataclasses.replace(network, compression=methods.build(network.config, setting))


def finished(config, dataset, weights, widths):
  """The Network of a finished run, for its weights and the widths of its layers."""
  network = make_network(config, dataset, widths)
  return compressed(network, dataset, weights['params'], weights['model_state'],
                    zeros=prune.masked_names(weights))
