"""Objectives: outputs and labels to one loss per example.

Labels are class numbers, or probabilities where examples were mixed. A network that answers at
every step has outputs [batch, time, ...] and labels [batch, time], of which -1 marks a step that
does not exist.
"""

import jax
import jax.numpy as jnp
import optax

from lepton_jax.registry import LOSSES


@LOSSES.register
def cross_entropy(logits, label, smoothing=None):
  """Softmax cross-entropy in nats, f32[batch].

  logits f32[batch, (time,) classes]; label int32[batch, (time)] or f32[batch, classes].
  """
  real = exists(label)
  if jnp.issubdtype(label.dtype, jnp.integer):
    label = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
  if smoothing is not None:
    label = optax.smooth_labels(label, smoothing)
  return over_steps(optax.softmax_cross_entropy(logits, label), real)


@LOSSES.register
def binary(logits, label, smoothing=None):
  """Sigmoid cross-entropy in nats, f32[batch].

  logits f32[batch, (time,) 1]; label int32[batch, (time)] in {0, 1}, or f32[batch, 2].
  """
  real = exists(label)
  positive = label.astype(logits.dtype) if jnp.issubdtype(label.dtype, jnp.integer) else label[:, 1]
  if smoothing is not None:
    positive = positive * (1 - smoothing) + smoothing / 2
  return over_steps(optax.sigmoid_binary_cross_entropy(logits[..., 0], positive), real)


@LOSSES.register
def mse(outputs, label, smoothing=None):
  """Squared error, averaged over the outputs, f32[batch].

  outputs f32[batch, n]; label f32[batch] or f32[batch, n].
  """
  del smoothing  # targets are not classes
  return jnp.mean(jnp.square(outputs - label.reshape(outputs.shape).astype(outputs.dtype)), -1)


def exists(label):
  """bool like label: which steps count."""
  return label >= 0 if jnp.issubdtype(label.dtype, jnp.integer) else None


def over_steps(values, exists):
  """[batch] values as they are; [batch, time] values averaged over the steps that exist."""
  if values.ndim == 1:
    return values
  total = jnp.sum(jnp.where(exists, values, jnp.zeros_like(values)), -1)
  return total / jnp.maximum(jnp.sum(exists, -1), 1).astype(values.dtype)


def outputs_for(loss, num_classes, targets=1):
  """How many outputs a network needs under a loss."""
  return {'cross_entropy': num_classes, 'binary': 1, 'mse': targets}[loss]
