"""Sums, moments and norms that read an array once on a CPU."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax import trees
from lepton_jax.layers import platform
from lepton_jax.layers.native import call


def moments(x):
  """(mean, variance)[columns] of x[..., columns]."""
  if platform.native(x, half=False):
    return _moments(x)
  mean = _mean(x)
  # Two passes: a difference of large squares would lose the variance of a column far from zero.
  return mean, _mean(jnp.square(x - mean))


def scale_and_shift(x, factor, offset):
  """x[..., columns] * factor[columns] + offset[columns]."""
  if platform.native(x, half=False):
    return _scale_and_shift(x, factor, offset)
  return x * factor + offset


def products_and_sums(a, b):
  """(sum of a * b, sum of a)[columns] of a and b[..., columns]."""
  if platform.native(a, b, half=False):
    return _sums(a, b)
  axes = tuple(range(a.ndim - 1))
  return jnp.sum(a * b, axes), jnp.sum(a, axes)


def total(x):
  """The sum [columns] of x[..., columns] by the library of a CPU."""
  return _sums(x, x)[1]


def global_norm(tree):
  """`trees.global_norm`; it has no derivative."""
  leaves = jax.tree.leaves(tree)
  if not leaves or not platform.native(*leaves, half=False):
    return trees.global_norm(tree)
  names = ', '.join(f'n{i}x' for i in range(len(leaves)))
  squares = call.operation('squares', f'{names} -> one', lambda *_: ((1,),))
  return jnp.sqrt(squares(*(leaf.reshape(-1) for leaf in leaves))[0][0])


def _mean(x):
  """On a CPU as a product with ones, whose gradient XLA makes fast there."""
  flat = x.reshape(-1, x.shape[-1])
  total = jnp.ones((len(flat),), flat.dtype) @ flat if platform.own_forms() else jnp.sum(flat, 0)
  return total / len(flat)


@jax.custom_vjp
def _moments(x):
  return _operation('moments', x.ndim)(x)


def _moments_back(saved, g):
  x, mean = saved
  return ((g[0] + 2 * (x - mean) * g[1]) / (x.size // x.shape[-1]),)


def _moments_forward(x):
  mean, variance = _moments(x)
  return (mean, variance), (x, mean)


_moments.defvjp(_moments_forward, _moments_back)


@jax.custom_vjp
def _scale_and_shift(x, factor, offset):
  return x * factor + offset


_scale_and_shift.defvjp(lambda x, f, o: (_scale_and_shift(x, f, o), (x, f)),
                        lambda saved, g: (g * saved[1], *_sums(g, saved[0])))


@jax.custom_vjp
def _sums(a, b):
  """(sum of a * b, sum of a) of each column."""
  return _operation('column_sums', a.ndim)(a, b)


_sums.defvjp(lambda a, b: (_sums(a, b), (a, b)),
             lambda saved, g: (g[0] * saved[1] + g[1], g[0] * saved[0]))


@functools.cache
def _operation(name, rank):
  rows = ' '.join(f'b{i}' for i in range(rank - 1))
  results = lambda x, *_: (x.shape[-1:], x.shape[-1:])
  if name == 'moments':
    return call.operation(name, f'{rows} i -> i2, i3', results, combine=joined)
  return call.operation(name, f'{rows} i, {rows} i2 -> i3, i4', results)


def joined(found, axes):
  """(mean, variance) of all devices' rows from those of each, which has as many."""
  mean, variance = found
  whole = lax.pmean(mean, axes)
  return whole, lax.pmean(variance + jnp.square(mean - whole), axes)
