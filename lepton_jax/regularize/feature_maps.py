"""Spatial dropout: whole feature maps of any model's convolutions, without a line in the model."""

import flax.linen as nn

from lepton_jax import layers
from lepton_jax.layers import dropout


def spatial_dropout(training, rate):
  """A context that zeroes feature maps of each convolution at the rate, example by example.

  The maps that are left are scaled to keep the mean (arXiv:1411.4280).
  """
  def intercept(call, arguments, named, context):
    y = call(*arguments, **named)
    if not isinstance(context.module, layers.Conv) or context.method_name != '__call__':
      return y
    return dropout.drop(y, rate, (1, 1, y.shape[-1]), training.example,
                        context.module.make_rng('dropout'))

  return nn.intercept_methods(intercept)
