"""What a network is trained for: the loss of its answers, and what is measured beside it."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from lepton_jax import metrics, registry
from lepton_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Objective:
  """A loss by name, and f32[classes] weights of the classes, mean 1 over the examples, or None."""
  loss: str
  class_weights: np.ndarray | None = None

  @property
  def regression(self):
    """Whether values are predicted."""
    return self.loss == 'mse'

  @property
  def measured(self):
    """Names of what a step reports."""
    return ('loss', *(() if self.regression else ('accuracy',)), 'gradient_norm')

  def per_example(self, logits, batch, hparams):
    """The loss f32[batch]."""
    smoothing = hparams.get('label_smoothing')
    return registry.LOSSES.get(self.loss)(logits, batch['label'], smoothing)

  def training(self, logits, batch, hparams):
    """The same with the weight of each example's class."""
    loss = self.per_example(logits, batch, hparams)
    if self.class_weights is None:
      return loss
    label, weights = batch['label'], jnp.asarray(self.class_weights, loss.dtype)
    if jnp.issubdtype(label.dtype, jnp.integer):
      return loss * weights[label]
    return loss * (label.astype(loss.dtype) @ weights)

  def measure(self, logits, batch):
    """{'accuracy': f32[batch]}; nothing in regression, where the loss says it all."""
    return {} if self.regression else dict(accuracy=metrics.correct(logits, batch['label']))


def make_objective(config, dataset, own_outputs):
  """The Objective of a configuration; picks the loss where the flag is unset.

  `own_outputs` says that the model has a number of outputs of its own, one for two classes. Raises
  UserError where the loss does not fit the data.
  """
  loss = config.optimization.loss
  if loss is None and dataset.task == 'regression':
    loss = 'mse'
  elif loss is None:
    loss = 'binary' if own_outputs else 'cross_entropy'
  if (loss == 'mse') != (dataset.task == 'regression'):
    raise UserError(f'--loss={loss} does not fit {dataset.name}, a {dataset.task} data set')
  if loss == 'binary' and len(dataset.classes) != 2:
    raise UserError(
        f'the binary loss, which {config.architecture.model} uses unless --loss is given, needs 2 '
        f'classes; {dataset.name} has {len(dataset.classes)}')
  return Objective(loss, class_weights(config, dataset))


def class_weights(config, dataset):
  """Inverse frequency of each class, 1 on the average training example; None unless asked for."""
  if config.optimization.class_weights == 'none':
    return None
  if not dataset.classes or dataset.labels_steps:
    raise UserError(f'--class_weights applies to one class an example; {dataset.name} has none to '
                    f'weigh')
  counts = np.bincount(dataset.splits['train'][1], minlength=len(dataset.classes))
  return (dataset.size('train') / (len(counts) * np.maximum(counts, 1))).astype(np.float32)
