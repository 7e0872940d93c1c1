"""What files are worth where they run, a row each."""

import functools

import numpy as np

from lepton_jax import config as config_lib
from lepton_jax import evaluation, machine, metrics
from lepton_jax.deploy import latency, runtime
from lepton_jax.errors import UserError

CHUNK = 256  # examples of a call that measures accuracy


def rows(files, split, data_dir, batches, rounds, place):
  """A dictionary a file: bytes, load time, latency, memory, MACs and what a split measures.

  `place` is a folder for temporary files. Raises UserError for a file that cannot be read, and for
  files that read different inputs.
  """
  running = [runtime.open_file(path) for path in files]
  kinds = {(one.dtype.name, one.shape[2:] if one.dtype == np.int32 else one.shape[1:])
           for one in running}
  if len(kinds) > 1:
    raise UserError(f'the files read different inputs: {", ".join(map(str, sorted(kinds)))}')
  if len({data_of(one.facts) for one in running if 'options' in one.facts}) > 1:
    raise UserError('the files were trained on different data; compare files of one data set')
  data = examples(running[0].facts, data_dir)
  one_input, found = drawn(running[0], data, split, 1), []
  for one in running:
    row = dict(file=one.path.name, bytes=size(one), load_ms=1000 * latency.load_seconds(
        functools.partial(runtime.open_file, one.path), one_input))
    if 'macs' in one.facts:
      row |= dict(macs=one.facts['macs'], num_parameters=one.facts['num_parameters'])
    if data is not None:
      row |= {f'{split}_{name}': value for name, value in accuracy(one, data, split).items()}
    found.append(row)
  for count in batches:
    inputs = drawn(running[0], data, split, count)
    np.save(place / 'inputs.npy', inputs)
    times = latency.side_by_side([one.answer for one in running], inputs, rounds)
    for row, time in zip(found, times):
      row |= {f'{name}_{count}': time[name] for name in ('ms', 'p95', 'ratio', 'low', 'high')}
  for one, row in zip(running, found):
    row |= dict(memory=latency.memory(one.path, place / 'inputs.npy'),
                processor=machine.processor())
  return found


def table(found):
  """The rows as a table for people: a line a measurement, a column a file."""
  first, lines = found[0], []

  def line(name, value):
    lines.append({'': name} | {f'{i + 1}: {row["file"]}': value(row)
                               for i, row in enumerate(found)})

  def number(name, factor=1, unit=''):
    if name in first:
      line(name.replace('_', ' '), lambda row: f'{row.get(name, 0) * factor:,.4g}{unit}'
           if isinstance(row.get(name), float) else f'{row.get(name, 0):,}')

  line('bytes (times smaller)',
       lambda row: f'{row["bytes"]:,} ({first["bytes"] / row["bytes"]:.2f})')
  for name in ('num_parameters', 'macs'):
    number(name)
  for name in first:
    if name.endswith('accuracy'):
      number(name, 100, ' %')
    elif name.endswith('rmse'):
      number(name)
  line('opened and first answer', lambda row: f'{row["load_ms"]:.4g} ms')
  for count in (name.rpartition('_')[2] for name in first if name.startswith('ratio_')):
    line(f'batch {count}: ms, 95th percentile',
         lambda row, n=count: f'{row[f"ms_{n}"]:.4g}, {row[f"p95_{n}"]:.4g}')
    line(f'batch {count}: times faster', lambda row, n=count: f'{row[f"ratio_{n}"]:.2f} '
         f'({row[f"low_{n}"]:.2f} to {row[f"high_{n}"]:.2f})')
  line('memory', lambda row: f'{row["memory"] / 1e6:.1f} MB')
  return lines


def size(one):
  """Bytes of a file and of whatever data it has outside of itself."""
  total = one.path.stat().st_size
  if one.format == 'onnx':
    import onnx
    model = onnx.load(one.path, load_external_data=False)
    places = {entry.value for tensor in model.graph.initializer for entry in tensor.external_data
              if entry.key == 'location'}
    total += sum((one.path.parent / place).stat().st_size for place in places)
  return total


def data_of(facts):
  """The options that say which data a network was trained on, as text."""
  return str(sorted((name, value) for name, value in facts['options'].items()
                    if config_lib.FIELDS[name][0] == 'data'))


def examples(facts, data_dir):
  """The data set that a network was trained on, or None where nothing tells it."""
  if 'options' not in facts:
    return None
  from lepton_jax import assemble
  options = {name: config_lib.coerce(name, value) for name, value in facts['options'].items()}
  config = config_lib.Config().replace(**options, data_dir=data_dir or '').check()
  return assemble.load_data(config)


def drawn(one, data, split, count):
  """Raw inputs: examples of a split, repeated where it has too few, or zeros without data."""
  if data is None or data.stream:
    # Without examples a sequence is 50 steps long.
    return np.zeros((count, *(size or 50 for size in one.shape[1:])), one.dtype)
  inputs = data.splits[split][0]
  return np.asarray(inputs[np.arange(count) % len(inputs)])


def accuracy(one, data, split):
  """{measurement: number} of a file on a split."""
  inputs, label = data.splits[split]
  if data.stream:
    return {}
  outputs = np.concatenate([one.answer(np.asarray(inputs[i:i + CHUNK]))
                            for i in range(0, len(inputs), CHUNK)])
  outputs, label = evaluation.by_step(outputs, np.asarray(label))
  if data.measure == 'rmse':
    return dict(rmse=float(np.sqrt(np.mean((outputs - label.reshape(outputs.shape)) ** 2))))
  return dict(accuracy=float(np.mean(metrics.probabilities(outputs).argmax(-1) == label)))
