"""Low-rank factorisation: one layer becomes two narrower ones (arXiv:1404.0736).

A kernel, as a matrix of all inputs of an output, becomes the product of the two of rank r that are
nearest to it: a dense layer of r features and one that reads them, a convolution of r features and
a 1x1 convolution. They are layers like any other, to be trained on, pruned, rounded and packed.
"""

import numpy as np

from lepton_jax import trees
from lepton_jax.errors import UserError


def ranks(options, params, find_grouped):
  """{path of a layer: rank}; raises UserError where none would get smaller.

  `find_grouped` gives the paths of layers whose kernels see a part of the channels each.
  """
  if not options.factorize_rank and not options.factorize_energy:
    return {}
  if options.factorize_rank and options.factorize_energy:
    raise UserError(f'--factorize_rank={options.factorize_rank} --factorize_energy='
                    f'{options.factorize_energy}: one of them says how large ranks are')
  kernels = {name: leaf for name, leaf in trees.named(params).items() if trees.is_kernel(name)}
  excluded = trees.matching(options.factorize_exclude, list(kernels), 'factorize_exclude')
  open_to, grouped = {}, find_grouped()
  for name, leaf in kernels.items():
    path, _, kind = name.rpartition('/')
    if not (name in excluded or kind != 'kernel' or path in grouped
            or path.endswith(('/down', '/up'))):
      open_to[path] = matrix(leaf)
  gains = {path: np.square(np.linalg.svd(kernel, compute_uv=False).astype(np.float64))
           for path, kernel in open_to.items()}
  gains = {path: gain / max(gain.sum(), 1e-300) for path, gain in gains.items()}
  wanted = by_energy(options, gains) if options.factorize_energy else by_budget(
      options.factorize_rank, gains, open_to)
  found = {path: rank for path, rank in wanted.items()
           if rank * sum(open_to[path].shape) < open_to[path].size}
  if not found:
    raise UserError('--factorize_rank, --factorize_energy: at such ranks no layer gets smaller')
  return found


def by_energy(options, gains):
  """{path: the least rank that keeps a share of a kernel's squared singular values}."""
  return {path: min(int(np.searchsorted(np.cumsum(gain), options.factorize_energy)) + 1, gain.size)
          for path, gain in gains.items()}


def by_budget(share, gains, kernels):
  """{path: rank} that together keep most for a share of all parameters.

  Each further rank costs a row and a column, so the ones that keep most for a parameter are taken
  first; kernels that would not get smaller are whole.
  """
  left = share * sum(kernel.size for kernel in kernels.values())
  found = dict.fromkeys(kernels, 1)
  left -= sum(sum(kernel.shape) for kernel in kernels.values())
  steps = sorted(((gain / sum(kernels[path].shape), path) for path, own in gains.items()
                  for gain in own[1:]), reverse=True)
  for _, path in steps:
    rows, columns = kernels[path].shape
    cost = min(rows + columns, max(rows * columns - found[path] * (rows + columns), 0))
    if cost <= left:
      left -= cost
      found[path] += 1
  return found


def split(params, of):
  """Params with the two kernels of each layer in `of` ({path: rank}) in place of its one.

  Singular values are shared evenly, so that both kernels have weights of one size.
  """
  found = {}
  for name, leaf in trees.named(params).items():
    path, _, kind = name.rpartition('/')
    if path not in of:
      found[name] = leaf
    elif kind != 'kernel':
      found[f'{path}/up/{kind}'] = leaf
    else:
      rank, shape = of[path], leaf.shape
      left, values, right = np.linalg.svd(matrix(leaf), full_matrices=False)
      root = np.sqrt(values[:rank])
      found[f'{path}/down/kernel'] = (left[:, :rank] * root).reshape(*shape[:-1], rank)
      up = root[:, None] * right[:rank]
      found[f'{path}/up/kernel'] = up if len(shape) == 2 else up.reshape(1, 1, *up.shape)
  return trees.nest({name: np.asarray(leaf) for name, leaf in found.items()})


def widths(of):
  """The widths that a Network needs for layers of such ranks."""
  return {f'{path}/down': rank for path, rank in of.items()}


def matrix(kernel):
  return np.asarray(kernel, np.float32).reshape(-1, kernel.shape[-1])
