"""A model on a data set as pure functions of named arrays."""

import dataclasses
import typing

import jax
import jax.numpy as jnp

from lepton_jax import metrics, objective
from lepton_jax.compress.method import Compression
from lepton_jax.compress.quantize import sites as quantize_sites
from lepton_jax.layers import platform
from lepton_jax.layers import widths as widths_lib
from lepton_jax.precision import at_least_single
from lepton_jax.scaling import Scaling


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
      return self.apply(weights, model_state, inputs, training, key, collect)

  def observe(self, weights, model_state, inputs, sites, training=None):
    """{site: statistics} of the layers' inputs in one pass that rounds none."""
    with quantize_sites.watching(sites):
      _, seen = self.apply(weights, model_state, inputs, training, None, ('intermediates',))
    return quantize_sites.statistics(seen['intermediates'], sites)

  def apply(self, weights, model_state, inputs, training, key, collect=()):
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

  def example_inputs(self, dataset):
    """One scaled input of zeros, to learn shapes from."""
    if dataset.stream:
      return jnp.zeros((1, self.config.data.sequence_length), jnp.int32)
    dtype = jnp.int32 if dataset.vocabulary else self.config.architecture.dtype
    return jnp.zeros((1, *dataset.input_shape), dtype)

  def begun(self, model_state, dataset):
    """A model_state for one row; of running text with its empty state."""
    return dict(model_state, carry=self.carry(1)) if dataset.stream else model_state

  def init(self, key, inputs):
    """(output, fresh variables) of the module."""
    return fresh(self.module, self.widths, key, inputs)


def fresh(module, widths, key, inputs):
  """(output, fresh variables) of a module whose layers have other widths, {path: features}."""
  with widths_lib.using(widths):
    return module.init_with_output(key, inputs, None)


def fresh_carry(carry, batch_size):
  """The state of recurrent layers before the first step of each of `batch_size` rows."""
  return jax.tree.map(lambda c: jnp.zeros((batch_size, *c.shape[1:]), c.dtype), carry)


def rows_of(carry, batch):
  """The rows of a carry that a device's share of the batch continues.

  Under pmap the carry is whole on every device, else it has the batch's rows.
  """
  share = len(batch['example'])
  return jax.tree.map(lambda c: c if len(c) == share else c[batch['example']], carry)
