"""Spatial dropout: whole feature maps of any model's convolutions, without a line in the model."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lepton_jax import layers


def spatial_dropout(training, rate):
  """A context in which each convolution's maps are zeroed at the rate, per example, the rest scaled to keep the mean (arXiv:1411.4280)."""
  def intercept(call, arguments, named, context):
    y = call(*arguments, **named)
    if not isinstance(context.module, layers.Conv) or context.method_name != '__call__':
      return y
    key, keep = context.module.make_rng('dropout'), 1 - rate
    draw = jax.vmap(lambda example: jax.random.uniform(jax.random.fold_in(key, example), y.shape[-1:], jnp.float32))(training.example)
    return jnp.where((draw < keep.astype(jnp.float32))[:, None, None], y / keep.astype(y.dtype), jnp.zeros_like(y))

  return nn.intercept_methods(intercept)
