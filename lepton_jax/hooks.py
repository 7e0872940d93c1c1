"""What happens between training steps, and the functions that it may use."""

import jax
import jax.numpy as jnp

from lepton_jax import layers
from lepton_jax.compress.method import Tools
from lepton_jax.data import batches as batches_lib
from lepton_jax.train import loop


def make(network, batches, make_tools, put_examples, rows, compiled):
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
