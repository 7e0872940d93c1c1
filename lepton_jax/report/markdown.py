"""README tables from CSV files, kept between markers so that they cannot drift apart."""

import collections
import csv
import pathlib
import re
import statistics

MARKER = r'<!-- table: {name} -->\n.*?<!-- end -->'


def rows(path):
  """The lines of a CSV file as dictionaries."""
  with pathlib.Path(path).open(newline='') as file:
    return list(csv.DictReader(file))


def table(header, body):
  """A Markdown table; the first column is left-aligned, the others right."""
  lines = ['| ' + ' | '.join(header) + ' |', '|' + '|'.join([':--', *['--:'] * (len(header) - 1)]) + '|']
  return '\n'.join(lines + ['| ' + ' | '.join(row) + ' |' for row in body])


def spread(values, form='{:.2f}'):
  """Mean and sample standard deviation: '99.31 ± 0.02'."""
  mean = form.format(statistics.mean(values))
  return f'{mean} ± {form.format(statistics.stdev(values))}' if len(values) > 1 else mean


def accuracy_table(lines):
  """One row per setting of the accuracy CSV, over its seeds, with the command that makes it."""
  groups = collections.defaultdict(list)
  for line in lines:
    groups[line['row']].append(line)
  body = []
  for name, group in groups.items():
    column = lambda key, group=group: [float(line[key]) for line in group]
    body.append((name, spread([100 * v for v in column('test_accuracy')]), str(len(group)), f'{int(group[0]["num_parameters"]):,}',
                 f'{100 * statistics.mean(column("sparsity")):.1f} %', group[0]['quantized_kernels'],
                 f'{statistics.median(column("train_seconds")):.0f} ({min(column("train_seconds")):.0f} to {max(column("train_seconds")):.0f})',
                 f'`{group[0]["flags"]}`'))
  header = ('run', 'test accuracy, %', 'seeds', 'parameters', 'zeros', 'quantised kernels', 'seconds, median (range)', 'flags of `./launch.sh train`')
  newest = max(line['finished'] for line in lines)
  versions = ', '.join(sorted({f'jax {line["jax"]}' for line in lines}))
  return f'{table(header, body)}\n\nMean ± standard deviation over seeds; 2 CPU cores, {versions}, {newest[:10]}.'


def insert(text, name, content):
  """`text` with what stands between the markers of `name` replaced; raises ValueError if there are none."""
  found, count = re.subn(MARKER.format(name=name), lambda _: f'<!-- table: {name} -->\n{content}\n<!-- end -->', text, flags=re.DOTALL)
  if count != 1:
    raise ValueError(f'expected one pair of markers for table {name!r}, found {count}')
  return found
