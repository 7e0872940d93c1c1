"""Objectives: logits and labels to one loss per example."""

import jax
import jax.numpy as jnp
import optax

from lepton_jax.registry import LOSSES


@LOSSES.register
def cross_entropy(logits, label, smoothing=None):
  """Softmax cross-entropy in nats. logits f32[batch, classes]; label int32[batch] or f32[batch, classes] -> f32[batch]."""
  if label.ndim == 1:
    label = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
  if smoothing is not None:
    label = optax.smooth_labels(label, smoothing)
  return optax.softmax_cross_entropy(logits, label)


@LOSSES.register
def binary(logits, label, smoothing=None):
  """Sigmoid cross-entropy in nats. logits f32[batch, 1]; label int32[batch] in {0, 1}, or f32[batch, 2] -> f32[batch]."""
  positive = label.astype(logits.dtype) if label.ndim == 1 else label[:, 1]
  if smoothing is not None:
    positive = positive * (1 - smoothing) + smoothing / 2
  return optax.sigmoid_binary_cross_entropy(logits[:, 0], positive)


@LOSSES.register
def mse(outputs, label, smoothing=None):
  """Squared error. outputs f32[batch, 1]; label f32[batch] -> f32[batch]."""
  del smoothing  # targets are not classes
  return jnp.square(outputs[:, 0] - label)


def outputs_for(loss, num_classes):
  """How many outputs a network needs under a loss."""
  return num_classes if loss == 'cross_entropy' else 1
