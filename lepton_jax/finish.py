"""What a run came to: the weights that it keeps, and the facts in its result.json."""

import json
import statistics

from lepton_jax import (
  cluster,
  evaluation,
  files,
  layer_facts,
  linear,
  machine,
  removal,
  trees,
)
from lepton_jax import folder as folder_lib
from lepton_jax.compress import report as compress_report
from lepton_jax.deploy import pack
from lepton_jax.layers import platform
from lepton_jax.train import checkpoint


def finish(config, assembly, folder, state, rows, elapsed, meter):
  """Saves the selected weights and measures them on validation and, once, on test.

  Channels that compression made zero leave before. Writes result.json last and returns the result.
  `meter` is the evaluation.Meter of the run.
  """
  data, hparams = assembly.dataset, meter.hparams
  use_best = bool(config.training.select == 'best' and state.best and int(state.best['step']))
  selected = state.best['weights'] if use_best else state.evaluated
  network, weights = removal.narrowed(assembly.network, data, selected, hparams)
  if network is not assembly.network:
    meter = evaluation.Meter(network, data, meter.layout, hparams)
    weights = meter.layout.put_state(weights)
  if config.run.save_weights:
    if cluster.first():
      folder_lib.write_widths(folder, network.widths)
    checkpoint.Checkpoints(folder / 'weights').save(int(state.step), weights)
  result = dict(
      name=config.name(), measure=data.measure, **named('test', meter(weights, 'test')),
      **named('validation', meter(weights, 'validation')),
      **count_steps(assembly, state, use_best, rows, elapsed),
      **compress_report.facts(network.compression, weights, hparams, config,
                              layer_facts.macs(network, weights, data)),
      num_parameters=trees.count(weights['params']),
      file_bytes=file_bytes(config, data, network, weights, hparams),
      **narrower(assembly.network, network, state),
      **naive_forecasts(config, data),
      **linear_coefficients(config, network, data, weights),
      parameters_sha256=trees.digest(state.trained), seed=config.training.seed,
      dataset_sha256=cluster.from_first(lambda: data.fingerprint), **machine.facts(),
      devices=meter.layout.devices,
      convolution=platform.describe(config.run.convolution, config.architecture.dtype))
  if cluster.first():
    if config.run.pictures and rows:
      from lepton_jax.report import pictures
      pictures.learning_curves(rows, folder / 'learning_curves.png', config.name())
    files.write_atomically(folder / folder_lib.RESULT, json.dumps(result, indent=2) + '\n')
  return result


def file_bytes(config, data, network, weights, hparams):
  """Bytes of the packed file of a run: levels as they were trained, all else as it is."""
  trained = folder_lib.Trained(config, data, network, weights, hparams)
  return len(pack.pack(trained, bits=0, number_bits=0))


def narrower(network, small, state):
  """Facts of a run whose layers are narrower than the model's own; {} for all others."""
  if not small.widths:
    return {}
  return dict(widths=small.widths, parameters_before=trees.count(state.params))


def named(split, measured):
  """{'test_loss': ...} without the score that only ranks epochs."""
  return {f'{split}_{name}': value for name, value in measured.items() if name != 'score'}


def count_steps(assembly, state, use_best, rows, elapsed):
  """How far and how fast a run went.

  The rate is the median over its epochs; it leaves out evaluation and compilation.
  """
  rates = [row['examples_per_second'] for row in rows if row.get('examples_per_second')]
  return dict(
      steps=int(state.step),
      epochs=int(state.step) / assembly.batches.steps_per_epoch,
      selected_step=int(state.best['step']) if use_best else int(state.step),
      train_seconds=rows[-1]['seconds'] if rows else elapsed,
      examples_per_second=statistics.median(rates) if rates else None)


def naive_forecasts(config, data):
  """{'baselines': {name: measures}} on the test part of a series; {} for all other data.

  A network is of use where its forecasts are better than these.
  """
  if not data.targets or not data.size('test'):
    return {}
  return dict(baselines=evaluation.baselines(data, 'test', config.data.season))


def linear_coefficients(config, network, data, weights):
  """Slopes and intercept of a linear regression on a table; {} for all other runs."""
  if config.architecture.model != 'linear' or data.task != 'regression':
    return {}
  return linear.coefficients(network, data, weights)
