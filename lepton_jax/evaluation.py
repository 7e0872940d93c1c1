"""Predictions over whole splits, and what they measure."""

import math

import jax.numpy as jnp
import numpy as np

from lepton_jax import metrics
from lepton_jax.data import batches, series
from lepton_jax.errors import UserError


class Meter:
  """Measures weights of one network on the splits of its data.

  `predict` is what the network predicts by, compiled, if others share it.
  """

  def __init__(self, network, data, layout, hparams, predict=None):
    self.network, self.data, self.layout, self.hparams = network, data, layout, hparams
    self._predict = predict or predictor(network, data, layout)

  def __call__(self, weights, split):
    """{measurement: float}; {} where the split has no examples."""
    if not self.data.size(split):
      return {}
    return evaluate_split(self.network, self._predict, weights, self.hparams, self.data, split,
                          self.network.config.data.batch_size, self.layout)


def predictor(network, data, layout):
  """The compiled function by which a network predicts on its data."""
  return layout.predict(network.predict_stream if data.stream else network.predict)


def evaluate_split(network, predict, weights, hparams, data, split, batch_size, layout):
  """{measurement: float} of weights on a split, every example once; 'score' ranks epochs."""
  if data.stream:
    return stream_measurements(network, predict, weights, hparams, data.splits[split][0],
                               batch_size, layout)
  logits, label = by_step(*predictions(predict, weights, hparams, data, split, batch_size, layout))
  label = network.scaling.changes(data.splits[split][0], label)
  return measurements(network, logits, label, hparams)


def stream_measurements(network, predict, weights, hparams, stream, batch_size, layout):
  """Loss in nats and bits a character, perplexity and accuracy of running text.

  Its rows are read in parallel, each from an empty state.
  """
  carry = layout.put_state(network.carry(batch_size))
  sums = np.zeros(3)
  length = network.config.data.sequence_length
  for batch in batches.stream_passes(stream, batch_size, length, layout.rows):
    *measured, carry = predict(weights, carry, layout.put_examples(batch), hparams)
    sums += np.array([float(m) for m in measured])
  loss = float(sums[0] / sums[2])
  return dict(loss=loss, bits_per_character=loss / math.log(2), perplexity=math.exp(min(loss, 700)),
              accuracy=float(sums[1] / sums[2]), score=-loss)


def predictions(predict, weights, hparams, data, split, batch_size, layout):
  """Logits f32[n, outputs] and labels [n] of a split, in its order."""
  inputs, label = data.splits[split]
  parts = []
  for batch in batches.passes(inputs, batch_size, layout.rows):
    parts.append(predict(weights, layout.put_examples(batch), hparams))
    if len(parts) > 8:
      # A few batches stay in flight; the rest need not stay on the device.
      parts[-9] = np.asarray(parts[-9])
  return np.concatenate([np.asarray(p) for p in parts])[:len(label)], np.asarray(label)


def measurements(network, logits, label, hparams):
  """Mean loss, and accuracy or RMSE and MAE in the target's units, over all examples in float64."""
  batch = dict(label=jnp.asarray(label))
  if network.objective.regression:
    batch['label'] = (batch['label'] - network.scaling.target[0]) / network.scaling.target[1]
  mean = lambda values: float(np.mean(np.asarray(values), dtype=np.float64))
  plain = {k: v for k, v in hparams.items() if k != 'label_smoothing'}
  loss = mean(network.objective.per_example(jnp.asarray(logits), batch, plain))
  if network.objective.regression:
    center, deviation = network.scaling.target
    predicted = np.asarray(logits, np.float64) * deviation + center
    error = predicted - np.reshape(label, logits.shape)
    return dict(loss=loss, rmse=float(np.sqrt(np.mean(error ** 2))),
                mae=float(np.mean(np.abs(error))), score=-loss)
  accuracy = mean(network.objective.measure(jnp.asarray(logits), batch)['accuracy'])
  return dict(loss=loss, accuracy=accuracy, score=accuracy)


def baselines(data, split, season):
  """{name: measures} of forecasts of a series that learn nothing.

  The seasonal one is there only where the window holds a season.
  """
  inputs, label = data.splits[split]
  naive = series.baselines(inputs, label, data.targets, season)
  return {name: metrics.regression_report(prediction, label) for name, prediction in naive.items()}


def by_step(logits, label):
  """Steps as examples: of logits [n, time, classes] and label [n, time] the steps that exist.

  All else stays as it is.
  """
  if np.ndim(logits) == 3:
    exists = label >= 0
    return logits[exists], label[exists]
  return logits, label


def full_report(trained, split):
  """(everything measured of a finished run on a split as plain numbers, confusion matrix or None).

  `trained` is a folder.Trained. Raises UserError for an empty split.
  """
  if not trained.data.size(split):
    raise UserError(f'{trained.data.name} has no {split} examples under this run\'s options')
  inputs, label = trained.data.splits[split]
  if trained.data.stream:
    measured = trained.measure(split)
    name, examples = trained.config.name(), len(label) - 1
    return dict(name=name, split=split, examples=examples, **measured), None
  logits, label = by_step(trained.outputs(inputs), label)
  basic = measurements(trained.network, logits, trained.network.scaling.changes(inputs, label),
                       trained.hparams)
  report = dict(name=trained.config.name(), split=split, examples=len(label), loss=basic['loss'])
  if trained.network.objective.regression:
    values = trained.answers(inputs, logits)
    report.update(metrics.regression_report(values, np.asarray(label)))
    if trained.data.targets:
      report['baselines'] = baselines(trained.data, split, trained.config.data.season)
    return report, None
  report.update(metrics.classification_report(logits, label, trained.data.classes))
  if len(trained.data.classes) == 2 and trained.data.size('validation'):
    held_out, held_label = trained.data.splits['validation']
    held_logits, held_label = by_step(trained.outputs(held_out), held_label)
    threshold = metrics.best_threshold(metrics.probabilities(held_logits)[:, 1], held_label)
    positive = metrics.probabilities(logits)[:, 1]
    report['at_threshold_from_validation'] = metrics.at_threshold(positive, label, threshold)
  return report, report['confusion']
