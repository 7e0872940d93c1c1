"""A trained network as one function of raw inputs, for programs that know nothing of this one."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import build_network, trees
from lepton_jax.data import series
from lepton_jax.deploy import levels

BATCH, TIME = 'batch', 'time'
SEED = 0  # of the samples that exports are compared on


class Traced(typing.NamedTuple):
  """What leaves this program.

  Attributes:
    run: (weights, inputs, *states) -> (outputs, *new states): logits, or in regression values in
      the target's units.
    weights: {'params', 'model_state', 'learned', 'held'} that count, rounded where they are.
    inputs: {name: (dtype, shape)}, the raw examples first; a size that is free is a word.
    outputs: names of the outputs, in order.
    levels: {kernel: (i32 levels, f32 scale that broadcasts against them)} of those on even levels.
  """
  run: typing.Callable
  weights: dict
  inputs: dict
  outputs: tuple
  levels: dict


def trace(trained):
  """The Traced of a folder.Trained; a network of half precision computes in float32 elsewhere."""
  trained = widened(trained)
  network, data = trained.network, trained.data
  kept = network.compression.kept(trained.weights, trained.hparams)
  counted = jax.device_get(network.compression.rounded(kept, trained.hparams))
  weights = {part: counted.get(part, {}) for part in ('params', 'model_state', 'learned', 'held')}
  carry = network.carry(1) if data.stream else {}
  states, tree = jax.tree.flatten(carry)
  regression = network.objective.regression

  def run(weights, inputs, *states):
    state = weights['model_state']
    if states:
      state = dict(state, carry=jax.tree.unflatten(tree, states))
    answers, changed = network.forward(weights, state, network.scaling.inputs(inputs),
                                       trained.hparams, collect=('carry',) * bool(states))
    if regression:
      center, deviation = (np.float32(number) for number in network.scaling.target)
      answers = answers * deviation + center
      if network.scaling.relative_to:
        answers += series.level(inputs, network.scaling.relative_to, answers.shape[1])
    return answers, *(jax.tree.leaves(changed['carry']) if states else ())

  raw = data.splits['test'][0] if not data.stream else np.zeros(0, np.int32)
  shape = (TIME, *data.input_shape[1:]) if data.vocabulary else data.input_shape
  dtype = np.dtype('int32') if data.vocabulary else raw.dtype
  inputs = {'tokens' if data.vocabulary else 'inputs': (dtype, (BATCH, *shape))}
  inputs |= {f'state_{i}': (state.dtype, (BATCH, *state.shape[1:]))
             for i, state in enumerate(states)}
  outputs = ('values' if regression else 'logits', *(f'new_{n}' for n in list(inputs)[1:]))
  found = on_levels(network, kept, weights['params'], trained.hparams)
  return Traced(run, weights, inputs, outputs, found)


def widened(trained):
  """The same network, computing in float32."""
  if trained.config.architecture.dtype == 'float32':
    return trained
  config, weights = trained.config.replace(dtype='float32'), trained.weights
  network = build_network.finished(config, trained.data, weights, trained.network.widths)
  return dataclasses.replace(trained, config=config, network=network)


def shapes(inputs):
  """[jax.ShapeDtypeStruct] of {name: (dtype, shape)}, whose words are free sizes."""
  scope = jax.export.SymbolicScope()
  size = lambda shape: jax.export.symbolic_shape(','.join(map(str, shape)), scope=scope)
  return [jax.ShapeDtypeStruct(size(shape), dtype) for dtype, shape in inputs.values()]


def on_levels(network, kept, params, hparams):
  """{kernel: (levels, scale)} of the kernels that are at equal distances from zero.

  Those of more than 16 bits are left out; no runtime here stores them as whole numbers.
  """
  steps, found = network.compression.steps(kept, hparams), {}
  for name, kernel in trees.named(params).items():
    kernel = np.asarray(kernel)
    if name in steps:
      step = np.asarray(steps[name], np.float32)
      found[name] = np.round(kernel / step).astype(np.int32), step
    elif trees.is_kernel(name) and (near := levels.on_levels(
        kernel.reshape(-1, kernel.shape[-1]))) is not None:
      scale, whole = near
      found[name] = whole.reshape(kernel.shape), scale.reshape((1,) * (kernel.ndim - 1) + (-1,))
  return {name: (whole, scale.reshape((1,) * (whole.ndim - scale.ndim) + scale.shape))
          for name, (whole, scale) in found.items()
          if np.abs(whole).max(initial=0) <= levels.MOST}


def samples(trained, count):
  """Raw inputs of the test part, always the same; of running text pieces."""
  rng, data = np.random.default_rng(SEED), trained.data
  inputs = data.splits['test'][0]
  if data.stream:
    length = min(trained.config.data.sequence_length, len(inputs) - 1)
    starts = rng.integers(0, len(inputs) - length, count)
    return np.stack([inputs[start:start + length] for start in starts])
  found = np.asarray(inputs[np.sort(rng.permutation(len(inputs))[:count])])
  if data.vocabulary:  # no longer than its longest text
    found = found[:, :max(1, np.flatnonzero(found.any(0)).max(initial=0) + 1)]
  return found


def reference(trained, inputs):
  """The network's own outputs f32[n, ...] for raw inputs, in the target's units.

  Products are of full precision: those of TF32 on a GPU would differ from a file's by more than a
  wrong export does.
  """
  with jax.default_matmul_precision('highest'):
    if trained.data.stream:
      network = trained.network
      outputs = jax.jit(network.continue_text)(trained.weights, network.carry(len(inputs)),
                                               jnp.asarray(inputs), trained.hparams)[0]
      return np.asarray(outputs)
    outputs = trained.outputs(inputs)
  if trained.network.objective.regression:
    return trained.network.scaling.values(inputs, outputs)
  return outputs

