"""What is measured of a prediction: cheap sums in every pass, a full report on request."""

import jax.numpy as jnp
import numpy as np

from lepton_jax.losses import over_steps


def correct(logits, label):
  """f32[batch], 1 where the likeliest class is the label, or the share of steps where it is.

  One logit means two classes, split at 0.

  logits f32[batch, (time,) classes]; label int32[batch, (time)], -1 for no step, or
  f32[batch, classes] of mixed examples.
  """
  if not jnp.issubdtype(label.dtype, jnp.integer):
    label = jnp.argmax(label, -1)
  two_classes = logits.shape[-1] == 1
  guess = (logits[..., 0] > 0 if two_classes else jnp.argmax(logits, -1)).astype(label.dtype)
  return over_steps((guess == label).astype(jnp.float32), label >= 0)


def probabilities(logits):
  """f64[..., classes] from logits f32[..., classes], or from one sigmoid logit [..., 1]."""
  logits = np.asarray(logits, np.float64)
  if logits.shape[-1] == 1:
    positive = 1 / (1 + np.exp(-logits[..., 0]))
    return np.stack([1 - positive, positive], -1)
  exponent = np.exp(logits - logits.max(-1, keepdims=True))
  return exponent / exponent.sum(-1, keepdims=True)


def top_k(probability, label, k):
  """Share of examples whose label is among the k likeliest classes; ties go to the lower class."""
  order = np.argsort(-probability, axis=-1, kind='stable')[:, :k]
  return float(np.mean(np.any(order == np.asarray(label)[:, None], -1)))


def calibration_error(probability, label, bins=15):
  """Expected calibration error, 0 to 1 (arXiv:1706.04599).

  It is |accuracy - confidence| over confidence bins of equal width.
  """
  confidence, guess = probability.max(-1), probability.argmax(-1)
  hit = (guess == np.asarray(label)).astype(np.float64)
  which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  gaps = (abs(hit[which == b].sum() - confidence[which == b].sum()) for b in range(bins))
  return float(sum(gaps) / len(hit))


def classification_report(logits, label, classes):
  """Everything the evaluation prints, as plain numbers and lists (scikit-learn's definitions).

  logits f32[examples, classes or 1]; label int[examples]; classes: their names. `roc_auc` and
  `pr_auc` (average precision) are one-vs-rest macro means, None when a class is absent from
  `label`.
  """
  from sklearn import metrics as sklearn_metrics
  label = np.asarray(label)
  probability = probabilities(logits)
  guess, indices = probability.argmax(-1), list(range(len(classes)))
  precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
      label, guess, labels=indices, zero_division=0)
  auc = average_precision = None
  if len(np.unique(label)) == len(classes):
    # Of two classes the second is the positive one.
    positives = [1] if len(classes) == 2 else indices

    def mean(score):
      return float(np.mean([score(label == c, probability[:, c]) for c in positives]))

    auc = mean(sklearn_metrics.roc_auc_score)
    average_precision = mean(sklearn_metrics.average_precision_score)
  return dict(
      accuracy=float(np.mean(guess == label)),
      top5=top_k(probability, label, min(5, len(classes))),
      roc_auc=auc,
      pr_auc=average_precision,
      calibration_error=calibration_error(probability, label),
      per_class=[dict(name=str(n), precision=float(p), recall=float(r), f1=float(f), support=int(s))
                 for n, p, r, f, s in zip(classes, precision, recall, f1, support)],
      confusion=sklearn_metrics.confusion_matrix(label, guess, labels=indices).tolist())


def regression_report(prediction, target):
  """MAE and RMSE in the target's units, MAPE as a share, and R2.

  prediction and target f32[examples] or f32[examples, targets], all values counted alike.
  """
  from sklearn import metrics as sklearn_metrics
  prediction, target = np.ravel(prediction), np.ravel(target)
  return dict(mae=float(sklearn_metrics.mean_absolute_error(target, prediction)),
              rmse=float(sklearn_metrics.root_mean_squared_error(target, prediction)),
              mape=float(sklearn_metrics.mean_absolute_percentage_error(target, prediction)),
              r2=float(sklearn_metrics.r2_score(target, prediction)) if len(target) > 1 else None)


def best_threshold(positive, label):
  """The probability from which the second of two classes is said.

  It is the one with the highest F1 on these examples.
  """
  from sklearn import metrics as sklearn_metrics
  precision, recall, thresholds = sklearn_metrics.precision_recall_curve(label, positive)
  f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
  return float(thresholds[np.argmax(f1[:-1])])


def at_threshold(positive, label, threshold):
  """Accuracy, precision, recall and F1 where the second class is said from `threshold` on."""
  from sklearn import metrics as sklearn_metrics
  guess = (positive >= threshold).astype(int)
  precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(
      label, guess, average='binary', zero_division=0)
  return dict(threshold=threshold, accuracy=float(np.mean(guess == label)),
              precision=float(precision), recall=float(recall), f1=float(f1))
