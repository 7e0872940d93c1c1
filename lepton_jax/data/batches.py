"""Batches as a pure function of (seed, step): nothing to save, nothing to lose on resume."""

import functools

import numpy as np

from lepton_jax.data import text
from lepton_jax.errors import UserError


@functools.lru_cache(maxsize=8)
def shuffled(size, seed, stream):
  """A permutation of 0 to size - 1, of its own for each (seed, stream)."""
  return np.random.Generator(np.random.Philox(key=[seed, stream])).permutation(size)


class Batches:
  """Training batches of one split.

  Every epoch visits each example at most once in an order of its own; the few that do not fill a
  last batch sit that epoch out. `pairs` adds a second, independently drawn example to each place
  for augmentations that mix two; `more` is {name: array [n, ...]} beside inputs and labels.
  """

  same_shapes = True

  def __init__(self, inputs, label, batch_size, seed, pairs=False, more=None):
    if batch_size > len(label):
      raise UserError(f'--batch_size={batch_size}: there are only {len(label)} training examples')
    self._inputs, self._label, self._more = inputs, label, more or {}
    self.batch_size, self._seed, self._pairs = batch_size, seed, pairs
    self.steps_per_epoch = len(label) // batch_size

  def _order(self, epoch, stream):
    return shuffled(len(self._label), self._seed, 2 * epoch + stream)

  def at(self, step, rows=slice(None)):
    """The batch of a step, or the given rows of it (a process's share).

    Returns inputs[b, ...], label[b], example int32[b] (place in the global batch), and with `pairs`
    other_inputs, other_label.
    """
    epoch, place = divmod(step, self.steps_per_epoch)
    window = slice(place * self.batch_size, (place + 1) * self.batch_size)
    chosen = self._order(epoch, 0)[window][rows]
    batch = dict(inputs=self._inputs[chosen], label=self._label[chosen],
                 example=np.arange(self.batch_size, dtype=np.int32)[rows],
                 **{name: array[chosen] for name, array in self._more.items()})
    if self._pairs:
      other = self._order(epoch, 1)[window][rows]
      batch.update(other_inputs=self._inputs[other], other_label=self._label[other])
    return batch


class BucketBatches:
  """Training batches of token sequences, each cut to one of a few padded lengths.

  Which length a step has depends on the step alone, which examples on the seed, so that trials with
  different seeds run through the same shapes. The examples of a bucket that do not fill a last
  batch sit an epoch out; a bucket that could not fill any joins the next longer one.
  """

  same_shapes = False

  def __init__(self, inputs, label, batch_size, seed, buckets, more=None):
    length = (text.alone(inputs) > 0).sum(1)
    # Equal shares of the examples a bucket; multiples of 8 keep the number of programs small.
    shares = np.arange(1, buckets + 1) / buckets
    edges = -(-np.quantile(length, shares).astype(int) // 8) * 8
    edges = np.unique(np.minimum(edges, inputs.shape[1]))
    place = np.searchsorted(edges, length)
    self._widths, self._members = [], []
    for bucket, edge in enumerate(edges):
      members = np.flatnonzero(place == bucket)
      short_end = bucket == len(edges) - 1 and len(members) < batch_size
      if self._members and (len(self._members[-1]) < batch_size or short_end):
        members = np.sort(np.concatenate([self._members.pop(), members]))
        self._widths.pop()
      self._widths.append(edge)
      self._members.append(members)
    counts = [len(m) // batch_size for m in self._members]
    self._plan = np.repeat(np.arange(len(self._members)), counts)
    if not len(self._plan):
      raise UserError(
          f'--batch_size={batch_size} --buckets={buckets}: of {len(label)} training examples no '
          f'bucket fills a batch; make one of them smaller')
    self._inputs, self._label, self._more = inputs, label, more or {}
    self.batch_size, self._seed = batch_size, seed
    self.steps_per_epoch = len(self._plan)

  def at(self, step, rows=slice(None)):
    """As in Batches; inputs is int32[b, width of the step's bucket]."""
    epoch, place = divmod(step, self.steps_per_epoch)
    order = self._plan[shuffled(len(self._plan), 0, epoch)]
    bucket = order[place]
    turn = int(np.sum(order[:place] == bucket))
    members = self._members[bucket]
    drawn = shuffled(len(members), self._seed, epoch * len(self._members) + int(bucket))
    chosen = members[drawn[turn * self.batch_size:(turn + 1) * self.batch_size]][rows]
    width = self._widths[bucket]
    label = self._label[chosen] if self._label.ndim == 1 else self._label[chosen, :width]
    return dict(inputs=self._inputs[chosen, :width], label=label,
                example=np.arange(self.batch_size, dtype=np.int32)[rows],
                **{name: array[chosen] for name, array in self._more.items()})


class StreamBatches:
  """Training batches of running text for truncated backpropagation.

  Row i of a batch continues row i of the last.
  """

  same_shapes = True

  def __init__(self, stream, batch_size, length):
    # Characters of a row; what is left over at the end sits out.
    self._row = (len(stream) - 1) // batch_size
    self.steps_per_epoch, self._length = self._row // length, length
    if not self.steps_per_epoch:
      raise UserError(
          f'--batch_size={batch_size} --sequence_length={length}: a step takes '
          f'{batch_size * length + 1} characters; there are {len(stream)}')
    self._stream, self.batch_size = stream, batch_size

  def at(self, step, rows=slice(None)):
    """inputs int32[b, length] and label int32[b, length], the next characters."""
    example = np.arange(self.batch_size, dtype=np.int32)[rows]
    begin = step % self.steps_per_epoch * self._length
    start = example[:, None] * self._row + begin + np.arange(self._length)[None]
    return dict(inputs=self._stream[start], label=self._stream[start + 1], example=example)


def stream_passes(stream, batch_size, length, rows=slice(None)):
  """Yields one pass over a stream, row i of a batch continuing row i of the last.

  The label is -1 after the end, so that each next character counts once.
  """
  row = -(-(len(stream) - 1) // batch_size)
  example = np.arange(batch_size)[rows]
  for begin in range(0, row, length):
    within = begin + np.arange(length)[None]
    place = example[:, None] * row + within
    exists = (within < row) & (place + 1 < len(stream))
    place = np.where(exists, place, 0)
    yield dict(inputs=stream[place], label=np.where(exists, stream[place + 1], -1).astype(np.int32))


def passes(inputs, batch_size, rows=slice(None)):
  """Yields inputs[b, ...] of one pass over a split in order.

  The first examples fill up the last batch. Equal batches need one program, and padding with real
  examples shows no layer what it never sees.
  Whoever collects the answers drops those past the end.
  """
  for start in range(0, len(inputs), batch_size):
    yield inputs[(np.arange(start, start + batch_size) % len(inputs))[rows]]
