"""Convolutions over words, the baseline that recurrent networks are held against."""

import flax.linen as nn
import jax.numpy as jnp

from lepton_jax import layers
from lepton_jax.layers import recurrent
from lepton_jax.models import HEAD, head_init, scaled
from lepton_jax.registry import MODELS


class TextCNN(nn.Module):
  """Embedding, convolutions of several widths in parallel, maxima over time, dropout, a head."""
  features: int
  widths: tuple[int, ...]
  outputs: int
  vocabulary: int
  embedding: int = 128
  activation: str = 'relu'
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, training):
    valid = layers.exists(x)
    x = layers.Embed(self.vocabulary, self.embedding, self.dtype, name='embed')(x)
    # Padding must not leak into a window that reaches past the end.
    x = jnp.where(valid[..., None], x, jnp.zeros_like(x))
    found = []
    for width in self.widths:
      y = layers.Conv(self.features, (width, 1), name=f'conv{width}')(x[:, :, None])[:, :, 0]
      found.append(recurrent.pool_steps(layers.ACTIVATIONS[self.activation](y), valid, 'max'))
    x = layers.Dropout()(jnp.concatenate(found, -1), training)
    return layers.Dense(self.outputs, kernel_init=head_init, name=HEAD)(x)


@MODELS.register
def text_cnn(*, outputs, vocabulary, width=1.0, embedding=128, activation='relu', dropout=0.5,
             dtype='float32'):
  """Convolutions of 3, 4 and 5 words, 100 * width channels each (arXiv:1408.5882)."""
  return TextCNN(scaled(100, width), (3, 4, 5), outputs, vocabulary, embedding, activation, dtype)
