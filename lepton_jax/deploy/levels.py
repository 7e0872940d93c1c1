"""Weights as levels: found where they are on some already, chosen where they are not."""

import numpy as np

from lepton_jax.deploy import container
from lepton_jax.deploy.container import Packed

SAMPLE = 4096  # entries whose variety tells whether a kernel is on levels
CLOSE = 2e-4  # of a step: how far a weight that is on a level lies from it by rounding errors


def of_kernel(kernel, bits):
  """The Packed form of f32[..., out]: the levels that it has, or else 2^bits - 1 of each output.

  With 0 bits what is on no levels stays as it is, to the last bit.
  """
  if np.unique(kernel.ravel()[:SAMPLE]).size <= SAMPLE // 2 or kernel.size < SAMPLE:
    for found in (uniform(kernel, ()), uniform(kernel, tuple(range(kernel.ndim - 1))),
                  codebook(kernel)):
      if found is not None:
        return found
  if bits:
    return rounded(kernel, bits, tuple(range(kernel.ndim - 1)))
  there = kernel != 0
  if there.mean() > 0.95:
    return Packed(container.FLOAT32, kernel)
  return Packed(container.SPARSE, kernel[there], there.astype(np.int32))


def rounded(array, bits, axes):
  """Uniform levels up to the largest entry; over `axes` each output has a scale of its own."""
  most = 2 ** (bits - 1) - 1
  scale = np.abs(array).max(axes or None) / most
  if axes:
    scale = scale.astype(np.float16)
    scale = np.where(scale > 0, scale, np.float16(6e-8))  # the least that there is
    levels = np.clip(np.round(array / scale.astype(np.float32)), -most, most)
    return Packed(container.CHANNELS, scale, levels.astype(np.int32))
  scale = np.float32(scale) if scale > 0 else np.float32(1)
  levels = np.clip(np.round(array / scale), -most, most)
  return Packed(container.LEVELS, np.array([scale], np.float32), levels.astype(np.int32))


def uniform(kernel, axes, most=127):
  """Packed levels of equal distances if the kernel is on at most `most` of each sign, or None.

  With `axes` each output has its own distance.
  """
  flat = kernel.reshape(-1, kernel.shape[-1] if axes else kernel.size) if axes else (
      kernel.reshape(-1, 1))
  largest = np.abs(flat).max(0)
  scale = np.zeros_like(largest)
  for i, top in enumerate(largest):
    values = np.unique(np.abs(flat[:, i]))
    values = values[values > 0]
    if values.size > most:
      return None
    if not values.size:
      continue
    for steps in range(values.size, most + 1):
      at = values * (steps / top)
      if np.abs(at - np.round(at)).max() < CLOSE * max(1, steps / 8):
        scale[i] = top / steps
        break
    else:
      return None
  safe = np.where(scale > 0, scale, 1)
  levels = np.round(flat / safe).astype(np.int32).reshape(kernel.shape)
  if axes:
    return Packed(container.CHANNELS, safe.astype(np.float16), levels)
  return Packed(container.LEVELS, safe.astype(np.float32), levels)


def codebook(kernel):
  """Packed levels of any distances if the kernel has few values, or None.

  With a scale of each output or without one, whichever takes fewer bits.
  """
  largest = np.abs(kernel.reshape(-1, kernel.shape[-1])).max(0)
  scale = np.where(largest > 0, largest, 1).astype(np.float16)
  found = [one for one in (with_codebook(kernel, None), with_codebook(kernel, scale)) if one]
  return min(found, key=bits_of, default=None)


def with_codebook(kernel, scale, most=255):
  """The Packed levels in multiples of `scale`, f16[out] or None; None for more than `most` values.
  """
  relative = kernel if scale is None else kernel / scale.astype(np.float32)
  # Multiples are as exact as their scale.
  near = np.round(relative, 6) if scale is None else np.round(relative * 2048)
  values, index = np.unique(near, return_inverse=True)
  if values.size > most:
    return None
  counts = np.bincount(index.ravel())
  means = np.bincount(index.ravel(), relative.ravel().astype(np.float64)) / counts
  means[values == 0] = 0
  negative, zero = int((values < 0).sum()), bool((values == 0).any())
  # Level 0 is zero, whether a weight has it or not.
  table = means if zero else np.insert(means, negative, 0.0)
  place = np.arange(values.size) - negative + (0 if zero else values > 0)
  kind = container.CODEBOOK if scale is None else container.CHANNEL_CODEBOOK
  return Packed(kind, np.zeros(0, np.float16) if scale is None else scale,
                place[index.ravel()].reshape(kernel.shape).astype(np.int32),
                (table.astype(np.float16), negative))


def bits_of(packed):
  """About how many bits a file spends on it: its numbers, and the entropy of its levels."""
  _, counts = np.unique(packed.levels, return_counts=True)
  entropy = -np.sum(counts * np.log2(counts / packed.levels.size))
  return entropy + 16 * (packed.numbers.size + packed.codebook[0].size)


def cheaper(packed, exact, rate, rounds=3):
  """Lower levels where they cost few bits more than they err: rate-distortion optimisation.

  A weight takes, of its level, the next one towards zero and zero, the one with the least
  (error in steps)^2 + rate * bits, as in DeepCABAC (arXiv:1907.11900); bits are estimated from how
  often entries of its row and its output are not zero, and how often a size occurs. `exact` is the
  kernel before rounding.
  """
  if not rate or packed.levels is None or not packed.levels.any():
    return packed
  value = lambda levels: container.value(packed._replace(levels=levels), exact.shape)
  levels = packed.levels
  step = np.abs(value(levels)).sum() / np.abs(levels).sum()  # a mean one, of a codebook
  if packed.kind != container.CODEBOOK and packed.codebook is None:
    step = np.where(packed.numbers > 0, packed.numbers, 1).astype(np.float32)
  for _ in range(rounds):
    matrix = (levels != 0).reshape(-1, levels.shape[-1])
    odds = lambda share: np.log((share + 1e-3) / (1 - share + 1e-3))
    logit = odds(matrix.mean(1, keepdims=True)) + odds(matrix.mean(0)) - odds(matrix.mean())
    logit = logit.reshape(levels.shape)
    of_zero = np.logaddexp(0, logit) / np.log(2)
    of_other = np.logaddexp(0, -logit) / np.log(2) + 1  # and a sign
    counts = np.bincount(np.abs(levels).ravel())[1:] + 1.0
    of_size = np.concatenate([[0], -np.log2(counts / counts.sum())])
    choices = np.stack([levels, levels - np.sign(levels), np.zeros_like(levels)])
    cost = [np.square((exact - value(level)) / step) + rate * np.where(
        level == 0, of_zero, of_other + of_size[np.abs(level)]) for level in choices]
    levels = np.take_along_axis(choices, np.argmin(cost, 0)[None], 0)[0]
  return packed._replace(levels=levels.astype(np.int32))


def of_numbers(array, bits):
  """The Packed form of biases and the like: one value, rounded ones, or float16.

  With None for bits they stay as they are.
  """
  if array.size and np.all(array == array.flat[0]):
    return Packed(container.CONSTANT, np.array([array.flat[0]], np.float32))
  if bits and array.ndim == 1 and array.size > 8:
    return rounded(array, bits, ())
  if bits is not None and np.abs(array).max(initial=0) < 60000 and array.size > 2:
    return Packed(container.FLOAT16, array.astype(np.float16))
  return Packed(container.FLOAT32, array.astype(np.float32))
