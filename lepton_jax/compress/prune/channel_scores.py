"""What a channel is worth, beside the means of what its weights are worth (scores.py).

Each registered function is (Evidence, {name: Group}) -> {name: score[channels]}.
"""

import jax.numpy as jnp
import numpy as np

from lepton_jax.compress.prune.channels import mean_by_channel
from lepton_jax.errors import UserError
from lepton_jax.registry import CHANNEL_SCORES


@CHANNEL_SCORES.register
def l2(evidence, groups):
  """The L2 norm of the filters that make a channel, over the square root of their size."""
  squares = {name: np.square(np.asarray(kernel)) for name, kernel in evidence.kernels.items()}
  return {name: np.sqrt(mean_by_channel(group, squares)) for name, group in groups.items()}


@CHANNEL_SCORES.register
def taylor(evidence, groups):
  """(mean of w * gradient over a channel)^2, its mean over batches.

  After equation 8 of arXiv:1906.10771, which has the sum; with a mean, channels of layers of other
  sizes can be ranked together, as all scores here.
  """
  def of_batch(w, g, _):
    products = {name: w[name] * g[name] for name in w}
    return {name: jnp.square(mean_by_channel(group, products, jnp))
            for name, group in groups.items()}

  return evidence.over_batches('taylor', of_batch)


@CHANNEL_SCORES.register
def norm_scale(evidence, groups):
  """|scale| of the norms that a channel passes, their mean (network slimming, arXiv:1708.06519)."""
  found = {}
  for name, group in groups.items():
    scales = [array for array in group.places if array.endswith('/scale')]
    if not scales:
      raise UserError(f'--prune_score=norm_scale: no norm scales the channels of {name}; exclude '
                      f'it by --prune_exclude, or choose another score')
    of_norms = [np.abs(np.asarray(evidence.params[array]))[group.positions(array, 0)].mean(-1)
                for array in scales]
    found[name] = np.mean(of_norms, 0)
  return found
