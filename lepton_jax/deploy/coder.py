"""Context-modelled range coding of integer matrices; FORMAT.md says what each bit means.

Every bit is predicted from what was coded before it, by adaptive contexts as in DeepCABAC
(arXiv:1907.11900) whose predictions are mixed in the logistic domain as in PAQ (Mahoney 2005), and
then coded by a range coder. All arithmetic is on whole numbers, so that a file means the same on
every machine. The C++ of coder.cc does the same some hundred times faster; without a compiler the
Python below does it.
"""

import math

import numpy as np

from lepton_jax.deploy import native
from lepton_jax.errors import UserError

RATES = [round(65536 / (n + 1.5)) for n in range(256)]
SQUASH = [round(65536 / (1 + math.exp(-d / 256))) for d in range(-2048, 2048)]
STRETCH = [max(-2047, min(2047, round(256 * math.log((i + 0.5) / (4095.5 - i)))))
           for i in range(4096)]
HALF, TOP = 1 << 15, 1 << 24
INPUTS, FIRST_WEIGHT = 5, 20000
LARGEST = (1 << 16) - 1  # magnitude of a level
EXPONENTS = 16


def encode(matrices, use_native=True):
  """bytes of whole numbers, each i32[rows, columns] with entries of at most 65,535 in size."""
  for matrix in matrices:
    if matrix.size and np.abs(matrix.astype(np.int64)).max() > LARGEST:
      raise ValueError(f'a level of more than {LARGEST}')
  library = native.library() if use_native else None
  if library is not None:
    return native.encode(library, matrices, TABLES)
  out = _Encoder()
  models = {}
  for matrix in matrices:
    _code(_model(models, matrix.shape), out, matrix.tolist(), *matrix.shape)
  return out.finish()


def decode(data, shapes, use_native=True):
  """The matrices of such shapes in `data`; raises UserError where a level is too large."""
  library = native.library() if use_native else None
  if library is not None:
    return native.decode(library, data, shapes, TABLES)
  source, models, found = _Decoder(data), {}, []
  for rows, columns in shapes:
    found.append(np.array(_code(_model(models, (rows, columns)), source, None, rows, columns),
                          np.int32).reshape(rows, columns))
  return found


def _model(models, shape):
  """Vectors and matrices are of two kinds, and each kind learns from all that came before."""
  return models.setdefault(shape[0] > 1, _Model())


class _Model:
  """The adaptive probabilities: lists of [p of a one, of 65,536; how often it was used]."""

  def __init__(self):
    table = lambda size: [[HALF, 0] for _ in range(size)]
    self.near, self.density = table(32), table(14 * 14)
    self.sign, self.exponent = table(9), table(16 * EXPONENTS)
    self.mantissa = table(8 * EXPONENTS)
    self.weights = [[FIRST_WEIGHT] * INPUTS for _ in range(4)]


class _Encoder:

  def __init__(self):
    self._out, self._low, self._range = bytearray(), 0, (1 << 32) - 1

  def bit(self, p, bit):
    bound = (self._range >> 16) * p
    if bit:
      self._range = bound
    else:
      self._low += bound
      self._range -= bound
      if self._low >> 32:
        self._carry()
    while self._range < TOP:
      self._out.append(self._low >> 24)
      self._low = self._low << 8 & 0xFFFFFFFF
      self._range <<= 8
    return bit

  def _carry(self):
    self._low &= 0xFFFFFFFF
    i = len(self._out) - 1
    while self._out[i] == 255:
      self._out[i] = 0
      i -= 1
    self._out[i] += 1

  def finish(self):
    """The shortest end that, with zeros after it, lies in the last interval."""
    for size in range(5):
      rest = (1 << 32 - 8 * size) - 1
      value = self._low + rest & ~rest
      if value < self._low + self._range:
        break
    self._low = value
    if value >> 32:
      self._carry()
    self._out += self._low.to_bytes(4, 'big')[:size]
    return bytes(self._out).rstrip(b'\0')


class _Decoder:

  def __init__(self, data):
    self._data, self._at = data, 4
    self._code, self._range = int.from_bytes(data[:4].ljust(4, b'\0'), 'big'), (1 << 32) - 1

  def bit(self, p, bit):
    del bit
    bound = (self._range >> 16) * p
    if self._code < bound:
      self._range, found = bound, 1
    else:
      self._code -= bound
      self._range -= bound
      found = 0
    while self._range < TOP:
      byte = self._data[self._at] if self._at < len(self._data) else 0
      self._at += 1
      self._code = (self._code << 8 | byte) & 0xFFFFFFFF
      self._range <<= 8
    return found


def _code(model, coder, levels, rows, columns):
  """Codes `levels`, or with None reads them; returns them as lists of rows."""
  above, column_count = [0] * columns, [0] * columns
  column_sign, column_exponent = [0] * columns, [0] * columns
  found = []
  for r in range(rows):
    row, row_count, left, left_sign, left_exponent, before = [], 0, 0, 0, 0, 0
    for c in range(columns):
      level = None if levels is None else levels[r][c]
      at_column = ((2 * column_count[c] + 1) << 16) // (2 * r + 2)
      at_row = ((2 * row_count + 1) << 16) // (2 * c + 2)
      corner = above[c - 1] if c else 0
      next_ = above[c + 1] if c + 1 < columns else 0
      near = left | above[c] << 1 | before << 2 | corner << 3 | next_ << 4
      density = (at_column >> 4).bit_length() * 14 + (at_row >> 4).bit_length()
      one = _mixed(model, coder, near, density, at_column, at_row,
                   None if level is None else int(level != 0))
      before = left
      left = one
      value = 0
      if one:
        sign = _learned(coder, model.sign[3 * left_sign + column_sign[c]],
                        None if level is None else int(level < 0))
        size = _magnitude(model, coder, 4 * min(left_exponent, 3) + min(column_exponent[c], 3),
                          None if level is None else abs(level))
        exponent = size.bit_length()
        left_sign = column_sign[c] = 1 + sign
        left_exponent = column_exponent[c] = exponent
        column_count[c] += 1
        row_count += 1
        value = -size if sign else size
      row.append(value)
    above = [int(value != 0) for value in row]
    found.append(row)
  return found


def _mixed(model, coder, near, density, at_column, at_row, bit):
  """A bit predicted by two learned contexts, two frequencies and a constant together."""
  one, two = model.near[near], model.density[density]
  inputs = (STRETCH[one[0] >> 4], STRETCH[two[0] >> 4], STRETCH[min(at_column >> 4, 4095)],
            STRETCH[min(at_row >> 4, 4095)], 256)
  weights = model.weights[near & 3]
  total = sum(w * x for w, x in zip(weights, inputs)) >> 16
  p = SQUASH[max(-2047, min(2047, total)) + 2048]
  bit = coder.bit(p, bit)
  error = (bit << 16) - p
  for i, x in enumerate(inputs):
    weights[i] += error * x + (1 << 14) >> 15
  _learn(one, bit)
  _learn(two, bit)
  return bit


def _learned(coder, entry, bit):
  """A bit of one learned context."""
  bit = coder.bit(max(32, min(65504, entry[0])), bit)
  _learn(entry, bit)
  return bit


def _learn(entry, bit):
  entry[0] += ((bit << 16) - entry[0]) * RATES[entry[1]] >> 16
  entry[0] = max(1, min(65535, entry[0]))
  entry[1] = min(entry[1] + 1, 255)


def _magnitude(model, coder, context, size):
  """A number of at least 1: how many bits it has, then the bits below the first."""
  length = None if size is None else size.bit_length() - 1
  found = 0
  while found < EXPONENTS and _learned(
      coder, model.exponent[context * EXPONENTS + found],
      None if size is None else int(found < length)):
    found += 1
  if found == EXPONENTS:
    raise UserError('the packed file is damaged: a level of more than 16 bits')
  value = node = 1
  for i in range(found):
    bit = None if size is None else size >> found - 1 - i & 1
    if i < 3:
      bit = _learned(coder, model.mantissa[8 * found + node], bit)
      node = 2 * node + bit
    else:
      bit = coder.bit(HALF, bit)
    value = 2 * value + bit
  return value


TABLES = (np.array(RATES, np.int32), np.array(SQUASH, np.int32), np.array(STRETCH, np.int32))
