"""Residual networks (arXiv:1512.03385): the CIFAR family, MLPerf Tiny's ResNet-8, and ResNet-18."""

import flax.linen as nn
import jax.numpy as jnp

from lepton_jax import layers
from lepton_jax.models import HEAD, head_init, scaled
from lepton_jax.registry import MODELS


class Block(nn.Module):
  """Two 3x3 convolutions beside a shortcut.

  `shortcut` says how the shortcut changes shape: 'pad' subsamples and adds zero channels (option A,
  no parameters), 'conv' is a 1x1 convolution, 'conv_norm' a normalised one (option B). `depth` is
  the block's place among all, up to 1 for the last.
  """
  features: int
  strides: int
  activation: str
  norm: str
  shortcut: str
  use_bias: bool
  depth: float

  @nn.compact
  def __call__(self, x, training):
    activation = layers.ACTIVATIONS[self.activation]
    y = layers.Conv(self.features, strides=self.strides, use_bias=self.use_bias, name='conv1')(x)
    y = activation(layers.make_norm(self.norm, name='norm1')(y, training))
    y = layers.Conv(self.features, use_bias=self.use_bias, name='conv2')(y)
    y = layers.make_norm(self.norm, name='norm2')(y, training)
    y = layers.StochasticDepth(self.depth, name='branch')(y, training)
    return activation(y + self._shortcut(x, y.shape[-1], training))

  def _shortcut(self, x, features, training):
    if self.strides == 1 and x.shape[-1] == features:
      return x
    if self.shortcut == 'pad':
      extra = features - x.shape[-1]
      channels = (extra // 2, extra - extra // 2)
      return jnp.pad(x[:, ::self.strides, ::self.strides], ((0, 0), (0, 0), (0, 0), channels))
    x = layers.Conv(features, (1, 1), self.strides, use_bias=self.use_bias,
                    name='conv_shortcut')(x)
    if self.shortcut == 'conv_norm':
      x = layers.make_norm(self.norm, name='norm_shortcut')(x, training)
    return x


class ResNet(nn.Module):
  """A stem, stages of blocks, global average pool, head; stages after the first halve the image."""
  features: tuple[int, ...]
  blocks: tuple[int, ...]
  outputs: int
  activation: str = 'relu'
  norm: str = 'batch'
  shortcut: str = 'pad'
  use_bias: bool = False
  large_stem: bool = False

  @nn.compact
  def __call__(self, x, training):
    activation = layers.ACTIVATIONS[self.activation]
    if self.large_stem and x.shape[1] >= 64:  # ImageNet's stem; smaller images keep every position
      x = layers.Conv(self.features[0], (7, 7), 2, use_bias=self.use_bias, name='stem')(x)
      x = layers.max_pool(activation(layers.make_norm(self.norm, name='stem_norm')(x, training)))
    else:
      x = layers.Conv(self.features[0], use_bias=self.use_bias, name='stem')(x)
      x = activation(layers.make_norm(self.norm, name='stem_norm')(x, training))
    for stage, (features, blocks) in enumerate(zip(self.features, self.blocks)):
      for block in range(blocks):
        strides = 2 if stage > 0 and block == 0 else 1
        place = (sum(self.blocks[:stage]) + block + 1) / sum(self.blocks)
        x = Block(features, strides, self.activation, self.norm, self.shortcut, self.use_bias,
                  place, name=f'stage{stage + 1}_block{block + 1}')(x, training)
    x = layers.Dropout()(layers.global_avg_pool(x), training)
    return layers.Dense(self.outputs, kernel_init=head_init, name=HEAD)(x)


def _cifar(depth, outputs, width, activation, norm):
  features = tuple(scaled(f, width) for f in (16, 32, 64))
  return ResNet(features, (depth,) * 3, outputs, activation, norm)


@MODELS.register
def resnet8(*, outputs, width=1.0, depth=1, activation='relu', norm='batch', dropout=0.0,
            stochastic_depth=0.0):
  """MLPerf Tiny's image classifier (arXiv:2106.07597), with 1x1 convolutions as shortcuts.

  It has 77,706 weights and biases.
  """
  features = tuple(scaled(f, width) for f in (16, 32, 64))
  return ResNet(features, (depth,) * 3, outputs, activation, norm, 'conv', use_bias=True)


@MODELS.register
def resnet20(*, outputs, width=1.0, depth=3, activation='relu', norm='batch', dropout=0.0,
             stochastic_depth=0.0):
  """20 layers for CIFAR: 269,722 parameters; `depth` is blocks per stage."""
  return _cifar(depth, outputs, width, activation, norm)


@MODELS.register
def resnet32(*, outputs, width=1.0, depth=5, activation='relu', norm='batch', dropout=0.0,
             stochastic_depth=0.0):
  """32 layers for CIFAR: 464,154 parameters."""
  return _cifar(depth, outputs, width, activation, norm)


@MODELS.register
def resnet44(*, outputs, width=1.0, depth=7, activation='relu', norm='batch', dropout=0.0,
             stochastic_depth=0.0):
  """44 layers for CIFAR: 658,586 parameters."""
  return _cifar(depth, outputs, width, activation, norm)


@MODELS.register
def resnet56(*, outputs, width=1.0, depth=9, activation='relu', norm='batch', dropout=0.0,
             stochastic_depth=0.0):
  """56 layers for CIFAR: 853,018 parameters."""
  return _cifar(depth, outputs, width, activation, norm)


@MODELS.register
def resnet18(*, outputs, width=1.0, depth=2, activation='relu', norm='batch', dropout=0.0,
             stochastic_depth=0.0):
  """ResNet-18: ImageNet's 7x7 stem for images of 64 pixels and more, a 3x3 stem below."""
  features = tuple(scaled(f, width) for f in (64, 128, 256, 512))
  return ResNet(features, (depth,) * 4, outputs, activation, norm, 'conv_norm', large_stem=True)
