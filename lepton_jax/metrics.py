"""What is measured of a prediction: cheap sums in every pass, a full report on request."""

import jax.numpy as jnp
import numpy as np


def correct(logits, label):
  """f32[batch], 1 where the likeliest class is the label. One logit means two classes, split at 0."""
  if label.ndim == 2:
    label = jnp.argmax(label, -1)
  guess = (logits[:, 0] > 0).astype(label.dtype) if logits.shape[-1] == 1 else jnp.argmax(logits, -1)
  return (guess == label).astype(jnp.float32)


def probabilities(logits):
  """f64[examples, classes] from logits f32[examples, classes], or from one sigmoid logit [examples, 1]."""
  logits = np.asarray(logits, np.float64)
  if logits.shape[-1] == 1:
    positive = 1 / (1 + np.exp(-logits[:, 0]))
    return np.stack([1 - positive, positive], -1)
  exponent = np.exp(logits - logits.max(-1, keepdims=True))
  return exponent / exponent.sum(-1, keepdims=True)


def top_k(probability, label, k):
  """Share of examples whose label is among the k likeliest classes; ties go to the lower class."""
  order = np.argsort(-probability, axis=-1, kind='stable')[:, :k]
  return float(np.mean(np.any(order == np.asarray(label)[:, None], -1)))


def calibration_error(probability, label, bins=15):
  """Expected calibration error, 0 to 1: |accuracy - confidence| over equal-width confidence bins (arXiv:1706.04599)."""
  confidence, guess = probability.max(-1), probability.argmax(-1)
  hit = (guess == np.asarray(label)).astype(np.float64)
  which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  return float(sum(abs(hit[which == b].sum() - confidence[which == b].sum()) for b in range(bins)) / len(hit))


def classification_report(logits, label, classes):
  """Everything the evaluation prints, as plain numbers and lists (scikit-learn's definitions).

  logits f32[examples, classes or 1]; label int[examples]; classes: their names. `roc_auc` is the
  one-vs-rest macro mean, None when a class is absent from `label`.
  """
  from sklearn import metrics as sklearn_metrics
  label = np.asarray(label)
  probability = probabilities(logits)
  guess, indices = probability.argmax(-1), list(range(len(classes)))
  precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(label, guess, labels=indices, zero_division=0)
  auc = None
  if len(np.unique(label)) == len(classes):
    score = probability[:, 1] if len(classes) == 2 else probability
    auc = float(sklearn_metrics.roc_auc_score(label, score, multi_class='ovr', labels=None if len(classes) == 2 else indices))
  return dict(
      accuracy=float(np.mean(guess == label)),
      top5=top_k(probability, label, min(5, len(classes))),
      roc_auc=auc,
      calibration_error=calibration_error(probability, label),
      per_class=[dict(name=str(n), precision=float(p), recall=float(r), f1=float(f), support=int(s))
                 for n, p, r, f, s in zip(classes, precision, recall, f1, support)],
      confusion=sklearn_metrics.confusion_matrix(label, guess, labels=indices).tolist())


def regression_report(prediction, target):
  """MAE, RMSE and R2 in the target's units; prediction and target f32[examples]."""
  from sklearn import metrics as sklearn_metrics
  return dict(mae=float(sklearn_metrics.mean_absolute_error(target, prediction)),
              rmse=float(sklearn_metrics.root_mean_squared_error(target, prediction)),
              r2=float(sklearn_metrics.r2_score(target, prediction)) if len(target) > 1 else None)
