"""Where activations are quantised: at the input of every layer that owns a kernel.

Layers are reached by intercepting their calls, so a model needs no change, inside a scan as well.
"""

import flax.linen as nn
import jax.numpy as jnp

from lepton_jax.precision import at_least_single


def intercept_inputs(transform):
  """A context in which `transform(path, x)` replaces the first argument of every module's call; path is 'block1/conv1'."""
  def interceptor(next_function, args, kwargs, context):
    if context.method_name == '__call__' and args and context.module.path:
      args = (transform('/'.join(context.module.path), args[0]), *args[1:])
    return next_function(*args, **kwargs)

  return nn.intercept_methods(interceptor)


def owner(kernel_name):
  """The path of the module that owns a kernel: 'conv1/kernel' -> 'conv1'."""
  return kernel_name.rpartition('/')[0]


def observe(forward, sites):
  """Runs `forward()` and returns {site: {'low': f32[], 'high': f32[]}}, the extremes of each site's input.

  A site called several times keeps its widest range; one never called is left out.
  """
  ranges = {}

  def watch(path, x):
    if path in sites and jnp.issubdtype(x.dtype, jnp.floating):
      wide = x.astype(at_least_single(x.dtype))
      low, high = jnp.min(wide), jnp.max(wide)
      if path in ranges:
        low, high = jnp.minimum(low, ranges[path]['low']), jnp.maximum(high, ranges[path]['high'])
      ranges[path] = dict(low=low, high=high)
    return x

  with intercept_inputs(watch):
    forward()
  return ranges


def report(kernels, weight_bits, activation_bits, excluded, sites, pattern):
  """One dictionary a kernel: its bits, or the reason it has none."""
  rows = []
  for name in kernels:
    if name in excluded:
      rows.append(dict(kernel=name, reason=f'excluded by --quantize_exclude={pattern}'))
    elif not weight_bits and not activation_bits:
      rows.append(dict(kernel=name, reason='no bits were asked for'))
    else:
      row = dict(kernel=name)
      if weight_bits:
        row['weight_bits'] = weight_bits
      if activation_bits and owner(name) in sites:
        row['activation_bits'] = activation_bits
      elif activation_bits:
        row['activation_reason'] = 'its layer has no floating-point input'
      rows.append(row)
  return rows
