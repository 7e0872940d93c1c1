"""A CSV file of numbers with a header: one column is the target."""

import csv
import hashlib
import math

import numpy as np

from lepton_jax.data.dataset import Source
from lepton_jax.errors import UserError
from lepton_jax.registry import unknown


def read(path, target, task):
  """The Source in a CSV file: f32[n, columns] inputs, and the target as values or as class numbers.

  Raises UserError with file and line for a row of another length or a cell that is no finite number.
  """
  if not path.is_file():
    raise UserError(f'--dataset=csv:{path}: no such file')
  content = path.read_bytes()
  try:
    rows = list(csv.reader(content.decode('utf-8-sig').splitlines()))
  except UnicodeDecodeError as error:
    line = content[:error.start].count(b'\n') + 1
    raise UserError(f'{path}, line {line}: not UTF-8 text') from None
  if len(rows) < 2:
    raise UserError(f'{path}: a header and at least one row are needed')
  header = [name.strip() for name in rows[0]]
  if target not in header:
    raise UserError(f'--target: {unknown("column", target, header)}')
  where = header.index(target)
  values, answers = [], []
  for line, row in enumerate(rows[1:], start=2):
    if not row:
      continue
    if len(row) != len(header):
      raise UserError(f'{path}, line {line}: {len(row)} columns, the header has {len(header)}')
    values.append([_number(cell, path, line, name) for i, (cell, name) in enumerate(zip(row, header)) if i != where])
    answers.append(_number(row[where], path, line, target) if task == 'regression' else row[where].strip())
  columns = tuple(name for i, name in enumerate(header) if i != where)
  if not columns or not values:
    raise UserError(f'{path}: no {"input columns" if not columns else "rows"}')
  classes = () if task == 'regression' else tuple(sorted(set(answers)))
  if len(classes) == 1 or len(classes) > 1000:
    raise UserError(f'{path}: column {target!r} has {len(classes)} different values as classes; for numbers pass --loss=mse')
  label = np.array(answers, np.float32) if task == 'regression' else np.array([classes.index(a) for a in answers], np.int32)
  return Source(hashlib.sha256(content).hexdigest()[:12], dict(train=(np.array(values, np.float32), label)), classes, columns)


def _number(cell, path, line, column):
  try:
    value = float(cell)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise UserError(f'{path}, line {line}: {column} is {cell!r}, not a finite number')
  return value
