"""Networks of depthwise separable convolutions, for phones and microcontrollers."""

import flax.linen as nn

from lepton_jax import layers
from lepton_jax.models import HEAD, head_init, scaled
from lepton_jax.registry import MODELS


class SeparableCNN(nn.Module):
  """A full convolution, then separable blocks of (channels, strides), global average pool, head."""
  stem: int
  stem_kernel: tuple[int, int]
  blocks: tuple[tuple[int, int], ...]
  outputs: int
  activation: str = 'relu'
  norm: str = 'batch'
  use_bias: bool = False

  @nn.compact
  def __call__(self, x, training):
    def finish(y, name):
      y = layers.make_norm(self.norm, name=name)(y, training)
      return layers.ACTIVATIONS[self.activation](y)

    x = layers.Conv(self.stem, self.stem_kernel, 2, use_bias=self.use_bias, name='stem')(x)
    x = finish(x, 'stem_norm')
    for i, (features, strides) in enumerate(self.blocks, start=1):
      channels = x.shape[-1]
      x = layers.Conv(channels, (3, 3), strides, groups=channels, use_bias=self.use_bias,
                      name=f'depthwise{i}')(x)
      x = finish(x, f'depthwise{i}_norm')
      x = layers.Conv(features, (1, 1), use_bias=self.use_bias, name=f'pointwise{i}')(x)
      x = finish(x, f'pointwise{i}_norm')
    x = layers.Dropout()(layers.global_avg_pool(x), training)
    return layers.Dense(self.outputs, kernel_init=head_init, name=HEAD)(x)


# Channels and strides after the stem, table 1 of arXiv:1704.04861.
MOBILENET_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5,
                (1024, 2), (1024, 1))


@MODELS.register
def mobilenet_v1(*, outputs, width=1.0, activation='relu', norm='batch', dropout=0.0):
  """MobileNet (arXiv:1704.04861); `width` is the paper's alpha.

  It has 4,231,976 parameters at 1,000 classes, running averages aside.
  """
  blocks = tuple((scaled(features, width), strides) for features, strides in MOBILENET_V1)
  return SeparableCNN(scaled(32, width), (3, 3), blocks, outputs, activation, norm)


@MODELS.register
def ds_cnn(*, outputs, width=1.0, depth=4, activation='relu', norm='batch', dropout=0.2):
  """Keyword spotting network of MLPerf Tiny (arXiv:1711.07128): 49x10x1 spectrograms, 12 words."""
  features = scaled(64, width)
  return SeparableCNN(features, (10, 4), ((features, 1),) * depth, outputs, activation, norm,
                      use_bias=True)
