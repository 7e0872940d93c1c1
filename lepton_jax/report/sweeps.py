"""What trials found: one row a setting over its seeds, the best chosen on validation."""

import json
import math
import pathlib
import statistics

from lepton_jax import config as config_lib
from lepton_jax.errors import UserError

# How a result is ranked: the first of these that it has, and whether more is better.
MEASURES = (('accuracy', True), ('rmse', False), ('loss', False))


def read(runs_dir):
  """[(config, result)] of the finished run folders in a folder, in the order of their names; raises UserError where there are none."""
  folders = sorted(path.parent for path in pathlib.Path(runs_dir).expanduser().glob('*/result.json'))
  if not folders:
    raise UserError(f'{runs_dir} holds no finished run folders')
  config = lambda f: config_lib.Config.from_json((f / 'config.json').read_text(), str(f)).replace(runs_dir=str(f.parent))
  return [(config(f), json.loads((f / 'result.json').read_text())) for f in folders]


def write(trials, folder, all_tests=False):
  """Writes report.md, table.csv, table.tex and the pictures of [(config, result)] into a folder; returns the rows."""
  from lepton_jax.report import markdown, sweep_pictures
  from lepton_jax.train import record
  found, folder = rows(trials, all_tests), pathlib.Path(folder).expanduser()
  folder.mkdir(parents=True, exist_ok=True)
  fields = swept(found)
  key = lambda config: tuple(config.flat()[f] for f in fields)
  curves = [[record.read_rows(pathlib.Path(c.run.runs_dir).expanduser() / c.name()) for c, _ in trials if key(c) == tuple(row[f] for f in fields)]
            for row in found]
  pictures = sweep_pictures.draw_all(found, curves, folder)
  markdown.write_rows(folder / 'table.csv', found)
  (folder / 'table.tex').write_text(latex(found))
  lines = [f'# {len(trials)} trials, {len(found)} settings', '', table(found), '', SAID, '']
  (folder / 'report.md').write_text('\n'.join(lines + [f'![{name.replace("_", " ")}]({name}.png)\n' for name in pictures]))
  return found


SAID = ('Mean ± standard deviation over seeds, the best on validation first. Test is shown for the best alone, unless all were asked for. '
        'The size is an estimate: bits, positions of zeros and scales, without headers and coding.')


def table(found):
  """Rows as a Markdown table; a mean and its deviation share a cell."""
  from lepton_jax.report import markdown
  names = columns(found)
  return markdown.table([n.replace('_', ' ') for n in names], [[cell(row, n, ' ± ') for n in names] for row in found])


def columns(found):
  """What tables for people show: no column that is empty, no spread of its own."""
  return [n for n in found[0] if not n.endswith(('_sd', '_ci95')) and any(row[n] not in ('', None) for row in found)]


def cell(row, name, between):
  """A value as text, with its standard deviation over seeds where it has one."""
  value, spread = row[name], row.get(f'{name}_sd')
  text = '' if value in ('', None) else f'{value:.4g}' if isinstance(value, float) else str(value)
  return text + (f'{between}{spread:.2g}' if spread not in ('', None) else '')


def rows(trials, all_tests=False):
  """One dictionary a setting of [(config, result)], trials that differ by the seed alone together, best first.

  A row has the fields that differ between settings, then seeds, validation (mean, sd, half of its 95 %
  interval by Student's t), the same of test for the best row, or for `all_tests` of every one, parameters,
  an estimate of the file's bytes, and seconds a trial. The order is by validation; equal ones are in the order of their fields.
  """
  measure, more = next((m, more) for m, more in MEASURES if all(f'validation_{m}' in result for _, result in trials))
  fields = [name for name in config_lib.differing([config for config, _ in trials]) if name != 'seed']
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
    row.update(num_parameters=results[0]['num_parameters'], estimated_bytes=round(statistics.mean(r['estimated_bytes'] for r in results)),
               seconds=round(statistics.mean(r['train_seconds'] for r in results), 2))
    found.append(row)
  return found


def swept(rows):
  """Names of the fields that differ between the rows of `rows`."""
  return list(rows[0])[:list(rows[0]).index('seeds')]


def measure(rows):
  """Name of the measurement that rows are ranked by, such as 'validation_accuracy'."""
  return list(rows[0])[list(rows[0]).index('seeds') + 1]


def front(points):
  """The (size, value) points that no other beats in both: ascending sizes, ascending values."""
  best, found = -math.inf, []
  for size, value in sorted(points, key=lambda point: (point[0], -point[1])):
    if value > best:
      best = value
      found.append((size, value))
  return found


def latex(found):
  """Rows as a LaTeX tabular with the rules of booktabs; a mean and its deviation share a cell."""
  clean = lambda text: text.replace('_', r'\_').replace('%', r'\%')
  names, fields = columns(found), len(swept(found))
  lines = [r'\begin{tabular}{' + 'l' * fields + 'r' * (len(names) - fields) + '}', r'\toprule',
           ' & '.join(clean(n.replace('_', ' ')) for n in names) + r' \\', r'\midrule']
  lines += [' & '.join(clean(cell(row, n, r' $\pm$ ')) for n in names) + r' \\' for row in found]
  return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}', ''])


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
