"""Writes pruning.npz: what PyTorch's pruning leaves of some arrays, and LAMP by its definition.

Run with PyTorch installed (requirements-bench.txt): python -m tests.golden.make_pruning
"""

import pathlib

import numpy as np
import torch
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.utils import prune

SHAPES = dict(conv=(3, 3, 8, 16), dense=(64, 24), head=(24, 10))
SHARE = 0.7


def main():
  rng = np.random.default_rng(0)
  kernels = {name: (rng.normal(size=shape) * (1 + i)).astype(np.float32)
             for i, (name, shape) in enumerate(SHAPES.items())}
  found = {f'kernel/{name}': kernel for name, kernel in kernels.items()}
  for name, kernel in kernels.items():
    found[f'magnitude/{name}'] = unstructured(kernel)
    found[f'two_of_four/{name}'] = two_of_four(kernel)
    found[f'filters/{name}'] = filters(kernel)
  found |= {f'global/{name}': mask for name, mask in together(kernels).items()}
  found |= {f'lamp/{name}': mask for name, mask in lamp(kernels).items()}
  np.savez_compressed(pathlib.Path(__file__).parent / 'pruning.npz', **found)


def layer(kernel):
  """A dense layer of PyTorch, [out, in], whose rows are the outputs."""
  weight = np.moveaxis(kernel, -1, 0).reshape(kernel.shape[-1], -1)
  module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
  module.weight.data = torch.tensor(weight.copy())
  return module


def like(mask, kernel):
  """A mask [out, in] in the kernel's own order."""
  moved = np.asarray(mask).astype(bool).reshape(kernel.shape[-1], *kernel.shape[:-1])
  return np.moveaxis(moved, 0, -1)


def unstructured(kernel):
  module = layer(kernel)
  prune.l1_unstructured(module, 'weight', amount=round(SHARE * kernel.size))
  return like(module.weight_mask, kernel)


def filters(kernel):
  """Outputs that the lowest L1 norms leave, half of them."""
  module = layer(kernel)
  prune.ln_structured(module, 'weight', amount=kernel.shape[-1] // 2, n=1, dim=0)
  return like(module.weight_mask, kernel)


def together(kernels):
  modules = {name: layer(kernel) for name, kernel in kernels.items()}
  prune.global_unstructured([(module, 'weight') for module in modules.values()],
                            pruning_method=prune.L1Unstructured, amount=SHARE)
  return {name: like(module.weight_mask, kernels[name]) for name, module in modules.items()}


def two_of_four(kernel):
  """PyTorch's 2:4, along the inputs of each place of the kernel by itself."""
  flat = kernel.reshape(-1, *kernel.shape[-2:])
  mask = []
  for place in flat:
    module = torch.nn.Sequential(layer(place))
    sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4),
                                      zeros_per_block=2)
    sparsifier.prepare(module, [dict(tensor_fqn='0.weight')])
    sparsifier.step()
    mask.append(like(module[0].parametrizations.weight[0].mask, place))
  return np.stack(mask).reshape(kernel.shape)


def lamp(kernels):
  """arXiv:2010.07611, equation 3, one weight after the other."""
  scores = []
  for name, kernel in kernels.items():
    flat = kernel.ravel().astype(np.float64)
    for i, w in enumerate(flat):
      scores.append((w ** 2 / np.sum(flat[np.abs(flat) >= abs(w)] ** 2), name, i))
  scores.sort()
  found = {name: np.ones(kernel.size, bool) for name, kernel in kernels.items()}
  for _, name, i in scores[:round(SHARE * len(scores))]:
    found[name][i] = False
  return {name: mask.reshape(kernels[name].shape) for name, mask in found.items()}


if __name__ == '__main__':
  main()
