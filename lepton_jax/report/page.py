"""One HTML page of a sweep that needs no network: table, trade-off, curves, layers, commands."""

import html
import json
import math
import pathlib
import shlex

from lepton_jax import files, outcomes
from lepton_jax.report import differences, markdown, settings, sweep_pictures

PAGE = pathlib.Path(__file__).with_name('page.html')
SIZES = ('file_bytes', 'nonzero_macs', 'num_parameters')
KERNEL = ('kernel', 'weight_bits', 'macs')
POINTS = 200  # of a curve; more are not told apart
SENSITIVITY = 'sensitivity/sensitivity.csv'  # written by experiments/sensitivity.py
FORGETTING = 'forgetting.json'  # written by experiments/compress.py


def write(path, content):
  """Writes the page of what `content` returned."""
  files.write_atomically(path, render(content))


def render(content):
  """The text of the page.

  The data stand in it as JSON without the characters by which HTML could end or begin anything,
  and the page's script writes them as text alone.
  """
  text = json.dumps(finite(content), ensure_ascii=True, allow_nan=False)
  for character in '<>&':
    text = text.replace(character, f'\\u{ord(character):04x}')
  template = PAGE.read_text().replace('{{title}}', html.escape(content['title']))
  return template.replace('{{data}}', text)


def finite(value):
  """The same without numbers that JSON lacks: None instead."""
  if isinstance(value, dict):
    return {name: finite(one) for name, one in value.items()}
  if isinstance(value, (list, tuple)):
    return [finite(one) for one in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def content(rows, groups, curves, *, compared, checklist, without, said):
  """What the page shows, as dictionaries and lists of plain values.

  rows: of settings.rows. groups: of settings.grouped. curves: for each setting the rows of
  metrics.jsonl of its trials. compared: of differences.compare. checklist: of checklist.check.
  without: [(config, why)] of trials without a result. said: what the table means.
  """
  measure = settings.measure(rows)
  bases = [settings.name_of(rows[place]) for place in differences.bases_of(compared)]
  first = groups[0][1][0][0]
  shown = [dict(
      name=settings.name_of(row), kind=sweep_pictures.method_of(row), row=row, against=against,
      curve=thinned(settings.curve(seeds, measure)), kernels=kernels(trials),
      trials=[trial(*one, row) for one in trials], **beside(trials))
           for row, (_, trials), seeds, against in zip(rows, groups, curves, compared)]
  columns = [name for name in trial_columns(rows) if any(
      name in one for setting in shown for one in setting['trials'])]
  return dict(
      title=f'{first.data.dataset}: {len(rows)} settings, {sum(len(g) for _, g in groups)} trials',
      said=said, measure=measure, higher=settings.sign(measure) > 0,
      columns=settings.columns(rows), trial_columns=columns,
      sizes=[name for name in SIZES if len({row.get(name) for row in rows}) > 1] or ['file_bytes'],
      notes=f'Changes are of validation, from {" or ".join(bases)}, over equal seeds, with 95 % '
            f"intervals by Student's t." if bases else '',
      settings=shown, checklist=checklist,
      without=[(config.name(), why) for config, why in without])


def trial_columns(rows):
  """What the page shows of each trial beside its seed."""
  kind = settings.measure(rows).partition('_')[2]
  return ['fold', f'validation_{kind}', f'test_{kind}', *settings.RAW]


def trial(config, result, row):
  """One trial: numbers of its result.json, and its command; test only where its setting has it."""
  kind = result['measure']
  found = dict(seed=config.training.seed)
  found |= {name: result[name] for name in settings.RAW if name in result}
  found[f'validation_{kind}'] = result[f'validation_{kind}']
  if row[f'test_{kind}'] != '':
    found[f'test_{kind}'] = result[f'test_{kind}']
  if config.data.folds:
    found['fold'] = config.data.fold
  return found | dict(command=command(config))


def command(config):
  """The command line that trains a run again, as a shell takes it."""
  options = config.changed() | {name: value for name in ('data_dir', 'manual_dir')
                                if (value := config.flat()[name])}
  written = lambda value: str(value).lower() if isinstance(value, bool) else str(value)
  return ' '.join(['./launch.sh train',
                   *(shlex.quote(f'--{name}={written(value)}') for name, value in options.items())])


def kernels(trials):
  """Each kernel of a setting: mean sparsity over its trials, bits and work of the first one."""
  tables = [result.get('kernels', []) for _, result in trials]
  if not all(tables):
    return []
  found = []
  for row in tables[0]:
    zeros = [other['sparsity'] for table in tables for other in table
             if other['kernel'] == row['kernel']]
    found.append({name: row[name] for name in KERNEL if name in row}
                 | dict(sparsity=sum(zeros) / len(zeros)))
  return found


def beside(trials):
  """{'sensitivity': rows, 'forgetting': ...} that lie in the folders of a setting's trials."""
  found = {}
  for config, _ in trials:
    folder = outcomes.folder_of(config)
    if 'sensitivity' not in found and (folder / SENSITIVITY).exists():
      number = lambda name, text: text if name == 'kernel' or not text else float(text)
      found['sensitivity'] = [{name: number(name, text) for name, text in row.items()}
                              for row in markdown.rows(folder / SENSITIVITY)]
    lost = files.read_json(folder / FORGETTING)
    if 'forgetting' not in found and lost:
      found['forgetting'] = lost
  return found


def thinned(points):
  """At most POINTS of the points, the last one among them."""
  step = -(-len(points) // POINTS) if points else 1
  return points[::-1][::step][::-1]
