"""Time series from a CSV file: windows of the past, horizons of the future, split along time."""

import hashlib

import numpy as np

from lepton_jax.data import csv_table
from lepton_jax.data.source import Source
from lepton_jax.errors import UserError
from lepton_jax.registry import unknown


def read(path, options):
  """The Source of a CSV file of regular observations, oldest first.

  Inputs are f32[n, window, columns], all numeric columns but the time; labels are
  f32[n, horizon * targets], the values of the `--target` columns over the steps that follow, step
  by step. Each window belongs to the part that its horizon lies in, so the training part knows
  nothing of what comes after it. Raises UserError with file and line for a cell that is no number,
  and for a series that is too short.
  """
  header, rows = csv_table.table(path, 'series', options.skip_bad_rows)
  targets = [t.strip() for t in options.target.split(',') if t.strip()]
  if options.time_column not in header:
    raise UserError(f'--time_column: {unknown("column", options.time_column, header)}')
  columns = [name for name in header if name != options.time_column]
  for name in targets:
    if name not in columns:
      raise UserError(f'--target: {unknown("column", name, columns)}')
    if targets.count(name) > 1:
      raise UserError(f'--target={options.target}: {name!r} stands there twice')
  if not targets:
    raise UserError(f'--target is needed: one or more of {", ".join(header)}')
  time = header.index(options.time_column)

  def parse(row):
    return row[time], [csv_table.number(cell, name) for cell, name in zip(row, header)
                       if name != options.time_column]

  lines, parsed = zip(*csv_table.usable(path, header, rows, parse, options.skip_bad_rows))
  times, values = zip(*parsed)
  check_rising(times, lines, path, options.time_column)
  version = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
  places = [columns.index(t) for t in targets]
  return cut(np.array(values, np.float32), places, columns, options, version, str(path))


def check_rising(times, lines, path, column):
  """Raises UserError naming the line at which the times do not rise.

  They are numbers or texts such as 2016-07-01 00:00.
  """
  try:
    times = [float(t) for t in times]
  except ValueError:
    pass
  for before, after, line in zip(times, times[1:], lines[1:]):
    if not before < after:
      raise UserError(
          f'{path}, line {line}: {column} must rise from row to row, and {after!r} follows '
          f'{before!r}')


def cut(values, targets, columns, options, version, what):
  """The Source of values f32[time, columns], cut along time by fractions of `config.Data`."""
  window, horizon = options.window, options.horizon
  test = len(values) - round(len(values) * options.test_fraction)
  validation = test - round(test * options.validation_fraction)
  bounds = dict(train=(window, validation), validation=(validation, test), test=(test, len(values)))
  parts = {}
  for part, (start, end) in bounds.items():
    # A window ends before `start` at the earliest, and its horizon at `end` at the latest.
    starts = np.arange(max(start, window), end - horizon + 1)
    if start < end and not len(starts) and part != 'train':
      raise UserError(
          f'{what}: the {part} part has {end - start} rows, fewer than --horizon={horizon}')
    if part == 'train' and not len(starts):
      raise UserError(
          f'{what}: {len(values)} rows, of which {validation} are for training, are too few for '
          f'--window={window} --horizon={horizon}')
    inputs = values[starts[:, None] + np.arange(-window, 0)]
    label = values[starts[:, None] + np.arange(horizon)][:, :, targets]
    label = label.reshape(len(starts), horizon * len(targets))
    parts[part] = (inputs.astype(np.float32), label.astype(np.float32))
  return Source(version, parts, (), tuple(columns), targets=tuple(targets))


def changes(inputs):
  """inputs[n, window, columns] less the last values of each window."""
  return inputs - inputs[:, -1:]


def level(inputs, targets, outputs):
  """The last values of the `targets` columns of inputs[n, window, columns].

  They are repeated over the horizon to [n, outputs].
  """
  last = inputs[:, -1][:, np.array(targets)]
  return last[:, np.arange(outputs) % len(targets)]


def baselines(inputs, label, targets, season):
  """Predictions f32[n, horizon * targets] that learn nothing, by 'last_value' and 'seasonal_naive'.

  The first repeats the last value seen, the second the values of one season (in steps) before. The
  second is left out where the window is shorter than a season.
  """
  horizon = label.shape[1] // len(targets)
  past = inputs[:, :, list(targets)]
  found = dict(last_value=level(inputs, targets, label.shape[1]))
  if season <= past.shape[1]:
    steps = past.shape[1] - season + np.arange(horizon) % season
    found['seasonal_naive'] = past[:, steps].reshape(len(label), -1)
  return found
