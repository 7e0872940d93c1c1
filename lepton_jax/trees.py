"""Pytrees of arrays by the names of their leaves: 'block1/conv/kernel'."""

import hashlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.errors import UserError


def name(path):
  """A jax key path as 'a/b/c'."""
  return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)


def named(tree):
  """{name: leaf}, in tree order."""
  return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(function, tree, *rest):
  """`jax.tree.map` whose function gets the leaf's name first."""
  named = lambda path, *leaves: function(name(path), *leaves)
  return jax.tree_util.tree_map_with_path(named, tree, *rest)


def nest(leaves):
  """{'a/b': leaf} as {'a': {'b': leaf}}."""
  tree = {}
  for leaf_name, leaf in leaves.items():
    *folders, last = leaf_name.split('/')
    branch = tree
    for folder in folders:
      branch = branch.setdefault(folder, {})
    branch[last] = leaf
  return tree


def is_kernel(leaf_name):
  """True for a layer's weights, which are decayed, penalised, pruned and quantised.

  False for biases and norms.
  """
  return leaf_name.rpartition('/')[2] in ('kernel', 'embedding')


def kernels(tree):
  """Names of all kernels, in tree order."""
  return [n for n in named(tree) if is_kernel(n)]


def matching(pattern, names, flag):
  """The set of `names` in which the regular expression is found; one that finds none is an error.

  An empty pattern is no rule at all and gives the empty set. `flag` is named in the error.
  """
  if not pattern:
    return set()
  try:
    found = {n for n in names if re.search(pattern, n)}
  except re.error as error:
    raise UserError(f'--{flag}={pattern!r} is not a regular expression: {error}') from None
  if not found:
    raise UserError(f'--{flag}={pattern!r} matches nothing. Paths: {", ".join(names)}')
  return found


def count(tree):
  """Number of array entries."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def global_norm(tree):
  """Euclidean norm over all leaves, as a scalar of their dtype."""
  return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def dot(one, two):
  """The sum of the products of all entries of two trees."""
  return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), one, two)))


def digest(tree):
  """sha256 of names, dtypes, shapes and bytes: equal exactly when two trees are bit-identical."""
  sha = hashlib.sha256()
  for leaf_name, leaf in sorted(named(tree).items()):
    array = np.ascontiguousarray(jax.device_get(leaf))
    sha.update(f'{leaf_name} {array.dtype} {array.shape} '.encode())
    sha.update(array.tobytes())
  return sha.hexdigest()
