"""Fully connected layer."""

import flax.linen as nn

from lepton_jax.layers import widths
from lepton_jax.layers.product import add_bias, product
from lepton_jax.precision import at_least_single


class Dense(nn.Module):
  """[..., in] -> [..., features], with parameters kernel[in, features] and bias[features].

  `batch_axis` changes nothing here; it says along which axis of x the examples lie. A layer that
  was factorised is two, down and up.
  """
  features: int
  use_bias: bool = True
  kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
  batch_axis: int = 0

  @nn.compact
  def __call__(self, x):
    features = widths.width(self.path, self.features)
    if rank := widths.width((*self.path, 'down'), 0):
      down = Dense(rank, False, batch_axis=self.batch_axis, name='down')
      return Dense(features, self.use_bias, self.kernel_init, self.bias_init, self.batch_axis,
                   name='up')(down(x))
    wide = at_least_single(x.dtype)
    kernel = self.param('kernel', self.kernel_init, (x.shape[-1], features), wide)
    y = product(x, kernel.astype(x.dtype))
    if self.use_bias:
      y = add_bias(y, self.param('bias', self.bias_init, (features,), wide))
    return y
