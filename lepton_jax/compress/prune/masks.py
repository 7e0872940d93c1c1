"""Masks that zero an exact number of weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import trees


def global_masks(scores, count):
  """{name: mask of 0 and 1 like scores[name]} with the `count` lowest scores of all layers together at 0.

  `count` is an int32[] and may be traced: one compile serves every sparsity. Among equal scores the
  first by name order and position go, so the count is exact under ties.
  """
  names = list(scores)
  flat = jnp.concatenate([scores[n].ravel() for n in names])
  order = jnp.argsort(flat, stable=True)
  kept = jnp.zeros(flat.shape, jnp.bool_).at[order].set(jnp.arange(flat.size, dtype=jnp.int32) >= count)
  masks, start = {}, 0
  for n in names:
    masks[n] = kept[start:start + scores[n].size].reshape(scores[n].shape).astype(scores[n].dtype)
    start += scores[n].size
  return masks


@jax.jit
def apply_masks(params, masks):
  """`params` with the masked entries at zero; `masks` is {leaf name: mask} and may leave leaves out."""
  return trees.map_named(lambda name, leaf: leaf * masks[name] if name in masks else leaf, params)


@functools.partial(jax.jit, static_argnames='score')
def remask(kernels, count, score):
  """The global_masks of {name: kernel} by a registered score."""
  return global_masks(score(kernels), count)


def sparsity(params, names):
  """Share of exact zeros among the entries of the named kernels, 0 to 1."""
  chosen = {name: leaf for name, leaf in trees.named(params).items() if name in names}
  return zeros(chosen.values()) / max(trees.count(chosen), 1)


def zeros(arrays):
  """How many entries are exactly zero; counted on the host, where nothing is compiled for each shape."""
  return sum(int((np.asarray(array) == 0).sum()) for array in arrays)
