"""Two-dimensional convolution, dense or depthwise."""

import flax.linen as nn

from lepton_jax.errors import UserError
from lepton_jax.layers import widths
from lepton_jax.layers.convolve import convolve
from lepton_jax.precision import at_least_single


class Conv(nn.Module):
  """[batch, height, width, in] -> [batch, height', width', features].

  Parameters: kernel[kernel height, kernel width, in / groups, features], bias[features].
  `groups` = in makes it depthwise. A layer that was factorised is two, down and up. Raises
  UserError if the image is smaller than the kernel.
  """
  features: int
  kernel_size: tuple[int, int] = (3, 3)
  strides: int = 1
  padding: str = 'SAME'
  groups: int = 1
  use_bias: bool = True
  kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

  @nn.compact
  def __call__(self, x):
    height, width = x.shape[1:3]
    if self.padding == 'VALID' and (height < self.kernel_size[0] or width < self.kernel_size[1]):
      raise UserError(
          f'{"/".join(self.path)}: a {self.kernel_size[0]}x{self.kernel_size[1]} convolution '
          f'without padding got a {height}x{width} image; use larger images (--image_size) or '
          f'another model')
    features = widths.width(self.path, self.features)
    if rank := widths.width((*self.path, 'down'), 0):
      down = Conv(rank, self.kernel_size, self.strides, self.padding, use_bias=False, name='down')
      return Conv(features, (1, 1), use_bias=self.use_bias, kernel_init=self.kernel_init,
                  name='up')(down(x))
    shape = (*self.kernel_size, x.shape[-1] // self.groups, features)
    kernel = self.param('kernel', self.kernel_init, shape, at_least_single(x.dtype))
    bias = None
    if self.use_bias:
      zeros = nn.initializers.zeros_init()
      bias = self.param('bias', zeros, (features,), at_least_single(x.dtype)).astype(x.dtype)
    return convolve(x, kernel.astype(x.dtype), bias, (self.strides, self.strides), self.padding,
                    self.groups)
