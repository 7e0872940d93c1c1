"""Taking channels that are zero out of a network: the same model, narrower, the same answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import build_network, layer_facts, trees
from lepton_jax.compress import coupling as coupling_lib
from lepton_jax.compress.method import Compression
from lepton_jax.compress.prune import method as prune
from lepton_jax.errors import UserError

LOOKED_AT = 8  # examples on which the answers of both networks are compared


def narrowed(network, dataset, weights, hparams):
  """(Network, weights) of a run at its end, without the channels that compression made zero."""
  if not any(method.removes for method in network.compression.methods):
    return network, weights
  small, fewer = without_channels(network, dataset, weights)
  if small is not network:
    small = build_network.compressed(small, dataset, fewer['params'], fewer['model_state'],
                                     zeros=prune.masked_names(fewer))
    check(network, small, weights, fewer, dataset, hparams)
  return small, fewer


def without_channels(network, dataset, weights):
  """(Network, weights) without the channels whose masks are all False.

  Both are the given ones where there are none. The new Network has no compression; `weights` are
  {'params', 'learned', 'held', 'model_state'}, and what methods learned or hold for each output of
  a kernel leaves with it. Raises UserError where the model cannot be built so.
  """
  masks = {name: np.asarray(mask) for name, mask in prune.masks_of(weights).items()}
  old = layer_facts.coupled(network, weights['params'], weights['model_state'], dataset)
  staying = {name: ~coupling_lib.gone(group, masks) for name, group in old.groups.items()}
  if all(stays.all() for stays in staying.values()):
    return network, weights
  widths = network.widths | narrower(old, staying)
  small = build_network.make_network(network.config, dataset, widths)
  fresh = jax.eval_shape(build_network.make_init(small, dataset), jax.random.key(0))
  state = {name: leaf for name, leaf in fresh.items() if name not in ('params', 'carry')}
  new = layer_facts.coupled(small, fresh['params'], state, dataset)
  indices = places(old, new, staying)

  def cut(tree):
    return trees.map_named(
        lambda name, leaf: taken(name, np.asarray(leaf), indices, old.shapes), tree)

  weights = dict(cut({name: weights[name] for name in ('learned', 'held', 'model_state')}),
                 params=cut(weights['params']))
  return small, prune.without_full_masks(weights)


def narrower(coupling, staying):
  """{path of a layer: output features} of those that lose some."""
  lost = {}
  for name, group in coupling.groups.items():
    for kernel in group.made_by:
      positions = group.positions(kernel, len(coupling.shapes[kernel]) - 1)
      lost[kernel] = lost.get(kernel, 0) + int((~staying[name]).sum()) * positions.shape[1]
  return {kernel.rpartition('/')[0]: coupling.shapes[kernel][-1] - count
          for kernel, count in lost.items() if count}


def places(old, new, staying):
  """{array: {axis: positions in the old array of what the new one has}}."""
  before = {group.signature: (group, staying[name]) for name, group in old.groups.items()}
  found, used = {}, {}
  for group in new.groups.values():
    earlier, stays = before.get(group.signature, (None, np.zeros(0, bool)))
    if int(stays.sum()) != group.channels:
      raise UserError(f'the model does not follow the widths of its layers at '
                      f'{", ".join(group.made_by)}: it must take sizes from what layers return, '
                      f'not from its options')
    for name, at in group.places.items():
      for axis, positions in at:
        index = found.setdefault((name, axis), np.full(new.shapes[name][axis], -1))
        source = earlier.positions(name, axis)
        index[positions] = source[stays]
        used.setdefault((name, axis), set()).update(source.ravel().tolist())
  for (name, axis), index in found.items():  # what is in no group stays in its order
    rest = [i for i in range(old.shapes[name][axis]) if i not in used[name, axis]]
    index[index < 0] = rest
  by_array = {}
  for (name, axis), index in found.items():
    by_array.setdefault(name, {})[axis] = index
  return by_array


def taken(name, leaf, indices, shapes):
  """A leaf without what left: an array, or one of its rank that has a number an output."""
  owner = max((array for array in indices if f'/{array}/' in f'/{name}/'), key=len, default=None)
  if owner is None:
    return leaf
  shape = shapes[owner]
  for axis, index in indices[owner].items():
    if leaf.ndim == len(shape) and leaf.shape[axis] == shape[axis]:
      leaf = np.take(leaf, index, axis)
  return leaf


def check(network, small, weights, fewer, dataset, hparams):
  """Raises UserError where a few training examples get other answers without the channels.

  Nothing is rounded here, neither to levels nor to a GPU's TF32: what differs in the last digit
  could fall on another level.
  """
  inputs = dataset.splits['train'][0][:LOOKED_AT]
  inputs = jnp.asarray(inputs[None] if dataset.stream else inputs)

  def answers(network, weights):
    bare = dataclasses.replace(network, compression=Compression())
    state = bare.begun(weights['model_state'], dataset)
    kept = network.compression.kept(weights, hparams)
    found = jax.jit(lambda kept, state, inputs: bare.forward(
        kept, state, bare.scaling.inputs(inputs), {})[0])(kept, state, inputs)
    return np.asarray(found, np.float64)

  with jax.default_matmul_precision('highest'):
    before, after = answers(network, weights), answers(small, fewer)
  allowed = (1e-4 if network.config.architecture.dtype == 'float32' else 0.05)
  if not np.allclose(before, after, rtol=allowed, atol=allowed * max(1.0, np.abs(before).max())):
    raise UserError(f'without its channels that are zero {network.config.architecture.model} '
                    f'answers otherwise, by up to {np.abs(before - after).max():.3g}: it must take '
                    f'sizes from what layers return, not from its options')
