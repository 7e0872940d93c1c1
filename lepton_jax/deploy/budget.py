"""The best of finished runs under a budget of bytes, milliseconds and accuracy."""

import json
import pathlib
import shlex

from lepton_jax import folder
from lepton_jax.deploy import comparison, exports, latency, runtime
from lepton_jax.errors import UserError

FILE = 'network.onnx'


def candidates(folders, data_dir='', tell=print):
  """[{'run', 'accuracy', 'test', 'kb', 'format', 'config'}] of run folders that hold weights.

  Each has an ONNX file in its folder afterwards, made where it is missing. What has no result or no
  weights is told and left out; so is what cannot be exported. `accuracy` is of validation: where
  something is chosen, the test part has no say. Of measures that are errors it is their negative.
  """
  found = []
  for place in map(pathlib.Path, folders):
    result = folder.read_result(place)
    if result is None:
      continue
    try:
      if not runtime.facts_of(place / FILE):
        where = dict(data_dir=data_dir) if data_dir else {}
        exports.write(folder.load(str(place), **where), 'onnx', place / FILE)
      running = runtime.open_file(place / FILE)
    except (UserError, OSError) as error:
      tell(f'{place}: left out, {str(error).splitlines()[0]}')
      continue
    sign = 1 if result['measure'] == 'accuracy' else -1
    row = dict(run=str(place), accuracy=sign * result[f'validation_{result["measure"]}'],
               test=sign * result[f'test_{result["measure"]}'],
               measure=result['measure'], kb=comparison.size(running) / 1000, running=running,
               config=folder.read_config(place))
    found.append(row)
  if not found:
    raise UserError('none of the folders is a finished run with weights')
  return found


def time(rows, rounds=9):
  """Adds 'ms' of one example to the rows, which take turns; raises UserError for unlike data."""
  running = [row['running'] for row in rows]
  if len({(one.dtype.name, one.shape, comparison.data_of(one.facts)) for one in running}) > 1:
    raise UserError('the runs read different data; name runs of one data set')
  inputs = comparison.drawn(running[0], None, 'test', 1)
  times = latency.side_by_side([one.answer for one in running], inputs, rounds)
  for row, one in zip(rows, times):
    row['ms'] = one['ms']


def front(rows):
  """The rows that no other row beats: none is as good in all three and better in one."""
  point = lambda row: (-row['accuracy'], row['kb'], row['ms'])

  def beaten(row):
    mine = point(row)
    return any(point(other) != mine and all(a <= b for a, b in zip(point(other), mine))
               for other in rows)

  return [row for row in rows if not beaten(row)]


def excess(row, limits):
  """{name: by what share of it a limit is missed} of a row; empty where it fits.

  `limits` are {'kb', 'ms': the most, 'accuracy': the least}; absent ones do not count.
  """
  over = {name: (row[name] - most) / abs(most or 1) for name, most in limits.items()
          if name != 'accuracy'}
  if 'accuracy' in limits:
    over['accuracy'] = limits['accuracy'] - row['accuracy']
  return {name: share for name, share in over.items() if share > 0}


def chosen(rows, limits):
  """The row of best accuracy that fits, of equal ones the smallest; None where none fits."""
  fitting = [row for row in rows if not excess(row, limits)]
  return min(fitting, key=lambda row: (-row['accuracy'], row['kb'], row['ms']), default=None)


def nearest(rows, limits, count=3):
  """The rows that miss the limits least, by their worst one."""
  return sorted(rows, key=lambda row: max(excess(row, limits).values(), default=0))[:count]


def missed(row, limits):
  """By how much a row misses limits, in words."""
  words = []
  for name in excess(row, limits):
    if name == 'accuracy':
      words.append(f'{100 * (limits[name] - row[name]):.2f} points of accuracy')
    else:
      words.append(f'{row[name] - limits[name]:.3g} {name} too much')
  return ', '.join(words)


def command(config):
  """The command that trains a configuration again."""
  words = [f'--{name}={shlex.quote(str(value))}' for name, value in config.changed().items()]
  return ' '.join(['./launch.sh train', *words])


def draw(rows, best, limits, path):
  """Accuracy against kB; colour tells the milliseconds, rings the front, a star the choice."""
  from lepton_jax.report import pictures
  figure, axis = pictures.new_axes(7.5, 4.6)
  dots = axis.scatter([row['kb'] for row in rows], [100 * row['accuracy'] for row in rows],
                      c=[row['ms'] for row in rows], cmap='viridis', s=26, zorder=2)
  figure.colorbar(dots, label='ms an example, one thread')
  for row in front(rows):
    axis.scatter(row['kb'], 100 * row['accuracy'], s=90, facecolors='none', edgecolors='0.4',
                 zorder=1)
  if best is not None:
    axis.scatter(best['kb'], 100 * best['accuracy'], marker='*', s=220, color='C3', zorder=3)
  if 'kb' in limits:
    axis.axvline(limits['kb'], color='0.6', linestyle=':')
  if 'accuracy' in limits:
    axis.axhline(100 * limits['accuracy'], color='0.6', linestyle=':')
  axis.set(xscale='log', xlabel='kB of the ONNX file', ylabel='validation accuracy, %')
  axis.grid(alpha=0.3, which='both')
  pictures.save(figure, path)


def shown(row):
  """A row for people."""
  return dict(run=row['run'], validation=row['accuracy'], kb=round(row['kb'], 2),
              ms=round(row['ms'], 4))


def as_json(rows, best):
  """The rows and the choice as JSON."""
  plain = lambda row: row and {name: row[name] for name in ('run', 'accuracy', 'kb', 'ms')}
  return json.dumps(dict(rows=[plain(row) for row in rows], best=plain(best)), indent=2) + '\n'
