"""What trials found: one row a setting over its seeds, the best chosen on validation."""

import math
import re
import statistics

from etils import epath

from lepton_jax import config as config_lib
from lepton_jax.errors import UserError
from lepton_jax.files import read_json
from lepton_jax.sweep import trials as trials_lib

REPEATS = ('seed', 'fold')  # what a setting is repeated over


def read(runs_dir):
  """The trials in a folder, the results that no table can rank, and the trials without a result.

  They are [(config, result)] in the order of the folders' names, the folders of other results, and
  [(config, what went wrong)] of the trials that failed or were given up. Raises UserError where
  there are no trials, and for a damaged file.
  """
  inside = epath.Path(runs_dir).expanduser()
  folders = sorted(path.parent for path in inside.glob('*/result.json'))
  results = {folder: read_json(folder / 'result.json') for folder in folders}
  ranked = [f for f, result in results.items()
            if {'measure', 'file_bytes'} <= result.keys()
            and f'validation_{result["measure"]}' in result]
  if not ranked:
    raise UserError(f'{runs_dir} holds no finished runs with a validation part')

  def config(folder):
    text = (folder / 'config.json').read_text()
    return config_lib.Config.from_json(text, str(folder)).replace(runs_dir=str(folder.parent))

  without = sorted(path.parent for name in (trials_lib.FAILURE, trials_lib.GIVEN_UP)
                   for path in inside.glob(f'*/{name}'))
  without = [f for f in without if f not in results and (f / 'config.json').exists()]
  others = [f for f in folders if f not in ranked]
  trials = [(config(f), results[f]) for f in ranked]
  return trials, others, trials_lib.without_result(map(config, without))


def write(trials, folder, all_tests=False, without=()):
  """Writes a report of [(config, result)] into a folder; returns [(folder, rows)].

  If there are several data sets, each has a report in a folder of its name inside.

  without: [(config, why)] of the trials that came to no result.
  """
  sets = {}
  for config, result in trials:
    sets.setdefault((config.data.dataset, config.data.target), []).append((config, result))
  written = []
  for key, found in sets.items():
    inside = epath.Path(folder).expanduser()
    inside = inside / re.sub(r'[^\w.]+', '-', ' '.join(key)).strip('-') if len(sets) > 1 else inside
    lost = [(c, why) for c, why in without if (c.data.dataset, c.data.target) == key]
    written.append((inside, write_one(found, inside, all_tests, lost)))
  return written


def write_one(trials, folder, all_tests, without):
  """Writes report.md, table.csv, table.tex and pictures of trials on one data set; returns rows."""
  from lepton_jax.report import markdown, sweep_pictures
  from lepton_jax.train import record
  fields = varied([config for config, _ in [*trials, *without]])
  found = rows(trials, all_tests, fields)
  folder.mkdir(parents=True, exist_ok=True)
  key = lambda config: tuple(config.flat()[f] for f in fields)

  def metrics(config):
    return record.read_rows(epath.Path(config.run.runs_dir).expanduser() / config.name())

  curves = [[metrics(c) for c, _ in trials if key(c) == tuple(row[f] for f in fields)]
            for row in found]
  pictures = sweep_pictures.draw_all(found, curves, folder)
  markdown.write_rows(folder / 'table.csv', found)
  (folder / 'table.tex').write_text(latex(found))
  lines = [f'# Trials: {len(trials)}, settings: {len(found)}', '', table(found), '', SAID, '']
  if without:
    lines += [f'Without a result: {len(without)}', '']
    for config, why in without:
      setting = ', '.join(f'{f} {config.flat()[f]}' for f in fields)
      lines.append(f'- `{config.name()}` ({setting}): {why}')
    lines.append('')
  lines += [f'![{name.replace("_", " ")}]({name}.png)\n' for name in pictures]
  (folder / 'report.md').write_text('\n'.join(lines))
  return found


def varied(configs):
  """Names of the fields that make settings: those that differ, except the REPEATS of a setting."""
  return [name for name in config_lib.differing(configs) if name not in REPEATS]


SAID = ('Mean ± standard deviation over seeds (and folds), the best on validation first, those '
        'that lack a seed last. Test is shown for the best alone, unless all were asked for. '
        'Bytes are those of the packed file. '
        'Seconds are those of a trial with its evaluation; the first of a program has its '
        'compilation as well.')


def table(found):
  """Rows as a Markdown table; a mean and its deviation share a cell."""
  from lepton_jax.report import markdown
  names = columns(found)
  return markdown.table([n.replace('_', ' ') for n in names],
                        [[cell(row, n, ' ± ') for n in names] for row in found])


def columns(found):
  """What tables for people show: no column that is empty, no spread of its own."""
  return [n for n in found[0] if not n.endswith(('_sd', '_ci95'))
          and any(row[n] not in ('', None) for row in found)]


def cell(row, name, between):
  """A value as text, with its standard deviation over seeds where it has one."""
  value, spread = row[name], row.get(f'{name}_sd')
  text = '' if value in ('', None) else f'{value:.4g}' if isinstance(value, float) else str(value)
  return text + (f'{between}{spread:.2g}' if spread not in ('', None) else '')


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


def latex(found):
  """Rows as a LaTeX tabular with the rules of booktabs; a mean and its deviation share a cell."""
  special = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}'}
  special = str.maketrans(special | {c: f'\\{c}' for c in '_%&#${}'})
  clean = lambda text: text.translate(special)
  names, fields = columns(found), len(swept(found))
  lines = [r'\begin{tabular}{' + 'l' * fields + 'r' * (len(names) - fields) + '}', r'\toprule',
           ' & '.join(clean(n.replace('_', ' ')) for n in names) + r' \\', r'\midrule']
  for row in found:
    cells = [clean(cell(row, n, ' ± ')).replace('±', r'$\pm$') for n in names]
    lines.append(' & '.join(cells) + r' \\')
  return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}', ''])


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
