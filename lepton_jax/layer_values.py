"""Values inside a network as it predicts: what layers answer, and the gates of recurrent ones."""

from lepton_jax import trees
from lepton_jax.compress.quantize import sites as quantize_sites
from lepton_jax.layers import recurrent, watch


def activations(network, weights, inputs, hparams):
  """{path: array[n, ...]} that layers with parameters answer to raw inputs [n, ...].

  Of a layer that is called twice it is the last answer. Layers inside a recurrent one are left out:
  where the cell is fused, they are not called.
  """
  with watch.answers(paths(weights['params'])) as found:
    network.predict(weights, inputs, hparams)
  return dict(sorted(found.items()))


def gates(network, weights, inputs, hparams):
  """{path: {gate: array[n, time, units]}} of recurrent layers for raw inputs [n, time, ...]."""
  # A layer that is watched is called at each step, and then its gates are seen.
  owners = {quantize_sites.owner(name) for name in trees.kernels(weights['params'])}
  with watch.inputs(owners, lambda module, path, x: x):
    seen = sown(network, weights, inputs, hparams)
  found = {}
  for name, leaf in seen.items():
    path, inside, gate = name.partition(f'/{recurrent.CELL}/{recurrent.GATES}/0/')
    if inside:
      found.setdefault(path, {})[gate] = leaf.swapaxes(0, 1)  # in a scan time leads
  return found


def sown(network, weights, inputs, hparams):
  """{name: array} of what layers sow while the network reads raw inputs."""
  counted = network.compression.counted(weights, hparams)
  inputs, state = network.scaling.inputs(inputs), weights['model_state']
  _, changed = network.forward(counted, state, inputs, hparams, collect=('intermediates',))
  return trees.named(changed.get('intermediates', {}))


def paths(params):
  """Paths of all modules with parameters, those that hold other modules included."""
  found = set()
  for name in trees.named(params):
    parts = name.split('/')[:-1]
    found |= {'/'.join(parts[:count]) for count in range(1, len(parts) + 1)}
  return found
