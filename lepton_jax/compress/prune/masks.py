"""Masks that zero an exact number of weights."""

import jax
import jax.numpy as jnp

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


def apply_masks(params, masks):
  """`params` with the masked entries at zero; `masks` is {leaf name: mask} and may leave leaves out."""
  return trees.map_named(lambda name, leaf: leaf * masks[name] if name in masks else leaf, params)


remask = jax.jit(global_masks)


def sparsity(params, names):
  """Share of exact zeros among the entries of the named kernels, 0 to 1."""
  chosen = [leaf for name, leaf in trees.named(params).items() if name in names]
  return float(sum(int((leaf == 0).sum()) for leaf in chosen) / max(trees.count(chosen), 1))
