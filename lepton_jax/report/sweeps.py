"""The report of trials in a folder: text, tables, pictures and a page."""

import re

from etils import epath

from lepton_jax import config as config_lib
from lepton_jax import outcomes
from lepton_jax.errors import UserError
from lepton_jax.files import read_json
from lepton_jax.report import checklist, differences, settings
from lepton_jax.train import record


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

  without = sorted(path.parent for name in (outcomes.FAILURE, outcomes.GIVEN_UP)
                   for path in inside.glob(f'*/{name}'))
  without = [f for f in without if f not in results and (f / 'config.json').exists()]
  others = [f for f in folders if f not in ranked]
  trials = [(config(f), results[f]) for f in ranked]
  return trials, others, outcomes.without_result(map(config, without))


def write(trials, folder, all_tests=False, without=()):
  """Writes a report of [(config, result)] into a folder; returns [(folder, rows)].

  If there are several data sets, each has a report in a folder of its name inside.

  without: [(config, why)] of the trials that came to no result.
  """
  sets = {}
  for config, result in trials:
    sets.setdefault((config.data.dataset, config.data.target), []).append((config, result))
  written, pairs = [], {(c.data.dataset, c.architecture.model) for c, _ in trials}
  for key, found in sets.items():
    inside = epath.Path(folder).expanduser()
    inside = inside / re.sub(r'[^\w.]+', '-', ' '.join(key)).strip('-') if len(sets) > 1 else inside
    lost = [(c, why) for c, why in without if (c.data.dataset, c.data.target) == key]
    written.append((inside, write_one(found, inside, all_tests, lost, pairs)))
  return written


def write_one(trials, folder, all_tests, without, pairs):
  """Writes report.md, report.html, tables and pictures of trials on one data set; returns rows.

  pairs: {(data set, network)} of the trials of all data sets.
  """
  from lepton_jax.report import markdown, page, sweep_pictures
  fields = settings.varied([config for config, _ in [*trials, *without]])
  found, groups = settings.rows(trials, all_tests, fields), settings.grouped(trials, fields)
  measure = f'validation_{trials[0][1]["measure"]}'
  compared = differences.compare(groups, measure)
  items = checklist.check(groups, compared, pairs)
  curves = [[record.read_rows(outcomes.folder_of(config)) for config, _ in group]
            for _, group in groups]
  folder.mkdir(parents=True, exist_ok=True)
  pictures = sweep_pictures.draw_all(found, curves, folder)
  markdown.write_rows(folder / 'table.csv', found)
  markdown.write_rows(folder / 'trials.csv', settings.trial_rows(groups, found))
  (folder / 'table.tex').write_text(latex(found))
  (folder / 'differences.tex').unlink(missing_ok=True)  # of an earlier report
  if any(compared):
    header, body = differences.cells(found, compared, measure)
    (folder / 'differences.tex').write_text(tabular(header, body, 1))
  page.write(folder / 'report.html', page.content(
      found, groups, curves, compared=compared, checklist=items, without=without, said=SAID))
  parts = [f'# Trials: {len(trials)}, settings: {len(found)}', table(found), SAID,
           differences.table(found, compared, measure), lost_trials(without, fields),
           *(f'![{name.replace("_", " ")}]({name}.png)' for name in pictures),
           checklist.table(items)]
  (folder / 'report.md').write_text('\n\n'.join(filter(None, parts)) + '\n')
  return found


def lost_trials(without, fields):
  """The trials without a result, and why, as Markdown; '' if there are none."""
  if not without:
    return ''
  setting = lambda config: ', '.join(f'{f} {config.flat()[f]}' for f in fields)
  lines = [f'- `{config.name()}` ({setting(config)}): {why}' for config, why in without]
  return '\n'.join([f'Without a result: {len(without)}', '', *lines])


SAID = ('Mean ± standard deviation over seeds (and folds), the best on validation first, those '
        'that lack a seed last. Test is shown for the best alone, unless all were asked for. '
        'Bytes are those of the packed file. '
        'Seconds are those of a trial with its evaluation; the first of a program has its '
        'compilation as well.')


def table(found):
  """Rows as a Markdown table; a mean and its deviation share a cell."""
  from lepton_jax.report import markdown
  names = settings.columns(found)
  return markdown.table([n.replace('_', ' ') for n in names],
                        [[settings.cell(row, n, ' ± ') for n in names] for row in found])


def latex(found):
  """Rows as a LaTeX tabular with the rules of booktabs; a mean and its deviation share a cell."""
  names, fields = settings.columns(found), len(settings.swept(found))
  body = [[settings.cell(row, n, ' ± ') for n in names] for row in found]
  return tabular([n.replace('_', ' ') for n in names], body, fields)


def tabular(header, body, left):
  """A LaTeX tabular of texts with the rules of booktabs; the first `left` columns are aligned left.

  A document needs the package booktabs for it.
  """
  special = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}'}
  special = str.maketrans(special | {c: f'\\{c}' for c in '_%&#${}'})
  clean = lambda text: text.translate(special)
  cells = lambda row: ' & '.join(clean(cell).replace('±', r'$\pm$') for cell in row) + r' \\'
  lines = [r'\begin{tabular}{' + 'l' * left + 'r' * (len(header) - left) + '}', r'\toprule',
           cells(header), r'\midrule', *map(cells, body), r'\bottomrule', r'\end{tabular}', '']
  return '\n'.join(lines)
