"""Facts of a network's layers, found by tracing one pass, which computes nothing."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import layer_values, trees
from lepton_jax.compress import coupling
from lepton_jax.compress.method import Compression
from lepton_jax.compress.quantize import sites as quantize_sites
from lepton_jax.layers import platform, watch


def layers_that_read(network, params, model_state, dataset):
  """Paths of the layers with kernels whose inputs are floating point, found by tracing one pass.

  With them come the paths of values inside recurrent cells.
  """
  kernels = trees.kernels(params)
  sites = {quantize_sites.owner(name) for name in kernels}
  sites.update(*map(quantize_sites.within, kernels))
  inputs = network.example_inputs(dataset)
  model_state = network.begun(model_state, dataset)
  look = lambda params, state, x: network.observe(dict(params=params), state, x, sites)
  return frozenset(jax.eval_shape(look, params, model_state, inputs))


def answers(network, weights, dataset):
  """{path: shape and dtype} of what layers answer to one example, by tracing one pass."""
  params, inputs = weights['params'], network.example_inputs(dataset)
  model_state = network.begun(weights['model_state'], dataset)

  def look(params, model_state, inputs):
    with watch.answers(layer_values.paths(params)) as found:
      network.apply(dict(params=params), model_state, inputs, None, None)
    return found

  return jax.eval_shape(look, params, model_state, inputs)


def macs(network, weights, dataset):
  """{kernel: multiply-accumulates of one example}, by tracing one pass; 0 for tables of words."""
  params, model_state = weights['params'], weights['model_state']
  names, inputs = trees.kernels(params), network.example_inputs(dataset)
  model_state = network.begun(model_state, dataset)

  def count(module, path, y):
    del path
    module.sow('intermediates', 'rows', jnp.zeros(y.shape[:-1]))  # a scan adds its steps

  def look(params, model_state, inputs):
    with watch.inputs({quantize_sites.owner(name) for name in names}, lambda _, path, x: x,
                      answered=count):
      return network.apply(dict(params=params), model_state, inputs, None, None,
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
    jax.eval_shape(network.init, jax.random.key(0), network.example_inputs(dataset))
  return found


def coupled(network, params, model_state, dataset):
  """The Coupling of a network's channels, found by tracing one pass."""
  model_state = network.begun(model_state, dataset)

  def look(variables, inputs):
    state = {name: leaf for name, leaf in variables.items() if name != 'params'}
    with platform.using('portable'):
      return network.forward(variables, state, inputs, {})[0]

  bare = dataclasses.replace(network, compression=Compression())
  network, inputs = bare, bare.example_inputs(dataset)
  return coupling.couple(look, dict(model_state, params=params), inputs)
