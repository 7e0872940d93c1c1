"""Trials as settings: one row of numbers a setting over its seeds, best on validation first."""

import math
import statistics

from lepton_jax import config as config_lib

REPEATS = ('seed', 'fold')  # what a setting is repeated over


def varied(configs):
  """Names of the fields that make settings: those that differ, except the REPEATS of a setting."""
  return [name for name in config_lib.differing(configs) if name not in REPEATS]


def rows(trials, all_tests=False, fields=None):
  """One dictionary a setting of [(config, result)], best first.

  A setting is of all trials that differ by seed and fold alone. A row has the fields that differ
  between settings (or the given ones), then seeds (and folds), validation (mean, sd, half of its
  95 % interval by Student's t), the same of test for the best row, or for `all_tests` of every one,
  parameters, bytes of the packed file, and seconds a trial. The order is by validation, but
  settings that lack some of their seeds, those that diverge perhaps, stand after all that are
  whole; equal ones are in the order of their fields.
  """
  trials = list({config.name(): (config, result) for config, result in trials}.values())
  fields = varied([config for config, _ in trials]) if fields is None else fields
  measure = trials[0][1]['measure']
  groups = {}
  for config, result in trials:
    groups.setdefault(tuple(config.flat()[n] for n in fields), []).append((config, result))
  sign, whole = -1 if measure == 'accuracy' else 1, max(map(len, groups.values()))
  mean = lambda key: statistics.mean(result[f'validation_{measure}'] for _, result in groups[key])
  rank = lambda key: (len(groups[key]) < whole, sign * mean(key), tuple(map(str, key)))
  order = sorted(groups, key=rank)
  repeat = lambda trial: [trial[0].flat()[n] or 0 for n in REPEATS]
  found = []
  for place, key in enumerate(order):
    configs, results = zip(*sorted(groups[key], key=repeat))
    row = dict(zip(fields, key), seeds=len({config.training.seed for config in configs}))
    if configs[0].data.folds:
      row['folds'] = len({config.data.fold for config in configs})
    row.update(over_seeds(f'validation_{measure}', results))
    shown = over_seeds(f'test_{measure}', results)
    row.update(shown if all_tests or place == 0 else dict.fromkeys(shown, ''))
    row.update(num_parameters=results[0]['num_parameters'],
               file_bytes=round(statistics.mean(r['file_bytes'] for r in results)),
               seconds=round(statistics.mean(r['train_seconds'] for r in results), 2))
    found.append(row)
  return found


def swept(rows):
  """Names of the fields that differ between the rows of `rows`."""
  return list(rows[0])[:list(rows[0]).index('seeds')]


def measure(rows):
  """Name of the measurement that rows are ranked by, such as 'validation_accuracy'."""
  return next(name for name in rows[0] if name.startswith(('validation_', 'test_')))


def front(points):
  """The (size, value) points that no other beats in both: ascending sizes, ascending values."""
  best, found = -math.inf, []
  for size, value in sorted(points, key=lambda point: (point[0], -point[1])):
    if value > best:
      best = value
      found.append((size, value))
  return found


def columns(found):
  """What tables for people show: no column that is empty, no spread of its own."""
  return [n for n in found[0] if not n.endswith(('_sd', '_ci95'))
          and any(row[n] not in ('', None) for row in found)]


def cell(row, name, between):
  """A value as text, with its standard deviation over seeds where it has one."""
  value, spread = row[name], row.get(f'{name}_sd')
  text = '' if value in ('', None) else f'{value:.4g}' if isinstance(value, float) else str(value)
  return text + (f'{between}{spread:.2g}' if spread not in ('', None) else '')


def over_seeds(name, results):
  """{name: mean, name_sd, name_ci95} of a measurement; one seed alone has no spread."""
  values = [r[name] for r in results if name in r]
  if not values:
    return {name: '', f'{name}_sd': '', f'{name}_ci95': ''}
  spread = statistics.stdev(values) if len(values) > 1 else ''
  digits = lambda value: float(f'{value:.6g}')
  return {name: digits(statistics.mean(values)), f'{name}_sd': spread and digits(spread),
          f'{name}_ci95': spread and digits(interval(values))}


def interval(values):
  """Half the 95 % interval of the mean of a few values, by Student's t."""
  from scipy import stats
  factor = float(stats.t.ppf(0.975, len(values) - 1))
  return factor * statistics.stdev(values) / math.sqrt(len(values))
