"""Trials as settings: one row of numbers a setting over its seeds, best on validation first."""

import functools
import math
import statistics

from etils import epath

from lepton_jax import config as config_lib
from lepton_jax.errors import UserError

REPEATS = ('seed', 'fold')  # what a setting is repeated over
# What is told of each trial, besides what was measured.
RAW = ('num_parameters', 'file_bytes', 'sparsity', 'rounded_sparsity', 'quantized_kernels', 'macs',
       'nonzero_macs', 'train_seconds', 'name')


def varied(configs):
  """Names of the fields that make settings: those that differ, except the REPEATS of a setting."""
  flats = [options(config) for config in configs]
  return [name for name, (_, field) in config_lib.FIELDS.items()
          if field.metadata['identity'] and name not in REPEATS
          and len({flat[name] for flat in flats}) > 1]


def options(config):
  """{field: value} of a run; the runs that it came from are told apart by all but their seeds."""
  return config.flat() | {name: origin(folder) for name in config_lib.ORIGINS
                          if (folder := config.flat()[name])}


@functools.cache
def origin(folder):
  """The name that the run in a folder has with seed 0; the folder itself where it is not there.

  So runs that went on from the same setting, each from the run of its own seed, are one setting.
  """
  path = epath.Path(folder).expanduser() / 'config.json'
  try:
    config = config_lib.Config.from_json(path.read_text(), str(path))
  except (OSError, UserError):
    return folder
  earlier = {name: options(config)[name] for name in config_lib.ORIGINS}
  return config.replace(seed=0, **earlier).name()


def grouped(trials, fields):
  """[(values of `fields`, [(config, result)] by seed and fold)], the best on validation first.

  Settings that lack some of their seeds, those that diverge perhaps, stand after all that are
  whole; equal ones are in the order of their values.
  """
  trials = list({config.name(): (config, result) for config, result in trials}.values())
  measure, groups = f'validation_{trials[0][1]["measure"]}', {}
  for config, result in sorted(trials, key=lambda trial: repeat(trial[0])):
    values = options(config)
    groups.setdefault(tuple(values[n] for n in fields), []).append((config, result))
  whole = max(map(len, groups.values()))

  def rank(group):
    key, found = group
    mean = statistics.mean(result[measure] for _, result in found)
    return len(found) < whole, -sign(measure) * mean, tuple(map(str, key))

  return sorted(groups.items(), key=rank)


def repeat(config):
  """(seed, fold): what tells the trials of a setting apart."""
  return tuple(config.flat()[name] or 0 for name in REPEATS)


def sign(measure):
  """1 for a measurement that is better the higher it is, -1 for one that is better low."""
  return 1 if measure.endswith('accuracy') else -1


def rows(trials, all_tests=False, fields=None):
  """One dictionary a setting of [(config, result)], in the order of `grouped`.

  A setting is of all trials that differ by seed and fold alone. A row has the fields that differ
  between settings (or the given ones), then seeds (and folds), validation (mean, sd, half of its
  95 % interval by Student's t), the same of test for the best row, or for `all_tests` of every one,
  parameters, bytes of the packed file, multiply-accumulates of weights that are not zero where
  settings differ in them, and seconds a trial.
  """
  fields = varied([config for config, _ in trials]) if fields is None else fields
  measure, found = trials[0][1]['measure'], []
  work = {result.get('nonzero_macs') for _, result in trials}
  for place, (key, group) in enumerate(grouped(trials, fields)):
    configs, results = zip(*group)
    row = dict(zip(fields, key), seeds=len({config.training.seed for config in configs}))
    if configs[0].data.folds:
      row['folds'] = len({config.data.fold for config in configs})
    row.update(over_seeds(f'validation_{measure}', results))
    shown = over_seeds(f'test_{measure}', results)
    row.update(shown if all_tests or place == 0 else dict.fromkeys(shown, ''))
    row.update(num_parameters=results[0]['num_parameters'],
               file_bytes=average('file_bytes', results))
    if len(work) > 1 and None not in work:
      row['nonzero_macs'] = average('nonzero_macs', results)
    row['seconds'] = round(statistics.mean(r['train_seconds'] for r in results), 2)
    found.append(row)
  return found


def curve(seeds, measure):
  """[(epoch, mean, standard deviation)] of a measurement over the metrics.jsonl rows of seeds.

  It has the epochs that all seeds measured.
  """
  of = [{row['epoch']: row[measure] for row in rows if measure in row} for rows in seeds]
  found = []
  for epoch in sorted(set.intersection(*map(set, of))):
    values = [one[epoch] for one in of]
    deviation = statistics.stdev(values) if len(values) > 1 else 0
    found.append((epoch, statistics.mean(values), deviation))
  return found


def trial_rows(groups, rows):
  """One dictionary a trial: the setting, seed and fold, and the raw numbers of its result.

  groups: of `grouped`. Test is there for the settings whose `rows` show it.
  """
  fields, measure, found = swept(rows), groups[0][1][0][1]['measure'], []
  for row, (key, trials) in zip(rows, groups):
    for config, result in trials:
      line = dict(zip(fields, key), **{name: config.flat()[name] for name in REPEATS})
      line.update({f'{split}_{measure}': result.get(f'{split}_{measure}', '')
                   for split in ('validation', 'test')})
      if row[f'test_{measure}'] == '':
        line[f'test_{measure}'] = ''
      line.update({name: result.get(name, '') for name in RAW})
      found.append(line)
  return found


def average(name, results):
  """The mean of a count, as a whole number."""
  return round(statistics.mean(result[name] for result in results))


def name_of(row):
  """A setting in words: the fields that are swept and their values."""
  words = [f'{field.replace("_", " ")} {short(row[field])}' for field in swept([row])
           if row[field] != '']
  return ', '.join(words) or 'all trials'


def short(value):
  """A value as a label."""
  return 'unset' if value is None else f'{value:.3g}' if isinstance(value, float) else str(value)


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
