"""Where activations are quantised: at the input of every layer that owns a kernel.

Layers are reached by intercepting their calls, so a model needs no change, inside a scan as well.
"""

import jax.numpy as jnp

from lepton_jax import trees
from lepton_jax.layers import watch
from lepton_jax.precision import at_least_single


def replace_inputs(sites, transform):
  """A context in which `transform(path, x)` replaces what the named layers read."""
  return watch.inputs(sites, lambda module, path, x: transform(path, x))


def owner(kernel_name):
  """The path of the module that owns a kernel: 'conv1/kernel' -> 'conv1'."""
  return kernel_name.rpartition('/')[0]


def watch_inputs(sites):
  """A context in which the named layers sow the extremes of their inputs into 'intermediates'.

  A scan stacks what its layers sow, so the states of recurrent layers are seen at every step.
  """
  def sow(module, path, x):
    del path
    wide = x.astype(at_least_single(x.dtype))
    module.sow('intermediates', 'low', jnp.min(wide))
    module.sow('intermediates', 'high', jnp.max(wide))
    return x

  return watch.inputs(sites, sow)


def ranges(intermediates, sites):
  """{site: {'low': f32[], 'high': f32[]}} over all calls that sowed; a site that was never called is left out."""
  found = {}
  for name, leaf in trees.named(intermediates).items():
    site, _, end = name.rpartition('/')[0].rpartition('/')  # 'conv1/low/0'
    if site in sites and end in ('low', 'high'):
      extreme = jnp.min(leaf) if end == 'low' else jnp.max(leaf)
      known = found.setdefault(site, {})
      known[end] = extreme if end not in known else (jnp.minimum if end == 'low' else jnp.maximum)(known[end], extreme)
  return found


def report(kernels, weight_bits, activation_bits, excluded, sites, pattern):
  """One dictionary a kernel: the bits of its weights and of its layer's input, or the reason either has none."""
  def describe(name):
    if name in excluded:
      return dict(reason=f'excluded by --quantize_exclude={pattern}')
    row = dict(weight_bits=weight_bits) if weight_bits else dict(reason='no weight bits were asked for')
    if activation_bits and owner(name) in sites:
      return row | dict(activation_bits=activation_bits)
    return row | dict(activation_reason='its layer has no floating-point input' if activation_bits else 'no activation bits were asked for')

  return [dict(kernel=name, **describe(name)) for name in kernels]
