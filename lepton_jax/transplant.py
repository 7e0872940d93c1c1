"""What a run takes from another run's weights, in its own structure."""

import jax.numpy as jnp
import numpy as np

from lepton_jax import models, trees
from lepton_jax.compress.prune import method as prune
from lepton_jax.compress.quantize import method as quantize
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
  def take(mine, theirs):
    own, theirs = trees.named(mine), trees.named(theirs)
    anew = made_anew(own, theirs)
    wrong = [n for n in anew if not is_head(n)] + sorted(theirs.keys() - own.keys())
    if wrong:
      raise UserError(f'--init_from holds another network; only {models.HEAD!r} may differ, but so '
                      f'do: {", ".join(wrong[:8])}')

    def chosen(name, leaf):
      return leaf if name in anew else jnp.asarray(theirs[name], leaf.dtype)

    return trees.map_named(chosen, mine)

  return take(params, initial['params']), take(model_state, initial['model_state'])


def is_head(name):
  return name.split('/')[0] == models.HEAD


def made_anew(own, theirs):
  """Names of {name: array} that are not what they are in another run's.

  A head is replaced whole: a kernel kept beside a new bias would mean nothing.
  """
  differing = {name for name, leaf in own.items()
               if name not in theirs or theirs[name].shape != leaf.shape}
  whole = any(map(is_head, differing))
  return [name for name in own if name in differing or whole and is_head(name)]


def zeros_to_keep(config, params, divided=()):
  """Names of kernels of another run that hold zeros, if those stay; not of layers made into two."""
  if not config.prune.keep_zeros:
    return frozenset()
  anew = tuple(f'{path}/' for path in divided)
  return frozenset(name for name, leaf in trees.named(params).items()
                   if trees.is_kernel(name) and not name.startswith(anew)
                   and not np.all(np.asarray(leaf)))


def learned_from(name):
  """The kernel that 'method/kernel/array' or 'method/kernels/kernel/array' was learned of."""
  _, _, rest = name.partition('/')
  return rest.removeprefix(f'{quantize.KERNELS}/').rpartition('/')[0]


def learned_of(initial, params):
  """{'learned', 'held'} of another run, without what it learned of kernels that are not these.

  A head that starts anew has no use for the levels of the one before it.
  """
  other = made_anew(trees.named(params), trees.named(initial['params']))

  def these(arrays):
    return {name: leaf for name, leaf in trees.named(arrays).items()
            if learned_from(name) not in other}

  return {kind: trees.nest(these(initial[kind])) for kind in ('learned', 'held')}
