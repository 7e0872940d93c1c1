"""What a run takes from another run's weights, in its own structure."""

import jax.numpy as jnp
import numpy as np

from lepton_jax import models, trees
from lepton_jax.compress.prune import method as prune
from lepton_jax.errors import UserError


def weights_of(variables, initial):
  """(params, model_state) that a run starts from: fresh ones, or another run's where they fit."""
  params = variables['params']
  model_state = {k: v for k, v in variables.items() if k not in ('params', 'carry')}
  if initial is None:
    return params, model_state
  return into(params, model_state, prune.without_dead(initial))


def into(params, model_state, initial):
  """Another run's weights in this run's structure; a head whose shape differs starts anew.

  Raises UserError naming the arrays that are missing or of another shape anywhere else.
  """
  def is_head(name):
    return name.split('/')[0] == models.HEAD

  def take(mine, theirs):
    own, theirs = trees.named(mine), trees.named(theirs)
    differing = [n for n, leaf in own.items()
                 if n not in theirs or theirs[n].shape != leaf.shape]
    wrong = [n for n in differing if not is_head(n)] + sorted(theirs.keys() - own.keys())
    if wrong:
      raise UserError(f'--init_from holds another network; only {models.HEAD!r} may differ, but so '
                      f'do: {", ".join(wrong[:8])}')

    # A head is replaced whole: a kernel kept beside a new bias would mean nothing.
    def chosen(name, leaf):
      return leaf if differing and is_head(name) else jnp.asarray(theirs[name], leaf.dtype)

    return trees.map_named(chosen, mine)

  return take(params, initial['params']), take(model_state, initial['model_state'])


def zeros_to_keep(config, params):
  """Names of kernels of another run that hold zeros, if those stay."""
  if not config.prune.keep_zeros:
    return frozenset()
  return frozenset(name for name, leaf in trees.named(params).items()
                   if trees.is_kernel(name) and not np.all(np.asarray(leaf)))
