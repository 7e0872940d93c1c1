"""Where inputs are rounded: at every layer that owns a kernel, reached by intercepting its calls.

So a model needs no change, inside a scan as well.
"""

import jax.numpy as jnp
import numpy as np

from lepton_jax import trees
from lepton_jax.layers import recurrent, watch
from lepton_jax.precision import at_least_single

SAMPLE = 2048  # values of an input that are looked at, of each batch


def owner(kernel_name):
  """The path of the module that owns a kernel: 'conv1/kernel' -> 'conv1'."""
  return kernel_name.rpartition('/')[0]


def within(kernel_name):
  """Sites that could be inside the cell that owns a kernel: its gates and what it alone reads."""
  cell, inside, _ = kernel_name.rpartition(f'/{recurrent.CELL}/')
  return [f'{cell}/{recurrent.CELL}/{name}' for name in recurrent.INSIDE] if inside else []


def sample(values):
  """SAMPLE of the values of a flat array, or all where there are no more.

  Multiples of the golden ratio lie evenly along every axis that the array had; a stride could meet
  one channel alone.
  """
  if values.size <= SAMPLE:
    return values
  places = np.arange(SAMPLE) * ((5 ** 0.5 - 1) / 2) % 1 * values.size
  return values[places.astype(np.int32)]


def watching(sites):
  """A context in which the named layers sow statistics of their inputs into 'intermediates'.

  A scan stacks what its layers sow, so the states of recurrent layers are seen at every step.
  """
  def sow(module, path, x):
    inner = path.removeprefix('/'.join(module.path)).removeprefix('/')  # of a value inside it
    wide = x.astype(at_least_single(x.dtype)).ravel()
    for name, found in dict(low=jnp.min(wide), high=jnp.max(wide), values=sample(wide)).items():
      module.sow('intermediates', f'{inner}/{name}'.removeprefix('/'), found)
    return x

  return watch.inputs(sites, sow)


def statistics(intermediates, sites):
  """{site: {'low': f32[], 'high': f32[], 'values': f32[n]}} over all calls of each site that sowed.

  A site that was never called is left out.
  """
  found = {}
  for name, leaf in trees.named(intermediates).items():
    site, _, part = name.rpartition('/')[0].rpartition('/')  # 'conv1/low/0'
    if site in sites and part in ('low', 'high', 'values'):
      found.setdefault(site, {}).setdefault(part, []).append(leaf.ravel())
  reduce = dict(low=jnp.min, high=jnp.max, values=sample)
  return {site: {part: reduce[part](jnp.concatenate(leaves)) for part, leaves in parts.items()}
          for site, parts in found.items()}
