"""Values inside a network as it predicts: what layers answer, and the gates of recurrent ones."""

import flax.linen as nn

from lepton_jax import trees
from lepton_jax.compress.quantize import sites as quantize_sites
from lepton_jax.layers import recurrent, watch

ANSWER = 'answer'


def activations(network, weights, inputs, hparams):
  """{path: array[n, ...]} that layers with parameters answer to raw inputs [n, ...].

  Of a layer that is called twice it is the last answer. Layers inside a recurrent one are left out:
  where the cell is fused, they are not called.
  """
  layers, cells = paths(weights['params']), set()

  def look(next_function, args, kwargs, context):
    result, module = next_function(*args, **kwargs), context.module
    path = '/'.join(module.path)
    if context.method_name in ('__call__', 'attend') and path in layers:
      answer = result
      if isinstance(module, recurrent.Recurrent):
        cells.add(path)
        answer, _ = result  # and the state after the last step
      module.sow('intermediates', ANSWER, answer, reduce_fn=lambda _, last: last)
    return result

  with nn.intercept_methods(look):
    seen = sown(network, weights, inputs, hparams)
  found = {name.removesuffix(f'/{ANSWER}'): leaf for name, leaf in seen.items()
           if name.endswith(f'/{ANSWER}')}
  inside = lambda path: any(path.startswith(f'{cell}/') for cell in cells)
  return {path: found[path] for path in sorted(found) if not inside(path)}


def gates(network, weights, inputs, hparams):
  """{path: {gate: array[n, time, units]}} of recurrent layers for raw inputs [n, time, ...]."""
  # A layer that is watched is called at each step, and then its gates are seen.
  owners = {quantize_sites.owner(name) for name in trees.kernels(weights['params'])}
  with watch.inputs(owners, lambda module, path, x: x):
    seen = sown(network, weights, inputs, hparams)
  found = {}
  for name, leaf in seen.items():
    path, inside, gate = name.partition(f'/recurrent/{recurrent.GATES}/0/')
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
