"""What a run leaves behind while it trains: metrics.jsonl, TensorBoard events, terminal output."""

import json
import sys
import time

from etils import epath

from lepton_jax import files


def read_rows(folder):
  """The rows of a run's metrics.jsonl; a last line cut short by a crash is left out."""
  path = epath.Path(folder) / 'metrics.jsonl'
  rows = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      rows.append(json.loads(line))
    except ValueError:
      break
  return rows


class Record:
  """Rows of one run.

  Opening it cuts metrics.jsonl back to `step`, so that a resumed run continues it exactly.
  """

  def __init__(self, folder, step, tensorboard, quiet=False):
    self._path, self._quiet, self._events = epath.Path(folder) / 'metrics.jsonl', quiet, None
    self.rows = [row for row in read_rows(folder) if row['step'] <= step]
    if quiet:
      return
    self._write()
    if tensorboard and files.remote(folder):
      print(f'no TensorBoard events: they need a local folder, and the run is in {folder}')
    elif tensorboard:
      import tensorboardX
      events = str(epath.Path(folder) / 'tensorboard')
      self._events = tensorboardX.SummaryWriter(events, purge_step=step + 1 if step else None)

  def _write(self):
    files.write_atomically(self._path, ''.join(json.dumps(row) + '\n' for row in self.rows))

  def add(self, row):
    """Appends a row: {'epoch', 'step', measurements}."""
    self.rows.append(row)
    if self._quiet:
      return
    if files.remote(self._path):  # whose objects do not grow
      self._write()
    else:
      with self._path.open('a') as file:
        file.write(json.dumps(row) + '\n')
    if self._events is not None:
      for name, value in row.items():
        if name != 'step' and value is not None:
          self._events.add_scalar(name, value, row['step'])
      self._events.flush()

  def close(self):
    if self._events is not None:
      self._events.close()


class Progress:
  """A live bar on a terminal, one plain line an epoch elsewhere."""

  def __init__(self, total, start, title, quiet=False):
    self._bar, self._quiet, self._began = None, quiet, time.monotonic()
    if not quiet and sys.stdout.isatty():
      from rich import progress
      self._bar = progress.Progress(
          progress.TextColumn('{task.description}'), progress.BarColumn(),
          progress.MofNCompleteColumn(), progress.TimeElapsedColumn(),
          progress.TimeRemainingColumn(), progress.TextColumn('{task.fields[status]}'))
      self._task = self._bar.add_task(title, total=total, completed=start, status='compiling')
      self._bar.start()

  def step(self, step, loss=None):
    if self._bar is not None:
      status = {} if loss is None else dict(status=f'loss {loss:.4f}')
      self._bar.update(self._task, completed=step, **status)

  def line(self, text):
    """Prints one line above the bar."""
    if self._quiet:
      return
    if self._bar is not None:
      self._bar.console.print(text, highlight=False)
    else:
      print(text, flush=True)

  def close(self):
    if self._bar is not None:
      self._bar.stop()
