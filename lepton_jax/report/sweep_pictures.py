"""Pictures of a sweep, each as PNG for a screen and as PDF for a column of a paper."""

import re
import statistics
import textwrap

from etils import epath

from lepton_jax import config as config_lib
from lepton_jax.report import settings
from lepton_jax.report.pictures import COLUMN, in_print, label_points, new_axes, save

CURVES, BARS = 6, 24  # more settings than these are not told apart
KEEP = '\u00a0'  # a space at which no line ends
WORK = 'multiply-accumulates, weight not zero (thousands)'


def draw_all(rows, curves, folder):
  """Draws what fits the sweep into a folder; returns the names of the pictures.

  rows: of settings.rows, best first. curves: for each row the metrics.jsonl rows of its seeds.
  """
  # An earlier report may have had more pictures.
  for name in ('learning_curves', 'settings', 'heat_map', 'parameters', 'size', 'work'):
    for kind in ('png', 'pdf'):
      (epath.Path(folder) / f'{name}.{kind}').unlink(missing_ok=True)
  drawn, fields = [], settings.swept(rows)
  numeric = [f for f in fields if all(isinstance(row[f], (int, float)) for row in rows)
             and len({row[f] for row in rows}) > 1]

  def keep(name, draw, *arguments):
    save(draw(*arguments), f'{folder}/{name}.png')
    with in_print():
      save(draw(*arguments, width=COLUMN), f'{folder}/{name}.pdf')
    drawn.append(name)

  keep('learning_curves', learning_curves, rows, curves)
  keep('settings', ranking, rows)
  if len(numeric) >= 2 and is_grid(rows, *numeric[:2]):
    keep('heat_map', heat_map, rows, *numeric[:2])
  if len({row['num_parameters'] for row in rows}) > 1:
    keep('parameters', against_size, rows, 'num_parameters', 'parameters', 1)
  sizes = [row['file_bytes'] for row in rows]
  if max(sizes) > 1.05 * min(sizes):  # weights alone change a file by some bytes
    keep('size', against_size, rows, 'file_bytes', 'bytes of the file (kB)', 1000)
  if 'nonzero_macs' in rows[0]:
    keep('work', against_size, rows, 'nonzero_macs', WORK, 1000)
  return drawn


def cut(figure, shown, count):
  """The figure with a title that says so where only the best settings are in it."""
  if count > shown:
    figure.axes[0].set_title(f'the best {shown} of {count} settings',
                             fontsize=type_of(figure.get_figwidth()) + 1)
  return figure


def is_grid(rows, across, down):
  """Whether most combinations of two fields were tried, and few enough to be told apart."""
  columns, lines = (len({row[field] for row in rows}) for field in (across, down))
  tried = {(row[across], row[down]) for row in rows}
  return max(columns, lines) <= 16 and 2 * len(tried) > columns * lines


def label_of(rows):
  """What is measured, for an axis."""
  return settings.measure(rows).replace('_', ' ')


def learning_curves(rows, curves, width=8):
  """Validation over epochs: the mean of the seeds, and a band of one standard deviation."""
  names = [name_in(row, 20 * width) for row in rows[:CURVES]]
  figure, axis = new_axes(width, 0.55 * width + rows_of_type('\n'.join(names), width))
  measure = settings.measure(rows)
  for name, seeds in zip(names, curves):
    points = settings.curve(seeds, measure)
    epochs, middle, spread = zip(*points) if points else ((), (), ())
    marker = 'o' if len(epochs) < 15 else None
    line, = axis.plot(epochs, middle, label=name, marker=marker, markersize=3)
    low = [m - s for m, s in zip(middle, spread)]
    high = [m + s for m, s in zip(middle, spread)]
    axis.fill_between(epochs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
  axis.set(xlabel='epoch', ylabel=label_of(rows))
  axis.xaxis.get_major_locator().set_params(integer=True)
  axis.grid(alpha=0.3)
  figure.legend(loc='outside lower center', frameon=False, fontsize=type_of(width))
  return cut(figure, CURVES, len(rows))


def type_of(width):
  """The size of names and numbers in a picture of a width in inches."""
  return 5.5 if width <= COLUMN else 7


def rows_of_type(text, width):
  """Inches that the lines of a text take in a legend."""
  return (text.count('\n') + 1) * 1.6 * type_of(width) / 72


def name_in(row, letters):
  """A setting in words without the names of concerns, on lines of so many letters at most.

  Lines end between options as far as possible.
  """
  name = re.sub(r'\b(prune|quantize|augment) ', '', settings.name_of(row))
  whole = name.replace(' ', KEEP).replace(f',{KEEP}', ', ')
  return '\n'.join(textwrap.wrap(whole, int(letters))).replace(KEEP, ' ')


def ranking(rows, width=8):
  """The settings, best above, each with the 95 % interval of its mean over seeds."""
  count, rows = len(rows), rows[:BARS]
  names = [name_in(row, 11 * width) for row in rows]
  longest = max(rows_of_type(name, width) for name in names)
  figure, axis = new_axes(width, 0.9 + len(rows) * max(longest, 0.28 if width > COLUMN else 0.2))
  measure = settings.measure(rows)
  places = range(len(rows))[::-1]
  bars = [row[f'{measure}_ci95'] or 0 for row in rows]
  axis.errorbar([row[measure] for row in rows], places, xerr=bars if any(bars) else None, fmt='o',
                markersize=4, capsize=3)
  axis.set_yticks(places, names, fontsize=type_of(width))
  axis.set(xlabel=label_of(rows) + ('\n(mean, 95 % interval)' if any(bars) else ''))
  axis.grid(axis='x', alpha=0.3)
  return cut(figure, BARS, count)


def heat_map(rows, across, down, width=6):
  """The mean over two swept fields, all others averaged."""
  figure, axis = new_axes(width, 0.75 * width)
  others = [name.replace('_', ' ') for name in settings.swept(rows) if name not in (across, down)]
  if others:
    axis.set_title(f'mean over {", ".join(others)}', fontsize=9)
  measure = settings.measure(rows)
  columns, lines = (sorted({row[field] for row in rows}) for field in (across, down))

  def mean(column, line):
    found = [row[measure] for row in rows if row[across] == column and row[down] == line]
    return statistics.mean(found) if found else float('nan')

  cells = [[mean(column, line) for column in columns] for line in lines]
  shown = axis.imshow(cells, cmap='viridis', aspect='auto')
  size = type_of(width) - (1 if len(columns) > 6 else 0)
  for i, line in enumerate(cells):
    for j, value in enumerate(line):
      if value == value:  # a combination that was tried
        colour = 'white' if shown.norm(value) < 0.6 else 'black'
        axis.text(j, i, f'{value:.3g}', ha='center', va='center', fontsize=size, color=colour)
  axis.set_xticks(range(len(columns)), map(settings.short, columns))
  axis.set_yticks(range(len(lines)), map(settings.short, lines))
  axis.set(xlabel=across.replace('_', ' '), ylabel=down.replace('_', ' '))
  figure.colorbar(shown, label=label_of(rows))
  return figure


def against_size(rows, size, title, unit=1, width=7.5):
  """The measurement against a size in units of `unit`, and the front of the best settings.

  Nothing beats a setting of the front in both. Colours tell methods apart, markers the bits of
  weights, and the points carry their other values, those of the front first, as far as there is
  room; page.html has the names of all.
  """
  measure = settings.measure(rows)
  sign = settings.sign(measure)
  methods = sorted({method_of(row) for row in rows})
  bits = sorted({row.get(BITS, 0) for row in rows})
  key = '\n'.join(textwrap.shorten(name, int(10 * width)) for name in methods)
  figure, axis = new_axes(width, 0.62 * width + rows_of_type(key, width))
  colors = colors_of(len(methods))
  for row in rows:
    marker = MARKERS[bits.index(row.get(BITS, 0)) % len(MARKERS)]
    color = colors[methods.index(method_of(row))]
    axis.errorbar(row[size] / unit, row[measure], yerr=row[f'{measure}_sd'] or None, capsize=2,
                  fmt=marker, markersize=5 if width > COLUMN else 3.5, alpha=0.75, color=color)
  best = settings.front([(row[size], sign * row[measure]) for row in rows])
  axis.plot([s / unit for s, _ in best], [sign * v for _, v in best], color='0.4', linewidth=0.8,
            drawstyle='steps-post', zorder=0)
  axis.set(xlabel=title, ylabel=label_of(rows), xscale='log')
  from matplotlib import lines, ticker
  axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axis.xaxis.set_major_formatter(ticker.StrMethodFormatter('{x:,g}'))
  axis.xaxis.set_minor_formatter(ticker.NullFormatter())
  axis.grid(alpha=0.3, which='both')
  entry = lambda label, **look: lines.Line2D([], [], linestyle='', label=label, **look)
  entries = [entry(name, color=color, marker='o')
             for name, color in zip(key.split('\n'), colors)]
  if len(bits) > 1:
    entries += [entry(f'{n or 32} bits', color='0.4', marker=MARKERS[i % len(MARKERS)])
                for i, n in enumerate(bits)]
  entries.append(lines.Line2D([], [], color='0.4', linewidth=0.8, label='Pareto front'))
  figure.legend(handles=entries, loc='outside lower center', frameon=False,
                fontsize=type_of(width), ncols=max(1, int(width / 1.6)))
  on_front = lambda row: (row[size], sign * row[measure]) in best
  placed = label_points(axis, [(row[size] / unit, row[measure], name_of(row))
                               for row in sorted(rows, key=on_front, reverse=True)],
                        type_of(width) - 0.5)
  if placed < len(rows):
    axis.set_title(f'{placed} of {len(rows)} settings have room for their names',
                   fontsize=type_of(width))
  return figure


def colors_of(count):
  """As many colours, all different up to twenty."""
  from matplotlib import colormaps
  several = colormaps['tab10' if count <= 10 else 'tab20'].colors
  return [several[i % len(several)] for i in range(count)]


BITS, MARKERS = 'quantize_weight_bits', 'osD^vPX<>*'


def words_of(row):
  """The swept names of a setting: of methods, models and the like."""
  return [row[field] for field in settings.swept([row]) if field not in config_lib.ORIGINS
          and isinstance(row[field], str) and row[field] not in ('', 'none')]


def method_of(row):
  """What tells a setting's kind: its swept names, and what is on of pruning and rounding."""
  switches = dict(prune_sparsity='pruned', quantize_weight_bits='quantised')
  on = [word for field, word in switches.items() if row.get(field)]
  known = any(field in row for field in switches)
  return ', '.join([*(on or (['dense'] if known else [])), *words_of(row)]) or 'settings'


def name_of(row):
  """The values of a setting that neither its colour nor its marker shows, or else its names."""
  rest = ', '.join(f'{field.removeprefix("prune_").replace("_", " ")} {settings.short(row[field])}'
                   for field in settings.swept([row])
                   if not isinstance(row[field], str) and field != BITS and row[field])
  return rest or ', '.join(words_of(row)) or method_of(row)
