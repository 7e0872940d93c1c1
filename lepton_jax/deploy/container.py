"""The bytes of a packed file: a head that describes, and levels that are entropy-coded.

FORMAT.md is the specification. Nothing in a file is believed before it is checked: lengths against
what is there, and sizes against a limit before memory is asked for.
"""

import json
import struct
import typing
import zlib

import numpy as np

from lepton_jax.deploy import coder
from lepton_jax.errors import UserError

MAGIC, VERSION = b'LPT', 1
(CONSTANT, FLOAT32, FLOAT16, LEVELS, CHANNELS, CODEBOOK, CHANNEL_CODEBOOK, SPARSE, CHANNELS32,
 ROWS, SIGNS) = range(11)
SINGLE = (CONSTANT, FLOAT32, LEVELS, SPARSE, CHANNELS32, ROWS)  # kinds whose numbers are f32
LONGEST, ENTRIES = 16 << 20, 1_000_000  # of the description
MOST = 256 << 20  # bytes that the arrays of a file, or its head, may take by default


class Packed(typing.NamedTuple):
  """One array as a file holds it.

  Attributes:
    kind: one of the constants above.
    numbers: f32 or f16 of the kind: the value, the entries, the scale or scales.
    levels: i32 like the array, or None; of a sparse one where its entries are.
    codebook: f16[negative + 1 + positive] values of the levels from the lowest, and how many are
      negative; or None.
  """
  kind: int
  numbers: np.ndarray
  levels: np.ndarray | None = None
  codebook: tuple | None = None


def value(packed, shape):
  """f32 array that a Packed one stands for."""
  if packed.kind == CONSTANT:
    return np.full(shape, packed.numbers[0], np.float32)
  if packed.kind in (FLOAT32, FLOAT16):
    return packed.numbers.astype(np.float32).reshape(shape)
  if packed.kind == SPARSE:
    found = np.zeros(shape, np.float32)
    found[packed.levels != 0] = packed.numbers
    return found
  if packed.kind == SIGNS:
    negative, positive = packed.numbers.astype(np.float32).reshape(2, -1)
    return packed.levels.astype(np.float32) * np.where(packed.levels < 0, negative, positive)
  found = packed.levels.astype(np.float32)
  if packed.codebook is not None:
    values, negative = packed.codebook
    found = values.astype(np.float32)[packed.levels + negative]
  if packed.kind == CODEBOOK:
    return found
  if packed.kind == ROWS:
    return found * packed.numbers.astype(np.float32).reshape(-1, *(1,) * (found.ndim - 1))
  return found * packed.numbers.astype(np.float32)


def write(header, arrays):
  """The bytes of a file: a JSON object, and Packed arrays in an order that the reader knows."""
  text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
  numbers = b''.join(_numbers(packed) for packed in arrays)
  kinds = bytes(packed.kind for packed in arrays)
  squeeze = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
  head = squeeze.compress(_varint(len(text)) + text + kinds + numbers) + squeeze.flush()
  coded = coder.encode([_matrix(packed.levels) for packed in arrays if packed.levels is not None])
  content = MAGIC + bytes([VERSION]) + _varint(len(head)) + head + coded
  return content + struct.pack('<I', zlib.crc32(content))


def read_header(data, most=MOST):
  """(the JSON object, what `read_arrays` needs); raises UserError for what is no such file."""
  if data[:3] != MAGIC or len(data) < 9:
    raise UserError('this is no packed network: it does not begin with LPT')
  if data[3] != VERSION:
    raise UserError(f'the packed file has version {data[3]}; this program reads {VERSION}')
  content, (crc,) = data[:-4], struct.unpack('<I', data[-4:])
  if zlib.crc32(content) != crc:
    raise UserError('the packed file is damaged: its checksum is not that of its bytes')
  size, at = _read_varint(content, 4)
  if at + size > len(content):
    raise UserError('the packed file is damaged: its head is longer than the file')
  expand = zlib.decompressobj(-15)
  try:
    head = expand.decompress(content[at:at + size], most)
  except zlib.error as error:
    raise UserError(f'the packed file is damaged: {error}') from None
  if not expand.eof:
    raise UserError(f'the head of the packed file is cut, or larger than {most >> 20} MiB')
  length, start = _read_varint(head, 0)
  text = head[start:start + length]
  # What Python makes of JSON takes a hundred times its bytes where those are brackets and commas.
  if length > LONGEST or sum(text.count(mark) for mark in b'[{,') > ENTRIES:
    raise UserError(f'the packed file describes itself in more than {LONGEST >> 20} MiB or '
                    f'{ENTRIES:,} entries')
  try:
    header = json.loads(text.decode())
  except (ValueError, RecursionError):
    raise UserError('the packed file is damaged: its head is no JSON') from None
  if not isinstance(header, dict):
    raise UserError('the packed file is damaged: its head is no JSON object')
  return header, (head[start + length:], content[at + size:])


def read_arrays(rest, shapes, most=MOST):
  """[f32 array] of such shapes; raises UserError where the file does not hold them."""
  return [value(packed, shape) for packed, shape in zip(read_packed(rest, shapes, most), shapes)]


def read_packed(rest, shapes, most=MOST):
  """The same as [Packed]."""
  head, coded = rest
  if 4 * sum(int(np.prod(shape, dtype=object)) for shape in shapes) > most:
    raise UserError(f'the packed network needs more than {most >> 20} MiB')
  kinds, at, found = head[:len(shapes)], len(shapes), []
  if len(kinds) < len(shapes) or any(kind > SIGNS for kind in kinds):
    raise UserError('the packed file is damaged: it does not describe the arrays of its network')
  for kind, shape in zip(kinds, shapes):
    packed, at = _read_numbers(head, at, kind, shape)
    found.append(packed)
  if at != len(head):
    raise UserError('the packed file is damaged: its head has other arrays than its network')
  with_levels = [i for i, kind in enumerate(kinds) if kind >= LEVELS]
  for i, levels in zip(with_levels, coder.decode(coded, [_rows(shapes[i]) for i in with_levels])):
    low, high = -coder.LARGEST, coder.LARGEST
    if found[i].codebook is not None:
      values, negative = found[i].codebook
      low, high = -negative, len(values) - 1 - negative
    if levels.size and (levels.min() < low or levels.max() > high):
      raise UserError('the packed file is damaged: a level that its codebook lacks')
    if kinds[i] == SPARSE and np.count_nonzero(levels) != len(found[i].numbers):
      raise UserError('the packed file is damaged: it has other entries than it says')
    found[i] = found[i]._replace(levels=_from_matrix(levels, shapes[i]))
  return found


def _matrix(levels):
  """[rows, columns] with the places of a convolution's window below each other."""
  if levels.ndim == 4:
    levels = levels.transpose(2, 0, 1, 3)
  return levels.reshape(_rows(levels.shape))


def _rows(shape):
  """The (rows, columns) of an array."""
  columns = int(shape[-1]) if shape else 1
  return (int(np.prod(shape[:-1], dtype=np.int64)), columns)


def _from_matrix(matrix, shape):
  if len(shape) == 4:
    height, width, inputs, outputs = shape
    return matrix.reshape(inputs, height, width, outputs).transpose(1, 2, 0, 3)
  return matrix.reshape(shape)


def _numbers(packed):
  numbers = packed.numbers.astype('<f4' if packed.kind in SINGLE else '<f2')
  found = b'' if packed.kind == CODEBOOK else numbers.tobytes()
  if packed.kind == SPARSE:
    found = _varint(len(numbers)) + found
  if packed.codebook is not None:
    values, negative = packed.codebook
    found += bytes([negative, len(values) - 1 - negative]) + values.astype('<f2').tobytes()
  return found


def _read_numbers(head, at, kind, shape):
  """(Packed without levels, where the next one begins)."""
  size = {CONSTANT: 1, LEVELS: 1, CODEBOOK: 0}.get(kind, int(np.prod(shape, dtype=np.int64)))
  if kind in (CHANNELS, CHANNEL_CODEBOOK, CHANNELS32):
    size = shape[-1] if shape else 1
  if kind == SIGNS:
    size = 2 * (shape[-1] if shape else 1)
  if kind == ROWS:
    size = shape[0] if shape else 1
  if kind == SPARSE:
    size, at = _read_varint(head, at)
  dtype = '<f4' if kind in SINGLE else '<f2'
  numbers, at = _read_floats(head, at, dtype, size)
  codebook = None
  if kind in (CODEBOOK, CHANNEL_CODEBOOK):
    if at + 2 > len(head):
      raise UserError('the packed file is damaged: its head ends early')
    negative, positive = head[at:at + 2]
    values, at = _read_floats(head, at + 2, '<f2', negative + 1 + positive)
    codebook = values, negative
  return Packed(kind, numbers, None, codebook), at


def _read_floats(head, at, dtype, count):
  end = at + count * np.dtype(dtype).itemsize
  if end > len(head):
    raise UserError('the packed file is damaged: its head ends early')
  found = np.frombuffer(head[at:end], dtype)
  if not np.isfinite(found).all():
    raise UserError('the packed file is damaged: a number is not finite')
  return found, end


def _varint(number):
  """Seven bits a byte, the lowest first; the top bit says that more follow."""
  found = b''
  while number > 127:
    found += bytes([number & 127 | 128])
    number >>= 7
  return found + bytes([number])


def _read_varint(data, at):
  number = shift = 0
  while at < len(data) and shift < 63:
    number |= (data[at] & 127) << shift
    shift, at = shift + 7, at + 1
    if data[at - 1] < 128:
      return number, at
  raise UserError('the packed file is damaged: a length is cut or too long')
