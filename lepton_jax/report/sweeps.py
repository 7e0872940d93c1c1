"""What trials found: one row a setting over its seeds, the best chosen on validation."""

import math
import statistics

from lepton_jax import config as config_lib

# How a result is ranked: the first of these that it has, and whether more is better.
MEASURES = (('accuracy', True), ('rmse', False), ('loss', False))


def rows(trials, all_tests=False):
  """One dictionary a setting of [(config, result)], trials that differ by the seed alone together, best first.

  A row has the fields that differ between settings, then seeds, validation (mean, sd, half of its 95 %
  interval by Student's t), the same of test for the best row, or for `all_tests` of every one, parameters and
  seconds a trial. The order is by validation; equal ones are in the order of their fields.
  """
  measure, more = next((m, more) for m, more in MEASURES if all(f'validation_{m}' in result for _, result in trials))
  flats = [config.flat() for config, _ in trials]
  fields = [n for n, (_, field) in config_lib.FIELDS.items() if n != 'seed' and field.metadata['identity'] and len({flat[n] for flat in flats}) > 1]
  groups = {}
  for config, result in trials:
    groups.setdefault(tuple(config.flat()[n] for n in fields), []).append(result)
  sign = -1 if more else 1
  order = sorted(groups, key=lambda key: (sign * statistics.mean(r[f'validation_{measure}'] for r in groups[key]), tuple(map(str, key))))
  found = []
  for place, key in enumerate(order):
    results = sorted(groups[key], key=lambda r: r['seed'])
    row = dict(zip(fields, key), seeds=len(results), **over_seeds(f'validation_{measure}', results))
    shown = over_seeds(f'test_{measure}', results)
    row.update(shown if all_tests or place == 0 else dict.fromkeys(shown, ''))
    row.update(num_parameters=results[0]['num_parameters'], seconds=round(statistics.mean(r['train_seconds'] for r in results), 2))
    found.append(row)
  return found


def over_seeds(name, results):
  """{name: mean, name_sd, name_ci95} of one measurement; without a spread where there is one seed alone."""
  values = [r[name] for r in results if name in r]
  if not values:
    return {name: '', f'{name}_sd': '', f'{name}_ci95': ''}
  spread = statistics.stdev(values) if len(values) > 1 else ''
  return {name: round(statistics.mean(values), 6), f'{name}_sd': spread and round(spread, 6), f'{name}_ci95': spread and round(interval(values), 6)}


def interval(values):
  """Half the 95 % interval of the mean of a few values, by Student's t."""
  from scipy import stats
  return float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
