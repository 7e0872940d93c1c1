"""Terms on a network's answers, one value an example; binary logits [batch, 1] count as two classes."""

import jax
import jax.numpy as jnp


def confidence_penalty(logits):
  """Minus the entropy of the prediction, nats, f32[batch] (arXiv:1701.06548)."""
  log_p = log_probabilities(logits)
  return _over_rest(jnp.sum(jnp.exp(log_p) * log_p, -1))


def r_drop(logits, other):
  """Mean of both divergences between two predictions of one example under different dropout, nats, f32[batch] (arXiv:2106.14448)."""
  p, q = log_probabilities(logits), log_probabilities(other)
  return _over_rest(jnp.sum((jnp.exp(p) - jnp.exp(q)) * (p - q), -1) / 2)


def log_probabilities(logits):
  """Of all classes, in the shape [..., classes]."""
  if logits.shape[-1] == 1:
    return jnp.concatenate([jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)], -1)
  return jax.nn.log_softmax(logits)


def _over_rest(values):
  """The mean of [batch, ...] over all but the first axis."""
  return jnp.mean(values.reshape(values.shape[0], -1), -1)
