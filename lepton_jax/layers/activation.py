"""Non-linearities by name."""

import flax.linen as nn

ACTIVATIONS = dict(relu=nn.relu, gelu=nn.gelu, silu=nn.silu, tanh=nn.tanh, sigmoid=nn.sigmoid,
                   elu=nn.elu, leaky_relu=nn.leaky_relu)
