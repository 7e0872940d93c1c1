"""Fully connected layer."""

import flax.linen as nn
import jax.numpy as jnp


def param_dtype(x):
  """Parameters keep at least single precision, whatever the compute dtype."""
  return jnp.promote_types(x.dtype, jnp.float32)


class Dense(nn.Module):
  """[..., in] -> [..., features], with parameters kernel[in, features] and bias[features]."""
  features: int
  use_bias: bool = True
  kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', self.kernel_init, (x.shape[-1], self.features), param_dtype(x))
    y = x @ kernel.astype(x.dtype)
    if self.use_bias:
      y += self.param('bias', nn.initializers.zeros_init(), (self.features,), param_dtype(x)).astype(x.dtype)
    return y
