"""Noise on what a step reads, on weights and on gradients; every function takes a traced strength
and a key.
"""

import jax
import jax.numpy as jnp


def input_noise(inputs, examples, strength, key):
  """Normalised inputs[batch, ...] plus strength * N(0, 1) (Neural Comput. 7, 1995).

  Each example, by its place in the global batch, has noise of its own.
  """
  def draw(example):
    return jax.random.normal(jax.random.fold_in(key, example), inputs.shape[1:], inputs.dtype)

  return inputs + strength.astype(inputs.dtype) * jax.vmap(draw)(examples)


def weight_noise(kernels, strength, key):
  """{name: kernel} plus strength * N(0, 1), drawn anew at each step (Graves, NIPS 2011).

  It comes before rounding, and zeros, as pruned entries are, stay.
  """
  def noisy(kernel, own):
    change = strength.astype(kernel.dtype) * jax.random.normal(own, kernel.shape, kernel.dtype)
    return kernel + jnp.where(kernel == 0, 0, change)

  return {name: noisy(kernel, own) for name, kernel, own in keyed(kernels, key)}


def drop_connect(kernels, rate, key):
  """{name: kernel} with single weights at zero at the rate (Wan et al., ICML 2013).

  The others are scaled to keep the mean; one mask a step. It comes before rounding.
  """
  keep = 1 - rate

  def dropped(kernel, own):
    kept = jax.random.uniform(own, kernel.shape, jnp.float32) < keep.astype(jnp.float32)
    return jnp.where(kept, kernel / keep.astype(kernel.dtype), 0)

  return {name: dropped(kernel, own) for name, kernel, own in keyed(kernels, key)}


def gradient_noise(gradients, strength, step, key):
  """Gradients plus N(0, strength^2 / (1 + step)^0.55), fading as the paper's (arXiv:1511.06807)."""
  leaves, tree = jax.tree.flatten(gradients)
  deviation = strength * (1 + step.astype(strength.dtype)) ** -0.275
  noisy = [leaf + deviation.astype(leaf.dtype) * jax.random.normal(jax.random.fold_in(key, i),
                                                                   leaf.shape, leaf.dtype)
           for i, leaf in enumerate(leaves)]
  return jax.tree.unflatten(tree, noisy)


def keyed(kernels, key):
  """(name, kernel, key of its own) of each, whatever the order they come in."""
  return [(name, kernels[name], jax.random.fold_in(key, i))
          for i, name in enumerate(sorted(kernels))]
