"""Terms on a network's answers, one value an example.

Binary logits [batch, 1] count as two classes. As in the losses, answers at every step are averaged
over the steps whose label exists.
"""

import jax
import jax.numpy as jnp

from lepton_jax import losses


def confidence_penalty(logits, label):
  """Minus the entropy of the prediction, nats, f32[batch] (arXiv:1701.06548)."""
  log_p = log_probabilities(logits)
  return losses.over_steps(jnp.sum(jnp.exp(log_p) * log_p, -1), losses.exists(label))


def r_drop(logits, other, label):
  """Mean of both divergences between two predictions of one example, nats, f32[batch].

  The predictions differ in their dropout (arXiv:2106.14448).
  """
  p, q = log_probabilities(logits), log_probabilities(other)
  divergence = jnp.sum((jnp.exp(p) - jnp.exp(q)) * (p - q), -1) / 2
  return losses.over_steps(divergence, losses.exists(label))


def log_probabilities(logits):
  """Of all classes, in the shape [..., classes]."""
  if logits.shape[-1] == 1:
    return jnp.concatenate([jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)], -1)
  return jax.nn.log_softmax(logits)
