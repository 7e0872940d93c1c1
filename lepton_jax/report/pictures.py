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
