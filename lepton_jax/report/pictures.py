"""Pictures of a run."""

import io

from etils import epath

from lepton_jax import files


def new_axes(width, height, columns=1):
  """(figure, axes) in inches, drawn without a screen."""
  import matplotlib
  matplotlib.use('Agg')
  from matplotlib import pyplot
  return pyplot.subplots(1, columns, figsize=(width, height), dpi=120, layout='constrained')


COLUMN = 3.3  # inches: a column of two in IEEE's, ICML's and ACL's styles is 3.0 to 3.5 wide


def in_print():
  """A context in which figures have the type of a paper's column, and fonts that it may embed."""
  import matplotlib
  return matplotlib.rc_context({'font.size': 7, 'axes.titlesize': 7, 'legend.fontsize': 6,
                                'xtick.labelsize': 6, 'ytick.labelsize': 6, 'pdf.fonttype': 42})


def label_points(axis, labels, size=6):
  """Writes texts beside points where they cover nothing; returns how many found a place.

  labels: [(x, y, text)]; the first ones choose first. A text that is not next to its point has a
  thin line to it. Call it last: later changes of the axes move points and texts apart.
  """
  from matplotlib import transforms
  axis.figure.draw_without_rendering()
  renderer, inside = axis.figure.canvas.get_renderer(), axis.get_window_extent()
  mark = 3 * axis.figure.dpi / 72  # half a marker of 6 points of type, in pixels
  taken = [transforms.Bbox([[x - mark, y - mark], [x + mark, y + mark]])
           for x, y in axis.transData.transform([label[:2] for label in labels])]

  def written(x, y, text):
    for offset in OFFSETS:
      note = beside(axis, x, y, text, offset, size)
      box = note.get_window_extent(renderer)
      within = all(inside.contains(*corner) for corner in (box.min, box.max))
      if within and not box.count_overlaps(taken):
        taken.append(box)
        return True
      note.remove()
    return False

  return sum(written(*label) for label in labels)


# Where a text may stand, from its point, in points of type: near ones first.
OFFSETS = [(distance * across, distance * up) for distance in (4, 12, 20, 30)
           for across, up in ((1, 0.7), (1, -0.7), (-1, 0.7), (-1, -0.7), (0, 1.2), (0, -1.2))]


def beside(axis, x, y, text, offset, size):
  """A text at an offset from a point."""
  across, up = offset
  line = dict(arrowstyle='-', linewidth=0.3, color='0.5', shrinkA=0, shrinkB=2)
  note = axis.annotate(
      text, (x, y), offset, textcoords='offset points', fontsize=size,
      arrowprops=line if max(map(abs, offset)) > 5 else None,
      ha='left' if across > 0 else 'right' if across < 0 else 'center',
      va='bottom' if up > 0 else 'top')
  note.set_in_layout(False)  # or the axes would shrink to make room for it
  return note


def save(figure, *paths):
  """Writes a figure in the formats of the paths' endings.

  The content goes through memory, so that remote folders work and no half file is left.
  """
  from matplotlib import pyplot
  for path in map(epath.Path, paths):
    content = io.BytesIO()
    # Without the date, the same numbers make the same file.
    metadata = dict(CreationDate=None) if path.suffix == '.pdf' else None
    figure.savefig(content, format=path.suffix[1:], metadata=metadata)
    files.write_atomically(path, content.getvalue())
  pyplot.close(figure)


def learning_curves(rows, path, title):
  """Loss and accuracy (or RMSE) over epochs, of training and validation; sparsity if pruned."""
  measured = set().union(*rows)
  regression = 'validation_rmse' in measured and 'validation_accuracy' not in measured
  second = 'rmse' if regression else 'accuracy'
  figure, axes = new_axes(9, 3.6, 2)
  marker = 'o' if len(rows) < 30 else None
  for axis, measure in zip(axes, ('loss', second)):
    for split, colour in (('train', '#4878a8'), ('validation', '#d1605e')):
      points = [(row['epoch'], row[f'{split}_{measure}']) for row in rows
                if f'{split}_{measure}' in row]
      if points:
        axis.plot(*zip(*points), label=split, color=colour, marker=marker, markersize=3)
    unit = ' (nats)' if measure == 'loss' and not regression else ''
    axis.set(xlabel='epoch', ylabel=measure + unit)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
  if any('sparsity' in row for row in rows):
    other = axes[1].twinx()
    other.plot([r['epoch'] for r in rows], [r.get('sparsity', 0) for r in rows], color='#777777',
               linestyle=':', label='sparsity')
    other.set(ylabel='sparsity', ylim=(0, 1))
    other.legend(loc='center right', frameon=False)
  axes[0].legend(frameon=False)
  figure.suptitle(title, fontsize=10)
  save(figure, path)


def confusion_matrix(matrix, classes, path, title):
  """Counts of true (rows) against predicted class, coloured by share of the row."""
  import numpy as np
  matrix = np.asarray(matrix)
  side = min(max(4, 0.5 * len(classes) + 2), 16)
  figure, axis = new_axes(side, side)
  share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  axis.imshow(share, cmap='Blues', vmin=0, vmax=1)
  if len(classes) <= 20:
    for row in range(len(classes)):
      for column in range(len(classes)):
        colour = 'white' if share[row, column] > 0.5 else 'black'
        axis.text(column, row, matrix[row, column], ha='center', va='center', fontsize=7,
                  color=colour)
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha='right')
    axis.set_yticks(range(len(classes)), classes)
  axis.set(xlabel='predicted', ylabel='true')
  axis.set_title(title, fontsize=10)
  save(figure, path)


def ratio_bars(names, ratios, path, title):
  """Bars with intervals around a line at 1; `ratios` is {label: [(middle, low, high) a name]}."""
  figure, axes = new_axes(8, 3.2)
  width = 0.8 / len(ratios)
  for place, (label, triples) in enumerate(ratios.items()):
    middle = [m for m, _, _ in triples]
    spread = [[m - low for m, low, _ in triples], [high - m for m, _, high in triples]]
    axes.bar([i + width * place for i in range(len(names))], middle, 0.95 * width, yerr=spread,
             capsize=2, label=label)
  axes.axhline(1, color='black', linewidth=0.8)
  axes.set_xticks([i + 0.4 - width / 2 for i in range(len(names))], names, rotation=20)
  axes.set_ylabel(title)
  axes.legend()
  save(figure, path)
