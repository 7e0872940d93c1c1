"""What compression did to a network, in numbers."""

import jax
import numpy as np

from lepton_jax import trees
from lepton_jax.compress.prune import masks


def facts(compression, weights, hparams, config, macs):
  """Sparsity and bits of final weights, and what each kernel got or why it got nothing.

  `sparsity` counts zeros of the kernels that were pruned, or of all; `rounded_sparsity` after
  rounding, which makes zeros of small weights as well. `macs` are {kernel: multiply-accumulates of
  one example}; `nonzero_macs` are those whose weight is not zero.
  """
  rows = compression.kernels(trees.kernels(weights['params']), config)
  kept = counted = kernels_of(weights['params'])
  if compression.methods:
    kept, counted = (kernels_of(jax.jit(change)(weights, hparams)['params'])
                     for change in (compression.kept, compression.counted))
  ranked = [row['kernel'] for row in rows if 'pruned' in row] or list(kept)
  for row in rows:
    row['sparsity'] = masks.sparsity({0: kept[row['kernel']]})
    row['macs'] = macs[row['kernel']]
  left = sum(macs[name] * (1 - masks.sparsity({0: kernel})) for name, kernel in counted.items())
  bits = {row['kernel']: row['weight_bits'] for row in rows if 'weight_bits' in row}
  return dict(
      compression.describe(weights['params'], weights['held']), kernels=rows,
      sparsity=masks.sparsity({name: kept[name] for name in ranked}),
      rounded_sparsity=masks.sparsity({name: counted[name] for name in ranked}),
      quantized_kernels=len(bits), macs=sum(macs.values()), nonzero_macs=round(left))


def kernels_of(params):
  """{name: kernel} on the host."""
  return {n: np.asarray(leaf) for n, leaf in trees.named(params).items() if trees.is_kernel(n)}
