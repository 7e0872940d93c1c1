"""Architectures, one family a file.

A model is a registered function `name(*, outputs, ...options with the model's own defaults)` that
returns a Flax module called as `module(x, training)`: x[batch, ...] -> logits[batch, outputs], with
`training` a `layers.Training` or None. Nothing here knows of compression.
"""

import flax.linen as nn

# Every model's last layer: fine-tuning replaces it when the classes differ, and a small start keeps
# first losses near log(classes).
HEAD = 'head'
head_init = nn.initializers.lecun_normal()


def scaled(features, width):
  """`features` channels times a width factor, at least 1."""
  return max(1, round(features * width))
