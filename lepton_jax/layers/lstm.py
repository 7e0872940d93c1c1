"""The recurrence of an LSTM in one call for all steps, on a CPU."""

import functools

import jax
import jax.numpy as jnp

from lepton_jax.layers import columns
from lepton_jax.layers.native import call
from lepton_jax.layers.product import product_summed


def lstm(kernel, bias, gates, valid, keep, states):
  """What `recur.plain` computes for an LSTM with tanh in float32. Time leads; reverse mode only.

  `keep` gets no gradient. Returns ((h, c), outputs[time, batch, features]).
  """
  exists = jnp.ones(gates.shape[:2], gates.dtype) if valid is None else valid.astype(gates.dtype)
  whole = jnp.ones_like(states[0]) if keep is None else jax.lax.stop_gradient(keep)
  return _lstm(kernel, bias, gates, exists, whole, *states)


@jax.custom_vjp
def _lstm(kernel, bias, gates, exists, keep, h, c):
  outputs, *last = _operation('lstm_inference')(gates, kernel, bias, exists, keep, h, c)
  return tuple(last), outputs


def _forward(kernel, bias, gates, exists, keep, h, c):
  outputs, activated, cells, *last = _operation('lstm')(gates, kernel, bias, exists, keep, h, c)
  return (tuple(last), outputs), (kernel, exists, keep, h, c, outputs, activated, cells)


def _backward(saved, gradient):
  kernel, exists, keep, h, c, outputs, activated, cells = saved
  last, doutputs = gradient
  dgates, dh, dc = _operation('lstm_back')(activated, cells, kernel, exists, keep, c, doutputs,
                                           *last)
  # Steps that do not exist come last, so each that does finds its old state one place before.
  before = jnp.concatenate([h[None], outputs[:-1]]) * keep
  # The kernel's gradient is one product over all steps.
  return product_summed(before, dgates), columns.total(dgates), dgates, None, None, dh, dc


_lstm.defvjp(_forward, _backward)


@functools.cache
def _operation(name):
  inputs = 't b w, f w2, w3, t2 b, b f2, b f3, b f4'
  if name == 'lstm':
    return call.operation(name, f'{inputs} -> t3 b f5, t4 b w4, t5 b f6, b f7, b f8',
                          _forward_shapes)
  if name == 'lstm_inference':
    def outputs(*arrays):
      return [shape for i, shape in enumerate(_forward_shapes(*arrays)) if i not in (1, 2)]
    return call.operation(name, f'{inputs} -> t3 b f5, b f6, b f7', outputs)
  dimensions = 't b w, t2 b f, f2 w2, t3 b, b f3, b f4, t4 b f5, b f6, b f7 -> t5 b w3, b f8, b f9'
  return call.operation(name, dimensions,
                        lambda z, cells, k, v, keep, c, *_: (z.shape, c.shape, c.shape))


def _forward_shapes(gates, kernel, bias, exists, keep, h, c):
  steps = (*gates.shape[:2], h.shape[-1])
  return steps, gates.shape, steps, h.shape, c.shape
