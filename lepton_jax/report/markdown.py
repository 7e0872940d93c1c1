"""README tables from CSV files, kept between markers so that they cannot drift apart; studies.py has those of sweeps."""

import collections
import csv
import math
import pathlib
import re
import statistics

MARKER = r'<!-- table: {name} -->\n.*?<!-- end -->'


def rows(path):
  """The lines of a CSV file as dictionaries."""
  with pathlib.Path(path).open(newline='') as file:
    return list(csv.DictReader(file))


def write_rows(path, lines):
  """Writes dictionaries of one set of keys as a CSV file, by way of a draft, so that a stop leaves the old one."""
  draft = pathlib.Path(path).with_suffix('.draft')
  with draft.open('w', newline='') as file:
    writer = csv.DictWriter(file, list(lines[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
  draft.replace(path)


def table(header, body):
  """A Markdown table; the first column is left-aligned, the others right."""
  lines = ['| ' + ' | '.join(header) + ' |', '|' + '|'.join([':--', *['--:'] * (len(header) - 1)]) + '|']
  return '\n'.join(lines + ['| ' + ' | '.join(cell.replace('|', r'\|') for cell in row) + ' |' for row in body])


def spread(values, form='{:.2f}'):
  """Mean and sample standard deviation: '99.31 ± 0.02'."""
  mean = form.format(statistics.mean(values))
  return f'{mean} ± {form.format(statistics.stdev(values))}' if len(values) > 1 else mean


# measure: (factor, decimals, unit) of the values in a table
UNITS = dict(accuracy=(100, 2, '%'), loss=(1, 3, 'nats a character'), rmse=(1, 0, 'RMSE'))


def accuracy_table(lines):
  """One row per setting of the accuracy CSV, over its seeds, with the command that makes it."""
  groups = collections.defaultdict(list)
  for line in lines:
    groups[line['row']].append(line)
  body = []
  for name, group in groups.items():
    column = lambda key, group=group: [float(line[key]) for line in group]
    first = group[0]
    factor, decimals, unit = UNITS[first['measure']]
    figures = [spread([factor * v for v in column(split)], f'{{:.{decimals}f}}') for split in ('test', 'validation')]
    beside = [first['baselines']] if first['baselines'] else []
    if first['measure'] == 'accuracy':
      low, high = wilson(statistics.mean(column('test')), int(first['test_examples']))
      beside.append(f'{100 * low:.1f} to {100 * high:.1f}')
    body.append((name, f'{figures[0]} {unit}', '; '.join(beside), figures[1], str(len(group)), f'{int(first["num_parameters"]):,}',
                 f'{100 * statistics.mean(column("sparsity")):.1f} %', first['quantized_kernels'],
                 f'{statistics.median(column("train_seconds")):.0f} ({min(column("train_seconds")):.0f} to {max(column("train_seconds")):.0f})',
                 f'`{first["flags"]}`'))
  header = ('run', 'test', 'interval or baselines', 'validation', 'seeds', 'parameters', 'zeros', 'quantised kernels', 'seconds, median (range)',
            'flags of `./launch.sh train`')
  newest = max(line['finished'] for line in lines)
  versions = ', '.join(sorted({f'jax {line["jax"]}' for line in lines}))
  return (f'{table(header, body)}\n\nMean ± standard deviation over seeds; the interval is 95 % (Wilson) for a test set of that size. '
          f'2 CPU cores, {versions}, {newest[:10]}.')


def speed_table(lines):
  """The benchmark's rows, numbers or the text of numbers: times of a training step and their ratios."""
  ratio = lambda line, name: '{:.2f} ({:.2f} to {:.2f})'.format(*(float(line[f'{name}{end}']) for end in ('', '_low', '_high')))
  body = []
  for line in lines:
    took = {who: f'{float(line[f"{who}_ms"]):.2f}' for who in ('ours', 'torch', 'flax')}
    body.append((f'{line["network"]}, {line["dtype"]}', str(line['batch']), took['ours'], f'{took["torch"]} ({line["torch_choice"]})', took['flax'],
                 ratio(line, 'ratio_vs_torch'), ratio(line, 'ratio_vs_flax'), line['auto'], f'{ratio(line, "auto_vs_best")}, {line["fixed_choice"]}',
                 f'{float(line["gflops"]):.0f}', f'{100 * float(line["gflops"]) / float(line["peak_gflops"]):.0f} %'))
  header = ('network', 'batch', 'ours, ms', 'PyTorch, ms', 'plain Flax, ms', 'PyTorch / ours', 'plain Flax / ours', 'auto', 'best other choice / auto',
            'GFLOP/s', 'of peak')
  first = lines[0]
  peaks = {line['dtype']: float(line['peak_gflops']) for line in lines}
  said = ' and '.join(f'{peak:.0f} GFLOP/s in {dtype}' for dtype, peak in peaks.items())
  return (f'{table(header, body)}\n\n{first["cores"]} cores ({first["machine"]}; {first["device"]}), jax {first["jax"]}, flax {first["flax"]}, '
          f'torch {first["torch"]} on {first["torch_threads"]} threads, Adam; {first["date"]}, revision {first["git_revision"]}. '
          f'The largest matrix product ran at {said}.')


def wilson(share, count, z=1.96):
  """(low, high) of the 95 % score interval of a share among `count` examples (J. Am. Stat. Assoc. 22, 1927)."""
  centre = (share + z * z / (2 * count)) / (1 + z * z / count)
  half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
  return centre - half, centre + half


def insert(text, name, content):
  """`text` with what stands between the markers of `name` replaced; raises ValueError if there are none."""
  found, count = re.subn(MARKER.format(name=name), lambda _: f'<!-- table: {name} -->\n{content}\n<!-- end -->', text, flags=re.DOTALL)
  if count != 1:
    raise ValueError(f'expected one pair of markers for table {name!r}, found {count}')
  return found
