"""The recurrence of an LSTM in one call for all steps, on a CPU."""

import functools

import jax
import jax.numpy as jnp

from lepton_jax.layers import columns
from lepton_jax.layers.native import call
from lepton_jax.layers.product import product_summed


def lstm(kernel, bias, gates, valid, keep, states, read=None, grid=None):
  """What `recur.plain` computes for an LSTM with tanh in float32. Time leads; reverse mode only.

  `keep` gets no gradient. `read` rounds what is projected of the state, h * keep, to `grid`: the
  scale, the level of zero and the highest level. Returns ((h, c), outputs[time, batch, features]).
  """
  exists = jnp.ones(gates.shape[:2], gates.dtype) if valid is None else valid.astype(gates.dtype)
  whole = jnp.ones_like(states[0]) if keep is None else jax.lax.stop_gradient(keep)
  if read is None:
    return _lstm(kernel, bias, gates, exists, whole, *states)
  # What `read` closes over, such as the ends of a range, becomes an argument with a gradient.
  read, closed = jax.closure_convert(read, states[0])
  grid = jax.lax.stop_gradient(jnp.stack(grid))
  return _rounded(read, closed, grid, kernel, bias, gates, exists, whole, *states)


@jax.custom_vjp
def _lstm(kernel, bias, gates, exists, keep, h, c):
  inputs = gates, kernel, bias, exists, keep, _no_grid(gates), h, c
  outputs, *last = _operation('lstm_inference')(*inputs)
  return tuple(last), outputs


def _forward(kernel, bias, gates, exists, keep, h, c):
  found = _operation('lstm')(gates, kernel, bias, exists, keep, _no_grid(gates), h, c)
  outputs, activated, cells, *last = found
  return (tuple(last), outputs), (kernel, exists, keep, h, c, outputs, activated, cells)


def _backward(saved, gradient):
  kernel, exists, keep, h, c, outputs, activated, cells = saved
  last, doutputs = gradient
  dgates, dh, dc = _operation('lstm_back')(activated, cells, kernel, exists, keep, c, doutputs,
                                           *last)
  # The kernel's gradient is one product over all steps.
  dkernel = product_summed(_before(h, outputs) * keep, dgates)
  return dkernel, columns.total(dgates), dgates, None, None, dh, dc


_lstm.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounded(read, closed, grid, kernel, bias, gates, exists, keep, h, c):
  outputs, *last = _operation('lstm_inference')(gates, kernel, bias, exists, keep, grid, h, c)
  return tuple(last), outputs


def _rounded_forward(read, closed, grid, kernel, bias, gates, exists, keep, h, c):
  found = _operation('lstm')(gates, kernel, bias, exists, keep, grid, h, c)
  outputs, activated, cells, *last = found
  saved = closed, grid, kernel, exists, keep, h, c, outputs, activated, cells
  return (tuple(last), outputs), saved


def _rounded_backward(read, saved, gradient):
  closed, grid, kernel, exists, keep, h, c, outputs, activated, cells = saved
  last, doutputs = gradient
  dgates, dread, dh, dc = _operation('lstm_back_read')(
      activated, cells, outputs, kernel, exists, keep, grid, h, c, doutputs, *last)
  all_steps = jax.vmap(lambda h, closed: read(h, *closed), (0, None))
  what_was_read, back = jax.vjp(functools.partial(all_steps, _before(h, outputs) * keep), closed)
  dkernel = product_summed(what_was_read, dgates)
  return back(dread)[0], None, dkernel, columns.total(dgates), dgates, None, None, dh, dc


_rounded.defvjp(_rounded_forward, _rounded_backward)


def _before(h, outputs):
  """The state before each step.

  Steps that do not exist come last, so each that does finds its old state one place before.
  """
  return jnp.concatenate([h[None], outputs[:-1]])


def _no_grid(gates):
  return jnp.zeros(3, gates.dtype)


@functools.cache
def _operation(name):
  inputs = 't b w, f w2, w3, t2 b, b f2, s, b f3, b f4'
  if name == 'lstm':
    return call.operation(name, f'{inputs} -> t3 b f5, t4 b w4, t5 b f6, b f7, b f8',
                          _forward_shapes)
  if name == 'lstm_inference':
    def results(*arrays):
      return [shape for i, shape in enumerate(_forward_shapes(*arrays)) if i not in (1, 2)]
    return call.operation(name, f'{inputs} -> t3 b f5, b f6, b f7', results)
  if name == 'lstm_back':
    dimensions = ('t b w, t2 b f, f2 w2, t3 b, b f3, b f4, t4 b f5, b f6, b f7 '
                  '-> t5 b w3, b f8, b f9')
    return call.operation(name, dimensions,
                          lambda z, cells, k, valid, keep, c, *_: (z.shape, c.shape, c.shape))
  dimensions = ('t b w, t2 b f, t3 b f2, f3 w2, t4 b, b f4, s, b f5, b f6, t5 b f7, b f8, b f9 '
                '-> t6 b w3, t7 b f10, b f11, b f12')
  return call.operation(name, dimensions,
                        lambda z, cells, *_: (z.shape, cells.shape, *(cells.shape[1:],) * 2))


def _forward_shapes(gates, kernel, bias, exists, keep, grid, h, c):
  steps = (*gates.shape[:2], h.shape[-1])
  return steps, gates.shape, steps, h.shape, c.shape
