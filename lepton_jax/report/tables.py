"""Tables for the terminal."""

import sys

# What a result table shows first, and how; the rest of result.json is for machines.
ROWS = (('test_accuracy', '{:.2%}'), ('validation_accuracy', '{:.2%}'), ('test_loss', '{:.4f}'),
        ('test_rmse', '{:.6g}'), ('test_mae', '{:.6g}'), ('intercept', '{:.6g}'),
        ('num_parameters', '{:,}'), ('sparsity', '{:.2%}'), ('quantized_kernels', '{}'),
        ('steps', '{:,}'), ('selected_step', '{:,}'), ('train_seconds', '{:.1f}'),
        ('examples_per_second', '{:,.0f}'), ('device', '{}'), ('seed', '{}'))


def print_table(title, rows):
  """Prints a title, which may be a path to copy, and (name, value) rows as a table; plain text
  where stdout is no terminal.
  """
  from rich import box, console, table
  print(title)
  grid = table.Table(show_header=False, box=box.ROUNDED if sys.stdout.isatty() else box.ASCII2)
  grid.add_column()
  grid.add_column(justify='right')
  for name, value in rows:
    grid.add_row(name, value)
  console.Console(highlight=False).print(grid)


def print_rows(rows, justify='right'):
  """Prints rows of equal columns as a table with a header; spreads stand beside their means."""
  from rich import box, console, table

  from lepton_jax.report import settings
  grid = table.Table(box=box.ROUNDED if sys.stdout.isatty() else box.ASCII2)
  names = settings.columns(rows)
  for name in names:
    grid.add_column(name.replace('_', ' '), justify=justify)
  for row in rows:
    grid.add_row(*(settings.cell(row, n, ' +- ') for n in names))
  console.Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(grid)


def result_rows(result):
  """The rows of a result that people look at first."""
  rows = []
  for name, form in ROWS:
    if result.get(name) is not None:
      value = form.format(result[name])
      if result.get(f'{name}_sd') is not None:
        value += ' +- ' + form.format(result[f'{name}_sd'])
      rows.append((name.replace('_', ' '), value))
  for name, value in result.get('coefficients', {}).items():
    rows.append((f'slope of {name}', f'{value:.6g}'))
  for name, measured in result.get('baselines', {}).items():
    rows.append((f'test rmse of {name.replace("_", " ")}', f'{measured["rmse"]:.6g}'))
  return rows


def print_report(title, report):
  """Prints a full evaluation: the numbers, then one row a class."""
  from rich import box, console, table
  print_table(title, list(numbers(report)))
  if 'per_class' in report:
    grid = table.Table(title='per class', title_justify='left',
                       box=box.ROUNDED if sys.stdout.isatty() else box.ASCII2)
    for name in report['per_class'][0]:
      grid.add_column(name, justify='left' if name == 'name' else 'right')
    for row in report['per_class']:
      grid.add_row(*(f'{v:.4f}' if isinstance(v, float) else str(v) for v in row.values()))
    console.Console(highlight=False).print(grid)


def numbers(report, before=''):
  """(name, text) of every number in a report.

  A number of a dictionary within it, such as a baseline's, has that one's name before its own.
  """
  for name, value in report.items():
    if isinstance(value, dict):
      yield from numbers(value, f'{before}{name.replace("_", " ")}, ')
    elif value is not None and not isinstance(value, (list, str)):
      text = f'{value:.4f}' if isinstance(value, float) else str(value)
      yield f'{before}{name.replace("_", " ")}', text
