"""From raw inputs to what a network reads, and from its answers back to the units of the target."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from lepton_jax.data import series
from lepton_jax.precision import at_least_single


@dataclasses.dataclass(frozen=True)
class Scaling:
  """Means and deviations of the training part.

  Attributes:
    mean, std: of the inputs, f32 that broadcast against their last axis.
    target: (mean, deviation) of the values to predict.
    relative_to: places of the columns that a series is forecast relative to; empty where values are
      absolute.
    dtype: precision of activations.
  """
  mean: np.ndarray
  std: np.ndarray
  target: tuple = (0.0, 1.0)
  relative_to: tuple = ()
  dtype: str = 'float32'

  def inputs(self, raw):
    """raw[batch, ...] to zero mean and unit deviation, in single precision at least.

    Tokens stay as they are.
    """
    if raw.dtype == jnp.int32:
      return raw
    dtype = at_least_single(self.dtype)
    if self.relative_to:
      raw = series.changes(raw)
    return (raw.astype(dtype) - self.mean.astype(dtype)) / self.std.astype(dtype)

  def batch(self, batch, regression):
    """A batch with scaled inputs and, in regression, scaled targets."""
    if regression:
      changes = self.changes(batch['inputs'], batch['label'])
      batch = dict(batch, label=(changes - self.target[0]) / self.target[1])
    batch = dict(batch, inputs=self.inputs(batch['inputs']))
    if 'other_inputs' in batch:
      batch['other_inputs'] = self.inputs(batch['other_inputs'])
    return batch

  def changes(self, raw, values):
    """values[n, outputs] as changes from the last ones in raw inputs, if those are forecast."""
    if not self.relative_to:
      return values
    return values - series.level(raw, self.relative_to, values.shape[1])

  def values(self, raw, outputs):
    """The network's outputs[n, outputs] in the target's units, f64."""
    values = outputs.astype(np.float64) * self.target[1] + self.target[0]
    if not self.relative_to:
      return values
    return values + series.level(raw, self.relative_to, values.shape[1])
