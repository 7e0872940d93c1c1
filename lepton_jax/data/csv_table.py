"""CSV and TSV files with a header: columns of numbers, or one of text, and a target."""

import csv
import hashlib
import io
import math

import numpy as np

from lepton_jax.data import files
from lepton_jax.data.source import Source
from lepton_jax.errors import UserError
from lepton_jax.registry import unknown

SPLIT_FILES = tuple(f'{split}.{kind}'
                    for split in ('train', 'validation', 'test') for kind in ('csv', 'tsv'))
FLOAT32_MAX = float(np.finfo(np.float32).max)


class BadRow(ValueError):
  """A row that cannot be used, and why."""


def read(path, target, task, text_column='', skip_bad_rows=False):
  """The Source in a file, or in a folder's train, validation and test .csv or .tsv.

  Inputs are f32[n, columns] or texts; labels are values, class numbers, or with `task` 'tagging' a
  class number a word, -1 after the end. Raises UserError with file and line for a row of another
  length, a cell that is no finite number, or an empty text; `skip_bad_rows` leaves such rows out
  and says how many.
  """
  if task == 'tagging' and not text_column:
    raise UserError(
        '--task=tagging needs --text_column, whose words the tags of --target belong to')
  paths = {'train': path}
  if path.is_dir():
    paths = {name.partition('.')[0]: path / name for name in SPLIT_FILES
             if (path / name).is_file()}
  if 'train' not in paths:
    raise UserError(f'{path}: no train.csv or train.tsv in it')
  parts, headers = {}, {}
  for split, file in paths.items():
    headers[split], inputs, answers = _read_file(file, target, task, text_column, skip_bad_rows)
    if headers[split] != headers['train']:
      raise UserError(
          f'{file}: its columns are {", ".join(headers[split])}, those of {paths["train"]} '
          f'{", ".join(headers["train"])}')
    parts[split] = inputs, answers
  return _source(parts, paths, task, text_column, target, headers['train'])


def _read_file(path, target, task, text_column, skip_bad_rows):
  """(header, inputs, answers) of one file: lists with an entry a usable row."""
  header, rows = table(path, 'csv', skip_bad_rows)
  for flag, name in (('target', target), *([('text_column', text_column)] if text_column else [])):
    if name not in header:
      raise UserError(f'--{flag}: {unknown("column", name, header)}')
  if target == text_column:
    raise UserError(
        f'--target={target} --text_column={text_column}: the text would be its own answer')
  where = header.index(target)
  if text_column:
    used = [header.index(text_column)]
  else:
    used = [i for i in range(len(header)) if i != where]
  if not used:
    raise UserError(f'{path}: no input columns beside {target!r}')

  def parse(row):
    answer = number(row[where], target) if task == 'regression' else _text(row[where], target)
    if text_column:
      text = _text(row[used[0]], text_column)
      return text, _tags(answer, row[used[0]]) if task == 'tagging' else answer
    return [number(row[i], header[i]) for i in used], answer

  parsed = [found for _, found in usable(path, header, rows, parse, skip_bad_rows)]
  return header, *zip(*parsed)


def _source(parts, paths, task, text_column, target, header):
  """The Source of {split: (inputs, answers)}; classes are numbered in the order of their names."""
  answers = [answer for _, answers in parts.values() for answer in answers]
  flat = [tag for answer in answers for tag in answer] if task == 'tagging' else answers
  classes = () if task == 'regression' else tuple(sorted(set(flat)))
  if len(classes) == 1 or len(classes) > 1000:
    raise UserError(
        f'{paths["train"]}: column {target!r} has {len(classes)} different values as classes; for '
        f'numbers pass --loss=mse')
  order = {name: i for i, name in enumerate(classes)}

  def arrays(inputs, answers):
    if task == 'regression':
      label = np.array(answers, np.float32)
    elif task == 'tagging':
      label = np.full((len(answers), max(map(len, answers))), -1, np.int32)
      for row, tags in zip(label, answers):
        row[:len(tags)] = [order[tag] for tag in tags]
    else:
      label = np.array([order[a] for a in answers], np.int32)
    return np.array(inputs, object if text_column else np.float32), label

  version = hashlib.sha256(b''.join(p.read_bytes() for p in paths.values())).hexdigest()[:12]
  columns = () if text_column else tuple(name for name in header if name != target)
  return Source(version, {split: arrays(*part) for split, part in parts.items()}, classes, columns)


def _tags(cell, text):
  """A tag for each word of the text."""
  tags, words = cell.split(), text.split()
  if len(words) != len(tags):
    raise BadRow(f'{len(words)} words and {len(tags)} tags; spaces separate both')
  return tags


def table(path, kind, skip_bad_rows=False):
  """(header, [(line number, row)]) of a file.

  A row is named by the line it begins on. Empty lines are no rows. Commas separate and quotes
  protect them; in a .tsv tabs separate and a quote is a character like any other. With
  `skip_bad_rows` bytes that are not UTF-8 are marked, for `usable` to find.
  """
  text, _ = files.read_text(path, kind, mark=skip_bad_rows)
  tabs = path.suffix.lower() == '.tsv'
  reader = csv.reader(io.StringIO(text, newline=''), delimiter='\t' if tabs else ',',
                      quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL, strict=True)
  rows, line = [], 1
  try:
    for row in reader:
      if row:
        rows.append((line, row))
      line = reader.line_num + 1
  except csv.Error as error:
    raise UserError(f'{path}, line {line}: {error}') from None
  if len(rows) < 2:
    raise UserError(f'{path}: a header and at least one row are needed')
  header = [name.strip() for name in rows[0][1]]
  for name in header:
    if header.count(name) > 1:
      raise UserError(f'{path}, line 1: two columns are called {name!r}')
  return header, rows[1:]


def usable(path, header, rows, parse, skip_bad_rows):
  """[(line, parse(row))] of the good rows; raises UserError at a bad one, or skips and counts.

  A row is bad that has not the header's length or in which `parse` finds a BadRow.
  """
  found = []
  for line, row in rows:
    try:
      if len(row) != len(header):
        raise BadRow(f'{len(row)} columns, the header has {len(header)}')
      if skip_bad_rows and files.MARK in ''.join(row):
        raise BadRow('not UTF-8 text')
      found.append((line, parse(row)))
    except BadRow as problem:
      if not skip_bad_rows:
        raise UserError(
            f'{path}, line {line}: {problem} (--skip_bad_rows leaves such rows out)') from None
  if len(found) < len(rows):
    print(f'{path}: {len(rows) - len(found):,} bad rows left out of {len(rows):,}', flush=True)
  if not found:
    raise UserError(f'{path}: no usable rows')
  return found


def number(cell, column):
  """The finite number in a cell."""
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
