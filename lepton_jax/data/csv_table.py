"""CSV and TSV files with a header: columns of numbers, or one of text, and a target."""

import csv
import hashlib
import math

import numpy as np

from lepton_jax.data import files
from lepton_jax.data.source import Source
from lepton_jax.errors import UserError
from lepton_jax.registry import unknown

FLOAT32_MAX = float(np.finfo(np.float32).max)


class BadRow(ValueError):
  """A row that cannot be used, and why."""


def read(path, target, task, text_column='', skip_bad_rows=False):
  """The Source in a file: f32[n, columns] or texts as inputs, and the target as values or as class numbers.

  Raises UserError with file and line for a row of another length, a cell that is no finite number, or
  an empty text; `skip_bad_rows` leaves such rows out and says how many.
  """
  header, rows = table(path)
  for flag, name in (('target', target), *([('text_column', text_column)] if text_column else [])):
    if name not in header:
      raise UserError(f'--{flag}: {unknown("column", name, header)}')
  where = header.index(target)
  used = [header.index(text_column)] if text_column else [i for i in range(len(header)) if i != where]
  if not used:
    raise UserError(f'{path}: no input columns beside {target!r}')

  def parse(row):
    if len(row) != len(header):
      raise BadRow(f'{len(row)} columns, the header has {len(header)}')
    answer = _number(row[where], target) if task == 'regression' else _text(row[where], target)
    if text_column:
      return _text(row[used[0]], text_column), answer
    return [_number(row[i], header[i]) for i in used], answer

  values, answers, bad = [], [], 0
  for line, row in rows:
    try:
      value, answer = parse(row)
    except BadRow as problem:
      if not skip_bad_rows:
        raise UserError(f'{path}, line {line}: {problem} (--skip_bad_rows leaves such rows out)') from None
      bad += 1
      continue
    values.append(value)
    answers.append(answer)
  if bad:
    print(f'{path}: {bad:,} bad rows left out of {bad + len(values):,}', flush=True)
  if not values:
    raise UserError(f'{path}: no usable rows')
  classes = () if task == 'regression' else tuple(sorted(set(answers)))
  if len(classes) == 1 or len(classes) > 1000:
    raise UserError(f'{path}: column {target!r} has {len(classes)} different values as classes; for numbers pass --loss=mse')
  number = {name: i for i, name in enumerate(classes)}
  label = np.array(answers, np.float32) if task == 'regression' else np.array([number[a] for a in answers], np.int32)
  inputs = np.array(values, object) if text_column else np.array(values, np.float32)
  version = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
  return Source(version, dict(train=(inputs, label)), classes, () if text_column else tuple(header[i] for i in used))


def table(path, kind='csv'):
  """(header, [(line number, row)]) of a file; commas separate, or tabs in a .tsv. Empty lines are no rows."""
  text, _ = files.read_text(path, kind)
  reader = csv.reader(text.splitlines(keepends=True), delimiter='\t' if path.suffix.lower() == '.tsv' else ',')
  rows = [(reader.line_num, row) for row in reader if row]
  if len(rows) < 2:
    raise UserError(f'{path}: a header and at least one row are needed')
  return [name.strip() for name in rows[0][1]], rows[1:]


def _number(cell, column):
  try:
    value = float(cell)
  except ValueError:
    value = math.nan
  if not abs(value) < FLOAT32_MAX:
    raise BadRow(f'{column} is {cell!r}, not a finite number')
  return value


def _text(cell, column):
  if not cell.strip():
    raise BadRow(f'{column} is empty')
  return cell.strip()
