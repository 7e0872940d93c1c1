"""Normalisation layers, chosen by name."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from lepton_jax.layers import columns
from lepton_jax.precision import at_least_single


class BatchNorm(nn.Module):
  """Batch normalisation over all but the last axis (arXiv:1502.03167).

  The statistics are in float32 at least.

  Parameters scale, bias; running averages mean, var in collection 'batch_stats'. Under pmap the
  statistics are averaged over `training.axis`, so that every device normalises alike.
  """
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x, training):
    dtype, shape = at_least_single(x.dtype), (x.shape[-1],)
    scale = self.param('scale', nn.initializers.ones_init(), shape, dtype)
    bias = self.param('bias', nn.initializers.zeros_init(), shape, dtype)
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, dtype)
    running_var = self.variable('batch_stats', 'var', jnp.ones, shape, dtype)
    wide = x.astype(dtype)
    if training is None:
      mean, var = running_mean.value, running_var.value
    else:
      mean, var = columns.moments(wide)
      if training.axis is not None:
        mean, var = columns.joined((mean, var), training.axis)
      if not self.is_initializing():
        running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
        running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
    factor = scale * lax.rsqrt(var + self.epsilon)
    # One product and one sum. Far from zero they cancel in part, which loses some of the distances
    # between two numbers there; to subtract the mean first took an eighth more of a ResNet's step.
    return columns.scale_and_shift(wide, factor, bias - mean * factor).astype(x.dtype)


class GroupNorm(nn.Module):
  """Group normalisation (arXiv:1803.08494).

  It has the largest number of groups up to 8 that divides the channels.
  """

  @nn.compact
  def __call__(self, x, training):
    del training
    groups = next(g for g in range(8, 0, -1) if x.shape[-1] % g == 0)
    return nn.GroupNorm(groups, param_dtype=at_least_single(x.dtype), dtype=x.dtype)(x)


class LayerNorm(nn.Module):
  """Layer normalisation over the last axis (arXiv:1607.06450)."""

  @nn.compact
  def __call__(self, x, training):
    del training
    return nn.LayerNorm(param_dtype=at_least_single(x.dtype), dtype=x.dtype)(x)


class NoNorm(nn.Module):
  """The identity, so that models read the same with and without normalisation."""

  def __call__(self, x, training):
    del training
    return x


NORMS = dict(batch=BatchNorm, group=GroupNorm, layer=LayerNorm, none=NoNorm)


def make_norm(kind, name=None):
  """A normalisation layer `f(x, training)` of the kind 'batch', 'group', 'layer' or 'none'."""
  return NORMS[kind](name=name)
