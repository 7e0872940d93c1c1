"""Plain convolutional networks: convolutions and pools, dense layers, a head."""

import flax.linen as nn

from lepton_jax import layers
from lepton_jax.models import HEAD, head_init, scaled
from lepton_jax.registry import MODELS

POOL = 'pool'


class PlainCNN(nn.Module):
  """Convolutions and pools in the order of `plan`, then dense layers.

  `plan` holds a number of channels for each convolution and POOL for each 2x2 max pool. Dropout
  follows every dense layer.
  """
  plan: tuple[int | str, ...]
  dense: tuple[int, ...]
  outputs: int
  kernel: int = 3
  padding: str = 'SAME'
  activation: str = 'relu'
  conv_activation: bool = True
  norm: str = 'none'

  @nn.compact
  def __call__(self, x, training):
    activation = layers.ACTIVATIONS[self.activation]
    convolutions = 0
    for item in self.plan:
      if item == POOL:
        x = layers.max_pool(x)
        continue
      convolutions += 1
      x = layers.Conv(item, (self.kernel, self.kernel), padding=self.padding,
                      name=f'conv{convolutions}')(x)
      x = layers.make_norm(self.norm, name=f'norm{convolutions}')(x, training)
      if self.conv_activation:
        x = activation(x)
    x = x.reshape(x.shape[0], -1)
    for i, features in enumerate(self.dense):
      x = activation(layers.Dense(features, name=f'dense{i + 1}')(x))
      x = layers.Dropout()(x, training)
    return layers.Dense(self.outputs, kernel_init=head_init, name=HEAD)(x)


def _plain(plan, dense, outputs, width, **options):
  plan = tuple(item if item == POOL else scaled(item, width) for item in plan)
  return PlainCNN(plan, tuple(scaled(d, width) for d in dense), outputs, **options)


@MODELS.register
def lenet5(*, outputs, width=1.0, activation='relu', norm='none', dropout=0.0):
  """The LeNet-5 of Caffe, pruning's usual subject: 5x5 convolutions 20 and 50, dense 500.

  It has 431,080 parameters. As in Caffe's definition the convolutions are linear and only the pools
  make the network non-linear before the dense layers.
  """
  return _plain((20, POOL, 50, POOL), (500,), outputs, width, kernel=5, padding='VALID',
                activation=activation, norm=norm, conv_activation=False)


@MODELS.register
def cnn_mnist(*, outputs, width=1.0, activation='relu', norm='none', dropout=0.0):
  """3x3 convolutions 32, 64, each pooled, then dense 128."""
  return _plain((32, POOL, 64, POOL), (128,), outputs, width, activation=activation, norm=norm)


@MODELS.register
def cnn_cifar(*, outputs, width=1.0, activation='relu', norm='none', dropout=0.0):
  """Valid 3x3 convolutions 32, 64, 64 with two pools, dense 64: 122,570 parameters on 32x32x3."""
  return _plain((32, POOL, 64, POOL, 64), (64,), outputs, width, padding='VALID',
                activation=activation, norm=norm)


@MODELS.register
def cnn_64(*, outputs, width=1.0, activation='relu', norm='none', dropout=0.0):
  """One valid 3x3 convolution of 32, a pool, dense 128; made for 64x64x3 images."""
  return _plain((32, POOL), (128,), outputs, width, padding='VALID', activation=activation,
                norm=norm)


@MODELS.register
def cnn_binary(*, outputs=1, width=1.0, activation='relu', norm='none', dropout=0.5):
  """Valid 3x3 convolutions 32, 64, 128, each pooled, dense 128, one sigmoid logit.

  It is made for 150x150x3 photographs.
  """
  return _plain((32, POOL, 64, POOL, 128, POOL), (128,), outputs, width, padding='VALID',
                activation=activation, norm=norm)


@MODELS.register
def conv2(*, outputs, width=1.0, activation='relu', norm='none', dropout=0.0):
  """Conv-2 of the lottery ticket hypothesis (arXiv:1803.03635)."""
  return _plain((64, 64, POOL), (256, 256), outputs, width, activation=activation, norm=norm)


@MODELS.register
def conv4(*, outputs, width=1.0, activation='relu', norm='none', dropout=0.0):
  """Conv-4 of the lottery ticket hypothesis (arXiv:1803.03635)."""
  return _plain((64, 64, POOL, 128, 128, POOL), (256, 256), outputs, width, activation=activation,
                norm=norm)


@MODELS.register
def conv6(*, outputs, width=1.0, activation='relu', norm='none', dropout=0.0):
  """Conv-6 of the lottery ticket hypothesis (arXiv:1803.03635)."""
  return _plain((64, 64, POOL, 128, 128, POOL, 256, 256, POOL), (256, 256), outputs, width,
                activation=activation, norm=norm)
