"""Networks of dense layers, from linear regression to LeNet-300-100."""

import flax.linen as nn

from lepton_jax import layers
from lepton_jax.models import HEAD, head_init, scaled
from lepton_jax.registry import MODELS


class DenseNetwork(nn.Module):
  """Flatten, dense layers with activation and dropout, a linear head."""
  hidden: tuple[int, ...]
  outputs: int
  activation: str = 'relu'

  @nn.compact
  def __call__(self, x, training):
    x = x.reshape(x.shape[0], -1)
    for i, features in enumerate(self.hidden):
      x = layers.ACTIVATIONS[self.activation](layers.Dense(features, name=f'dense{i + 1}')(x))
      x = layers.Dropout()(x, training)
    return layers.Dense(self.outputs, kernel_init=head_init, name=HEAD)(x)


@MODELS.register
def linear(*, outputs):
  """Linear or softmax regression."""
  return DenseNetwork((), outputs)


@MODELS.register
def mlp(*, outputs, width=1.0, depth=2, activation='relu', dropout=0.0):
  """`depth` hidden layers of 128 * width units."""
  return DenseNetwork((scaled(128, width),) * depth, outputs, activation)


@MODELS.register
def lenet_300_100(*, outputs, width=1.0, activation='relu', dropout=0.0):
  """LeNet-300-100 (LeCun et al. 1998): 266,610 parameters on 28x28 digits."""
  return DenseNetwork((scaled(300, width), scaled(100, width)), outputs, activation)
