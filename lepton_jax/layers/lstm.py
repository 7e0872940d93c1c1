"""The recurrence of an LSTM in one call for all steps, on a CPU."""

import functools

import jax
import jax.numpy as jnp

from lepton_jax.layers import columns
from lepton_jax.layers.native import call
from lepton_jax.layers.product import product_summed


def lstm(kernel, bias, gates, valid, keep, states, changes=(None,) * 6):
  """What `recur.plain` computes for an LSTM with tanh in float32. Time leads; reverse mode only.

  `keep` gets no gradient. `changes` has a watch.Change that rounds, or None, of what is projected
  of the state, h * keep, then of the gates input, forget, cell, output, then of the cell's state.
  Returns ((h, c), outputs[time, batch, features]).
  """
  exists = jnp.ones(gates.shape[:2], gates.dtype) if valid is None else valid.astype(gates.dtype)
  whole = jnp.ones_like(states[0]) if keep is None else jax.lax.stop_gradient(keep)
  # What functions close over, such as the ends of a range, becomes arguments with gradients.
  reads, closed = zip(*((None, ()) if change is None else
                        jax.closure_convert(change.read, states[0]) for change in changes))
  grids = jnp.stack([number for change in changes
                     for number in (change.grid if change else jnp.zeros(3, gates.dtype))])
  return _lstm(reads, closed, jax.lax.stop_gradient(grids), kernel, bias, gates, exists, whole,
               *states)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lstm(reads, closed, grids, kernel, bias, gates, exists, keep, h, c):
  outputs, *last = _operation('lstm_inference')(gates, kernel, bias, exists, keep, grids, h, c)
  return tuple(last), outputs


def _forward(reads, closed, grids, kernel, bias, gates, exists, keep, h, c):
  found = _operation('lstm')(gates, kernel, bias, exists, keep, grids, h, c)
  outputs, activated, cells, *last = found
  saved = closed, grids, kernel, exists, keep, h, c, outputs, activated, cells
  return (tuple(last), outputs), saved


def _backward(reads, saved, gradient):
  closed, grids, kernel, exists, keep, h, c, outputs, activated, cells = saved
  last, doutputs = gradient
  rounds = tuple(read is not None for read in reads)
  dgates, dread, dinside, dh, dc = _operation('lstm_back', rounds[0], any(rounds[1:]))(
      activated, cells, outputs, kernel, exists, keep, grids, h, c, doutputs, *last)
  # Steps that do not exist come last, so each that does finds its old state one place before.
  kept = jnp.concatenate([h[None], outputs[:-1]]) * keep
  values = kept, *jnp.split(activated, 4, -1), cells
  gradients = dread, *jnp.split(dinside, 5, -1)
  found = [_read_back(*one) for one in zip(reads, closed, values, gradients)]
  # The kernel's gradient is one product over all steps.
  dkernel = product_summed(found[0][0], dgates)
  dclosed = tuple(ends for _, ends in found)
  return dclosed, None, dkernel, columns.total(dgates), dgates, None, None, dh, dc


_lstm.defvjp(_forward, _backward)


def _read_back(read, closed, x, gradient):
  """(what was read of x[time, ...], the gradient of what the function closed over)."""
  if read is None:
    return x, ()
  # Of x too: a range is trained only where what it rounds depends on something that is.
  all_steps = jax.vmap(lambda x, closed: read(x, *closed), (0, None))
  found, back = jax.vjp(all_steps, x, closed)
  return found, back(gradient)[1]


@functools.cache
def _operation(name, projected=False, inside=False):
  """The C++ function; what is not rounded has no gradients of what was read."""
  if name == 'lstm_back':
    def gradients(z, cells, *_):
      time, batch, features = cells.shape
      return (z.shape, (time, batch, features * projected), (time, batch, 5 * features * inside),
              *((batch, features),) * 2)
    return call.operation(
        name, 't b w, t2 b f, t3 b f2, f3 w2, t4 b, b f4, s, b f5, b f6, t5 b f7, b f8, b f9 '
        '-> t6 b w3, t7 b p, t8 b v, b f11, b f12', gradients)
  inputs = 't b w, f w2, w3, t2 b, b f2, s, b f3, b f4'
  if name == 'lstm':
    return call.operation(name, f'{inputs} -> t3 b f5, t4 b w4, t5 b f6, b f7, b f8',
                          _forward_shapes)
  results = lambda *arrays: [shape for i, shape in enumerate(_forward_shapes(*arrays))
                             if i not in (1, 2)]
  return call.operation(name, f'{inputs} -> t3 b f5, b f6, b f7', results)


def _forward_shapes(gates, kernel, bias, exists, keep, grids, h, c):
  steps = (*gates.shape[:2], h.shape[-1])
  return steps, gates.shape, steps, h.shape, c.shape

