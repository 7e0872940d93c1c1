"""Predictions over whole splits, and what they measure."""

import jax.numpy as jnp
import numpy as np

from lepton_jax import metrics
from lepton_jax.data import batches
from lepton_jax.errors import UserError


def evaluate_split(network, predict, weights, hparams, data, split, batch_size, layout):
  """{measurement: float} of weights on a whole split, every example counted once; 'score' ranks epochs."""
  logits, label = predictions(predict, weights, hparams, data, split, batch_size, layout)
  return measurements(network, logits, label, hparams)


def predictions(predict, weights, hparams, data, split, batch_size, layout):
  """Logits f32[n, outputs] and labels [n] of a split, in its order."""
  inputs, label = data.splits[split]
  parts = []
  for batch in batches.passes(inputs, label, batch_size, layout.rows):
    parts.append(predict(weights, layout.put_examples(batch['inputs']), hparams))
    if len(parts) > 8:
      parts[-9] = np.asarray(parts[-9])  # a few batches stay in flight, the rest need not stay on the device
  return np.concatenate([np.asarray(p) for p in parts])[:len(label)], np.asarray(label)


def measurements(network, logits, label, hparams):
  """Mean loss, and accuracy or RMSE and MAE in the target's units, over all examples in float64."""
  batch = dict(label=jnp.asarray(label))
  if network.loss == 'mse':
    batch['label'] = (batch['label'] - network.target[0]) / network.target[1]
  mean = lambda values: float(np.mean(np.asarray(values), dtype=np.float64))
  plain = {k: v for k, v in hparams.items() if k != 'label_smoothing'}
  loss = mean(network.loss_per_example(jnp.asarray(logits), batch, plain))
  if network.loss == 'mse':
    error = np.asarray(logits[:, 0], np.float64) * network.target[1] + network.target[0] - label
    return dict(loss=loss, rmse=float(np.sqrt(np.mean(error ** 2))), mae=float(np.mean(np.abs(error))), score=-loss)
  accuracy = mean(network.measure(jnp.asarray(logits), batch))
  return dict(loss=loss, accuracy=accuracy, score=accuracy)


def full_report(trained, split):
  """(everything measured of a finished run on a split as plain numbers, confusion matrix or None).

  `trained` is a folder.Trained. Raises UserError for an empty split.
  """
  if not trained.data.size(split):
    raise UserError(f'{trained.data.name} has no {split} examples under this run\'s options')
  inputs, label = trained.data.splits[split]
  logits = trained.outputs(inputs)
  basic = measurements(trained.network, logits, label, trained.hparams)
  report = dict(name=trained.config.name(), split=split, examples=len(label), loss=basic['loss'])
  if trained.network.loss == 'mse':
    return dict(report, **metrics.regression_report(trained.predict(inputs), np.asarray(label))), None
  report.update(metrics.classification_report(logits, label, trained.data.classes))
  return report, report['confusion']
