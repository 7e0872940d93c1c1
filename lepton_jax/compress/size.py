"""How large a network would be in a file: an estimate, before there is one."""

import numpy as np

FLOAT_BITS, SCALE_BITS = 32, 32


def estimate(kernels, bits, others, ranges):
  """Bytes of a network as a dense or a sparse file would hold it, the smaller for each kernel.

  A dense kernel takes its bits an entry. A sparse one takes them for its entries that are not zero,
  and one bit an entry for where those are. A rounded kernel has a scale of 32 bits an output
  channel. Headers, and what a coder could still save, are left out.

  Args:
    kernels: {name: kernel as it counts, rounded}.
    bits: {name: bits of an entry}; a kernel that is not there has 32.
    others: how many other numbers there are (biases, norms, running averages), 32 bits each.
    ranges: how many layers' inputs are rounded; each has two numbers of 32 bits.
  """
  total = FLOAT_BITS * (others + 2 * ranges)
  for name, kernel in kernels.items():
    width = bits.get(name, FLOAT_BITS)
    total += min(kernel.size * width, int(np.count_nonzero(kernel)) * width + kernel.size)
    total += SCALE_BITS * kernel.shape[-1] if name in bits else 0
  return -(-total // 8)
