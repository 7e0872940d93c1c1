"""Batches as a pure function of (seed, step): nothing to save, nothing to lose on resume."""

import functools

import numpy as np

from lepton_jax.errors import UserError


class Batches:
  """Training batches of one split.

  Every epoch visits each example at most once in an order of its own; the few that do not fill a
  last batch sit that epoch out. `pairs` adds a second, independently drawn example to each place
  for augmentations that mix two.
  """

  def __init__(self, inputs, label, batch_size, seed, pairs=False):
    if batch_size > len(label):
      raise UserError(f'--batch_size={batch_size}: there are only {len(label)} training examples')
    self._inputs, self._label = inputs, label
    self.batch_size, self._seed, self._pairs = batch_size, seed, pairs
    self.steps_per_epoch = len(label) // batch_size

  @functools.lru_cache(maxsize=4)
  def _order(self, epoch, stream):
    return np.random.Generator(np.random.Philox(key=[self._seed, 2 * epoch + stream])).permutation(len(self._label))

  def at(self, step, rows=slice(None)):
    """The batch of a step, or the given rows of it (a process's share).

    Returns inputs[b, ...], label[b], example int32[b] (place in the global batch), and with `pairs`
    other_inputs, other_label.
    """
    epoch, place = divmod(step, self.steps_per_epoch)
    window = slice(place * self.batch_size, (place + 1) * self.batch_size)
    chosen = self._order(epoch, 0)[window][rows]
    batch = dict(inputs=self._inputs[chosen], label=self._label[chosen], example=np.arange(self.batch_size, dtype=np.int32)[rows])
    if self._pairs:
      other = self._order(epoch, 1)[window][rows]
      batch.update(other_inputs=self._inputs[other], other_label=self._label[other])
    return batch


def passes(inputs, label, batch_size, rows=slice(None)):
  """Yields one pass over a split in order, in equal batches whose last is padded; `weight` f32[b] is 0 on padding.

  Padding repeats the first examples, so that no layer ever sees an input out of range.
  """
  for start in range(0, len(label), batch_size):
    index = np.arange(start, start + batch_size)
    weight = (index < len(label)).astype(np.float32)
    chosen = (index % len(label))[rows]
    yield dict(inputs=inputs[chosen], label=label[chosen], weight=weight[rows])
