"""Layers of the models; each computes in the dtype of its input and keeps float32 parameters."""

from lepton_jax.layers.activation import ACTIVATIONS
from lepton_jax.layers.conv import Conv
from lepton_jax.layers.dense import Dense
from lepton_jax.layers.dropout import Dropout, StochasticDepth
from lepton_jax.layers.embed import Embed, exists
from lepton_jax.layers.mode import Training
from lepton_jax.layers.norm import make_norm
from lepton_jax.layers.pool import global_avg_pool, max_pool

__all__ = ('ACTIVATIONS', 'Conv', 'Dense', 'Dropout', 'Embed', 'StochasticDepth', 'Training',
           'exists', 'global_avg_pool', 'make_norm', 'max_pool')
