"""Matrix products of rows of features with a kernel, and their gradients."""

import functools

import jax

from lepton_jax.layers import platform
from lepton_jax.layers.native import call
from lepton_jax.precision import at_least_single


def product(x, kernel):
  """x[..., in] @ kernel[in, features] as [..., features], by oneDNN on a CPU.

  The oneDNN form has a derivative in reverse mode only.
  """
  if platform.native(x, kernel):
    return _product(x, kernel)
  if not platform.own_forms():
    # A flat one would mix the axis of examples with others: devices that share the examples would
    # fetch all of them.
    return x @ kernel
  # One flat product: with more axes XLA's CPU backend orders those of the kernel's gradient slowly.
  return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def add_bias(y, bias):
  """y[..., features] + bias[features], in float32 at least.

  It is so wide because a bias's gradient is a sum over all rows.
  """
  wide = at_least_single(y.dtype)
  return (y.astype(wide) + bias.astype(wide)).astype(y.dtype)


# Three products, each linear in both arguments; the derivatives of each are the other two.


@jax.custom_vjp
def _product(x, kernel):
  return _operation('product', x.ndim)(x, kernel)[0]


@jax.custom_vjp
def _to_input(gradient, kernel):
  """gradient[..., features] times the transposed kernel[in, features]: [..., in]."""
  return _operation('product_transposed', gradient.ndim)(gradient, kernel)[0]


@jax.custom_vjp
def product_summed(x, gradient):
  """Sum over all rows of x[..., in] times gradient[..., features] as [in, features], by oneDNN."""
  return _operation('product_summed', x.ndim)(x, gradient)[0]


def _with_arguments(function):
  return lambda a, b: (function(a, b), (a, b))


_product.defvjp(_with_arguments(_product),
                lambda saved, g: (_to_input(g, saved[1]), product_summed(saved[0], g)))
_to_input.defvjp(_with_arguments(_to_input),
                 lambda saved, g: (_product(g, saved[1]), product_summed(g, saved[0])))
product_summed.defvjp(_with_arguments(product_summed),
                  lambda saved, g: (_to_input(saved[1], g), _product(saved[0], g)))


@functools.cache
def _operation(name, rank):
  """The C++ function for left arguments of so many dimensions."""
  rows = ' '.join(f'b{i}' for i in range(rank - 1))
  dimensions, shapes = {
      'product': (f'{rows} i, i2 o -> {rows} o2', lambda x, k: ((*x.shape[:-1], k.shape[1]),)),
      'product_transposed': (f'{rows} o, i o2 -> {rows} i2',
                             lambda g, k: ((*g.shape[:-1], k.shape[0]),)),
      'product_summed': (f'{rows} i, {rows} o -> i2 o2',
                         lambda x, g: ((x.shape[-1], g.shape[-1]),)),
  }[name]
  return call.operation(name, dimensions, shapes)
