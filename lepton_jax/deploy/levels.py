"""Weights as levels: found where they are on some already, chosen where they are not."""

import numpy as np

from lepton_jax.deploy import container
from lepton_jax.deploy.container import Packed

MOST = 2 ** 15 - 1  # levels of a sign
SAMPLE = 4096  # entries whose variety tells whether weights are on levels
CLOSE = 1e-3  # of a step: how far a weight that is on a level lies from it by rounding errors
NORMAL = 1e-4, 6e4  # between these a float16 has all its digits


def of_kernel(kernel, bits, rounded_before=False):
  """The Packed form of f32[..., out]: the levels that it has, or else 2^bits - 1 of each output.

  With 0 bits a kernel that was not rounded before stays as it is, to the last bit.
  """
  for find in (of_signs, of_all, of_outputs, of_rows, codebook) if bits or rounded_before else ():
    if (found := find(kernel)) is not None:
      return found
  if bits:
    return rounded(kernel, bits, tuple(range(kernel.ndim - 1)))
  there = kernel != 0
  if there.mean() > 0.95:
    return Packed(container.FLOAT32, kernel)
  return Packed(container.SPARSE, kernel[there], there.astype(np.int32))


def of_steps(kernel, step):
  """Packed levels of a kernel whose entries are multiples of a step that broadcasts against it."""
  levels = np.round(kernel / step).astype(np.int32)
  if step.size == 1:
    return Packed(container.LEVELS, step.reshape(1).astype(np.float32), levels)
  if step.shape[-1] == step.size:
    return scaled(step.ravel(), levels)
  return Packed(container.ROWS, step.ravel().astype(np.float32), levels)


def of_signs(kernel):
  """Packed signs where outputs have a negative and a positive value of another size each, or None.

  Where all outputs have the same two, a codebook says them once.
  """
  columns = kernel.reshape(-1, kernel.shape[-1])
  if len(columns) < 8:  # a few weights always have few values
    return None
  negative, positive = (np.maximum(sign * columns, 0).max(0) for sign in (-1, 1))
  signs = np.sign(columns).astype(np.int32)
  if not np.array_equal(columns, np.where(signs < 0, -negative, positive) * np.abs(signs)):
    return None
  scales = np.stack([negative, positive])
  both = scales[:, (negative > 0) & (positive > 0)]
  there = scales[scales > 0]
  if not both.size or (both[0] == both[1]).all() or not np.ptp(both, 1).any():
    return None
  if not NORMAL[0] < there.min() <= there.max() < NORMAL[1]:
    return None
  return Packed(container.SIGNS, scales.astype(np.float16), signs.reshape(kernel.shape))


def of_all(kernel):
  """Packed levels of one distance, or None."""
  found = on_levels(kernel.reshape(-1, 1))
  return found and Packed(container.LEVELS, found[0], found[1].reshape(kernel.shape))


def of_outputs(kernel):
  """Packed levels of a distance for each output, or None."""
  found = on_levels(kernel.reshape(-1, kernel.shape[-1]))
  return found and scaled(found[0], found[1].reshape(kernel.shape))


def of_rows(kernel):
  """Packed levels of a distance for each row of a table, or None."""
  if kernel.ndim != 2:
    return None
  found = on_levels(kernel.T)
  return found and Packed(container.ROWS, found[0].astype(np.float32), found[1].T)


def scaled(scale, levels):
  """Packed levels with the scales of outputs in float16, or float32 where those would not do."""
  if not NORMAL[0] < scale.min() <= scale.max() < NORMAL[1]:
    return Packed(container.CHANNELS32, scale.astype(np.float32), levels)
  return Packed(container.CHANNELS, scale.astype(np.float16), levels)


def on_levels(columns):
  """(f32[columns] distances, i32 levels) of columns of weights at equal distances from zero, or
  None.
  """
  some = range(0, columns.shape[1], max(1, columns.shape[1] // 3))
  if any(distance(columns[:SAMPLE, i]) is None for i in some):
    return None
  found = [distance(columns[:, i]) for i in range(columns.shape[1])]
  if any(one is None for one in found):
    return None
  scale = np.array(found, np.float32)
  return scale, np.round(columns / scale).astype(np.int32)


def distance(weights):
  """The distance of the levels that f32[n] weights are on, 1 if all are zero, or None."""
  values = np.unique(np.abs(weights))
  values = values[values > 0].astype(np.float64)
  if not values.size:
    return 1.0
  if values.size > MOST or 4 * values.size > weights.size:
    return None  # a few weights are always on some levels
  top = values[-1]
  # The smallest gap is one step where all levels occur, and few where they do not.
  gap = np.diff(values, prepend=0.0).min()
  for divisor in (1, 2, 3, 4, 5, 6, 7):
    steps = round(top / gap * divisor)
    if not values.size <= steps <= MOST:
      continue
    at = values * (steps / top)
    if np.abs(at - np.round(at)).max() < CLOSE * max(1, steps / 128):
      return top / steps
  return None


def rounded(array, bits, axes):
  """Uniform levels up to the largest entry; over `axes` each output has a scale of its own."""
  most = 2 ** (bits - 1) - 1
  scale = np.abs(array).max(axes or None) / most
  if axes:
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    found = scaled(scale, None)
    levels = np.clip(np.round(array / found.numbers.astype(np.float32)), -most, most)
    return found._replace(levels=levels.astype(np.int32))
  scale = np.float32(scale) if scale > 0 else np.float32(1)
  levels = np.clip(np.round(array / scale), -most, most)
  return Packed(container.LEVELS, np.array([scale], np.float32), levels.astype(np.int32))


def codebook(kernel):
  """Packed levels of any distances if the kernel has few values, or None.

  With a scale of each output or without one, whichever takes fewer bits.
  """
  largest = np.abs(kernel.reshape(-1, kernel.shape[-1])).max(0)
  if not NORMAL[0] < largest.max() < NORMAL[1]:
    return None
  scale = np.where(largest > 0, largest, 1).astype(np.float16)
  found = [one for one in (with_codebook(kernel, None), with_codebook(kernel, scale)) if one]
  error = lambda one: np.abs(container.value(one, kernel.shape) - kernel).max()
  near = [one for one in found if error(one) < 2e-3 * largest.max()]
  return min(near, key=bits_of, default=None)


def with_codebook(kernel, scale, most=255):
  """The Packed levels in multiples of `scale`, f16[out] or None; None for more than `most` values.
  """
  relative = kernel if scale is None else kernel / scale.astype(np.float32)
  # Multiples are as exact as their scale.
  near = np.round(relative / (1e-6 * np.abs(relative).max() if scale is None else 1 / 2048))
  if np.unique(near.ravel()[:SAMPLE]).size > most:
    return None
  values, index = np.unique(near, return_inverse=True)
  if values.size > min(most, kernel.size // 4):
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

  A weight takes, of its level and those of the next one towards zero and zero that take fewer bits,
  the one with the least (error in steps)^2 + rate * bits, as in DeepCABAC (arXiv:1907.11900); bits
  are estimated from how often entries of its row and its output are not zero, and how often a size
  occurs. `exact` is the kernel before rounding.
  """
  if not rate or packed.kind == container.SPARSE or packed.levels is None or (
      not packed.levels.any()):
    return packed
  value = lambda levels: container.value(packed._replace(levels=levels), exact.shape)
  levels = packed.levels
  step = np.abs(value(levels)).sum() / np.abs(levels).sum()  # a mean one, of a codebook
  if packed.kind in (container.LEVELS, container.CHANNELS, container.CHANNELS32):
    step = packed.numbers.astype(np.float32)
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
    bits = np.stack([np.where(level == 0, of_zero, of_other + of_size[np.abs(level)])
                     for level in choices])
    error = np.stack([np.square((exact - value(level)) / step) for level in choices])
    # Of levels that were not the nearest ones a lower one may err less and yet take more bits.
    saves = bits < bits[0]
    saves[0] = True
    cost = np.where(saves, error + rate * bits, np.inf)
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
