"""Tables of the README from CSV files; studies.py has those of sweeps.

They stand between markers and are written again as a whole, so that they cannot drift apart.
"""

import collections
import csv
import io
import math
import re
import statistics

from etils import epath

from lepton_jax import files

MARKER = r'<!-- table: {name} -->\n.*?<!-- end -->'


def rows(path):
  """The lines of a CSV file as dictionaries."""
  return list(csv.DictReader(io.StringIO(epath.Path(path).read_text())))


def write_rows(path, lines):
  """Writes dictionaries of one set of keys as a CSV file; a stop leaves the old file."""
  text = io.StringIO()
  writer = csv.DictWriter(text, list(lines[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(lines)
  files.write_atomically(path, text.getvalue())


def table(header, body):
  """A Markdown table; the first column is left-aligned, the others right."""
  line = lambda cells: '| ' + ' | '.join(cells) + ' |'
  rule = '|' + '|'.join([':--', *['--:'] * (len(header) - 1)]) + '|'
  escaped = ([cell.replace('|', r'\|') for cell in row] for row in body)
  return '\n'.join([line(header), rule, *map(line, escaped)])


def spread(values, form='{:.2f}'):
  """Mean and sample standard deviation: '99.31 ± 0.02'."""
  mean = form.format(statistics.mean(values))
  return f'{mean} ± {form.format(statistics.stdev(values))}' if len(values) > 1 else mean


# measure: (factor, decimals, unit) of the values in a table
UNITS = dict(accuracy=(100, 2, '%'), loss=(1, 3, 'nats a character'), rmse=(1, 0, 'RMSE'))


def measured(values, measure):
  """(mean and deviation of what a measure found, in its unit; the unit): ('99.31 ± 0.02', '%')."""
  factor, decimals, unit = UNITS[measure]
  return spread([factor * value for value in values], f'{{:.{decimals}f}}'), unit


def accuracy_table(lines):
  """One row per setting of the accuracy CSV, over its seeds, with the command that makes it."""
  groups = collections.defaultdict(list)
  for line in lines:
    groups[line['row']].append(line)
  body = []
  for name, group in groups.items():
    column = lambda key, group=group: [float(line[key]) for line in group]
    first = group[0]
    test, unit = measured(column('test'), first['measure'])
    validation, _ = measured(column('validation'), first['measure'])
    beside = [first['baselines']] if first['baselines'] else []
    if first['measure'] == 'accuracy':
      low, high = wilson(statistics.mean(column('test')), int(first['test_examples']))
      beside.append(f'{100 * low:.1f} to {100 * high:.1f}')
    seconds = column('train_seconds')
    body.append((name, f'{test} {unit}', '; '.join(beside), validation, str(len(group)),
                 f'{int(first["num_parameters"]):,}',
                 f'{100 * statistics.mean(column("sparsity")):.1f} %', first['quantized_kernels'],
                 f'{statistics.median(seconds):.0f} ({min(seconds):.0f} to {max(seconds):.0f})',
                 f'`{first["flags"]}`'))
  header = ('run', 'test', 'interval or baselines', 'validation', 'seeds', 'parameters', 'zeros',
            'quantised kernels', 'seconds, median (range)', 'flags of `./launch.sh train`')
  newest = max(line['finished'] for line in lines)
  versions = ', '.join(sorted({f'jax {line["jax"]}' for line in lines}))
  return (f'{table(header, body)}\n\nMean ± standard deviation over seeds; the interval is 95 % '
          f'(Wilson) for a test set of that size. 2 CPU cores, {versions}, {newest[:10]}.')


def speed_table(lines):
  """The benchmark's rows: times of a training step and their ratios.

  The rows' values are numbers or the text of numbers.
  """
  def ratio(line, name):
    middle, low, high = (float(line[f'{name}{end}']) for end in ('', '_low', '_high'))
    return f'{middle:.2f} ({low:.2f} to {high:.2f})'
  body = []
  for line in lines:
    took = {who: f'{float(line[f"{who}_ms"]):.2f}' for who in ('ours', 'torch', 'flax')}
    gflops, peak = float(line['gflops']), float(line['peak_gflops'])
    body.append((f'{line["network"]}, {line["dtype"]}', str(line['batch']), took['ours'],
                 f'{took["torch"]} ({line["torch_choice"]})', took['flax'],
                 ratio(line, 'ratio_vs_torch'), ratio(line, 'ratio_vs_flax'), line['auto'],
                 f'{ratio(line, "auto_vs_best")}, {line["fixed_choice"]}', f'{gflops:.0f}',
                 f'{100 * gflops / peak:.0f} %'))
  header = ('network', 'batch', 'ours, ms', 'PyTorch, ms', 'plain Flax, ms', 'PyTorch / ours',
            'plain Flax / ours', 'auto', 'best other choice / auto', 'GFLOP/s', 'of peak')
  first = lines[0]
  peaks = {line['dtype']: float(line['peak_gflops']) for line in lines}
  said = ' and '.join(f'{peak:.0f} GFLOP/s in {dtype}' for dtype, peak in peaks.items())
  return (f'{table(header, body)}\n\n{first["cores"]} cores ({first["machine"]}; '
          f'{first["device"]}), jax {first["jax"]}, flax {first["flax"]}, torch {first["torch"]} '
          f'on {first["torch_threads"]} threads, Adam; {first["date"]}, revision '
          f'{first["git_revision"]}. The largest matrix product ran at {said}.')


def wilson(share, count, z=1.96):
  """(low, high) of the 95 % score interval of a share among `count` examples.

  It is Wilson's (J. Am. Stat. Assoc. 22, 1927).
  """
  centre = (share + z * z / (2 * count)) / (1 + z * z / count)
  half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
  return centre - half, centre + half


def markers(text):
  """Names of the tables that have a place in a text."""
  return re.findall(r'<!-- table: (\w+) -->', text)


def insert(text, name, content):
  """`text` with the content between the markers of `name` replaced; ValueError without markers."""
  block = f'<!-- table: {name} -->\n{content}\n<!-- end -->'
  found, count = re.subn(MARKER.format(name=name), lambda _: block, text, flags=re.DOTALL)
  if count != 1:
    raise ValueError(f'expected one pair of markers for table {name!r}, found {count}')
  return found
