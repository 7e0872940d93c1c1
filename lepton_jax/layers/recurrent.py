"""Recurrent layers: each cell has two dense projections; the input's covers all steps at once."""

import contextlib
import functools
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp

from lepton_jax.layers import dropout, lstm, platform, recur, watch, widths
from lepton_jax.layers.activation import ACTIVATIONS
from lepton_jax.layers.dense import Dense
from lepton_jax.precision import at_least_single

CELL = 'recurrent'  # the name of a cell's projection of its state
GATES = 'gates'  # what a layer that is watched sows of each step


class Kind(typing.NamedTuple):
  """A cell without its projections.

  Attributes:
    gates: projections of `features` each, side by side in one kernel.
    states: arrays a cell carries; the first is its output.
    input_bias: whether the input projection has a bias beside the recurrent one's.
    inside: names of its gates, and of a state that no layer reads.
    join: (input gates, recurrent gates) -> what the gates see, linear in both.
    opened: (joined gates, activation, read) -> {gate: its value}, element by element; `read` takes
      name and value of each.
    step: ({gate: value}, states, activation, read) -> states, likewise; `read` takes the state that
      no layer reads.
  """
  gates: int
  states: int
  input_bias: bool
  inside: tuple
  join: typing.Callable
  opened: typing.Callable
  step: typing.Callable


def _elman_gates(z, activation, read):
  """activation(W x + U h + b) (Elman 1990), which is the new state."""
  return dict(new=read('new', activation(z)))


def _elman(gate, *_):
  return (gate['new'],)


def _gru_join(x, h):
  """Sums the gates reset and update; keeps the two parts of the new value apart.

  The reset gate multiplies the recurrent part alone.
  """
  size = x.shape[-1] // 3
  reset_and_update = x[..., :2 * size] + h[..., :2 * size]
  return jnp.concatenate([reset_and_update, x[..., 2 * size:], h[..., 2 * size:]], -1)


def _gru_gates(z, activation, read):
  """Gates reset, update, new; the reset gate acts after the product (arXiv:1406.1078 version 3)."""
  reset, update, new, recurrent = jnp.split(z, 4, -1)
  reset = read('reset', nn.sigmoid(reset))
  new = read('new', activation(new + reset * recurrent))
  return dict(reset=reset, update=read('update', nn.sigmoid(update)), new=new)


def _gru(gate, states, *_):
  return ((1 - gate['update']) * gate['new'] + gate['update'] * states[0],)


def _lstm_gates(z, activation, read):
  """Gates input, forget, cell, output (Hochreiter and Schmidhuber 1997, with forget gates)."""
  i, f, g, o = jnp.split(z, 4, -1)
  gates = dict(input=nn.sigmoid(i), forget=nn.sigmoid(f), cell=activation(g), output=nn.sigmoid(o))
  return {name: read(name, gate) for name, gate in gates.items()}


def _lstm(gate, states, activation, read):
  cell = read('state', gate['forget'] * states[1] + gate['input'] * gate['cell'])
  return gate['output'] * activation(cell), cell


KINDS = dict(
    elman=Kind(1, 1, False, ('new',), jnp.add, _elman_gates, _elman),
    gru=Kind(3, 1, True, ('reset', 'update', 'new'), _gru_join, _gru_gates, _gru),
    lstm=Kind(4, 2, False, ('input', 'forget', 'cell', 'output', 'state'), jnp.add, _lstm_gates,
              _lstm))
INSIDE = sorted({name for kind in KINDS.values() for name in kind.inside})


def _opened(kind, activation, read, z):
  return KINDS[kind].opened(z, ACTIVATIONS[activation], read)


def _step(kind, activation, z, states, read=lambda name, x: x):
  gates = _opened(kind, activation, read, z)
  return KINDS[kind].step(gates, states, ACTIVATIONS[activation], read)


def _bias_init(kind):
  """Zeros, but 1 for an LSTM's forget gate, to keep the state at first (Jozefowicz et al. 2015)."""
  def init(key, shape, dtype):
    del key
    bias = jnp.zeros(shape, dtype)
    size = shape[0] // 4
    return bias.at[size:2 * size].set(1) if kind == 'lstm' else bias
  return init


def _orthogonal_gates(gates):
  """Each gate's recurrent kernel orthogonal (arXiv:1312.6120)."""
  def init(key, shape, dtype):
    one = nn.initializers.orthogonal()
    of_gate = (shape[0], shape[1] // gates)
    return jnp.concatenate([one(k, of_gate, dtype) for k in jax.random.split(key, gates)], -1)
  return init


def _reader(path, module=None):
  """(name, x) -> x: what is inside a cell, as it is changed there."""
  return lambda name, x: watch.value((*path, name), x, module)


class Recurrent(nn.Module):
  """One direction of one recurrent layer.

  Attributes:
    kind: 'elman', 'gru' or 'lstm'.
    features: size of the state.
    activation: the non-linearity that is tanh by tradition.
    layer_norm: normalise both projections (arXiv:1607.06450).
  """
  kind: str
  features: int
  activation: str = 'tanh'
  layer_norm: bool = False
  scans = True  # what watch.answers has to know

  @property
  def size(self):
    """Units of the state."""
    gates, path = KINDS[self.kind].gates, (*self.path, CELL)
    return widths.width((*path, 'up'), widths.width(path, gates * self.features)) // gates

  def zero_states(self, x):
    """The states before the first step of x[batch, ...], in its dtype."""
    return (jnp.zeros((x.shape[0], self.size), x.dtype),) * KINDS[self.kind].states

  @nn.compact
  def __call__(self, x, valid=None, training=None, carry=None):
    """x[batch, time, in] -> (outputs[batch, time, features], carry).

    valid bool[batch, time] marks the steps that exist, always from the first on; others leave the
    state as it is and output 0. `carry` is a tuple of states[batch, features] to start from,
    zeros by default. `training.recurrent_dropout` drops the same units of the state at every step
    (arXiv:1512.05287).
    """
    kind = KINDS[self.kind]
    width = kind.gates * self.size
    # Time leads from here on: what a step reads then lies together.
    project = Dense(width, use_bias=kind.input_bias, kernel_init=nn.initializers.lecun_normal(),
                    batch_axis=1, name='input')
    gates = project(x.swapaxes(0, 1))
    if self.layer_norm:
      dtype = at_least_single(x.dtype)
      gates = nn.LayerNorm(dtype=x.dtype, param_dtype=dtype, name='input_norm')(gates)
      scale = self.param('recurrent_norm_scale', nn.initializers.ones_init(), (width,), dtype)
    recurrent = Dense(width, bias_init=_bias_init(self.kind),
                      kernel_init=_orthogonal_gates(kind.gates), name=CELL)
    if carry is None:
      carry = self.zero_states(x)
    keep = self._recurrent_mask(x, training)
    valid = None if valid is None else valid.T

    if not (self.layer_norm or self.is_initializing()):
      with contextlib.suppress(LookupError):  # a layer that is watched has to be called
        changes = [watch.changes(path) for path in (
            recurrent.path, *((*recurrent.path, name) for name in kind.inside))]
        for part in ('down', 'up'):  # of a layer that was factorised, whose inputs are its own
          if watch.changes((*recurrent.path, part)) is not None:
            raise LookupError(part)
        outputs, carry = self._fused(recurrent, gates, valid, keep, carry, changes)
        return outputs.swapaxes(0, 1), carry

    def body(recurrent, states, inputs):
      gate, exists = inputs
      projected = recurrent(states[0] if keep is None else states[0] * keep)
      if self.layer_norm:
        projected = jax.nn.standardize(projected) * scale.astype(x.dtype)
      z, read = kind.join(gate, projected), _reader(recurrent.path, recurrent)
      if recurrent.is_mutable_collection('intermediates'):
        recurrent.sow('intermediates', GATES, _opened(self.kind, self.activation, read, z))
      step = functools.partial(_step, self.kind, self.activation, read=read)
      states = recur.elementwise(step, exists, z, states)
      return states, recur.output(states[0], exists)

    # Whatever a layer sows is stacked along time.
    scan = nn.scan(body, variable_broadcast='params', variable_axes={'intermediates': 0},
                   split_rngs={'params': False})
    carry, outputs = scan(recurrent, carry, (gates, valid))
    return outputs.swapaxes(0, 1), carry

  def _fused(self, recurrent, gates, valid, keep, carry, changes):
    """(outputs[time, ...], carry) without a call for each step.

    `changes` has the watch.Change, or None, of what is projected and of what is inside.
    """
    params = dict(recurrent.variables['params'])
    if 'down' in params:  # factorised: the product once, instead of two at each step
      params = dict(params['up'], kernel=params['down']['kernel'] @ params['up']['kernel'])
    params = {name: leaf.astype(gates.dtype) for name, leaf in params.items()}
    if platform.as_graph():  # operators of recurrence round no states
      return self._operator(params, gates, valid, carry)
    known = all(change is None or change.grid is not None for change in changes)
    if self._is_native(gates) and known:
      carry, outputs = lstm.lstm(params['kernel'], params['bias'], gates, valid, keep, carry,
                                 changes)
      return outputs, carry

    def read(h):
      h = h if keep is None else h * keep
      return h if changes[0] is None else changes[0].read(h)

    step = functools.partial(_step, self.kind, self.activation)
    if any(changes[1:]):
      step = functools.partial(step, read=_reader(recurrent.path))
    carry, outputs = recur.fused(KINDS[self.kind].join, step, read, params['kernel'],
                                 params['bias'], gates, valid, carry)
    return outputs, carry

  def _operator(self, params, gates, valid, carry):
    """The same as one operation of a graph: recurrence(kernel, bias, gates, valid, *states)."""
    valid = jnp.ones(gates.shape[:2], bool) if valid is None else valid
    step = functools.partial(_step, self.kind, self.activation)

    def run(kernel, bias, gates, valid, *states):
      last, outputs = recur.plain(KINDS[self.kind].join, step, lambda h: h, kernel, bias, gates,
                                  valid, states)
      return outputs, *last

    outputs, *carry = platform.operator(
        'recurrence', run, params['kernel'], params['bias'], gates, valid, *carry,
        kind=self.kind, activation=self.activation)
    return outputs, tuple(carry)

  def _is_native(self, gates):
    """Whether the library of a CPU has this cell."""
    common = self.kind == 'lstm' and self.activation == 'tanh'
    return common and platform.native(gates, half=False)

  def _recurrent_mask(self, x, training):
    """[batch, features] of 0 and 1 / (1 - rate), drawn by example, or None."""
    if training is None or training.recurrent_dropout is None:
      return None
    whole = jnp.ones((x.shape[0], self.size), x.dtype)
    return dropout.drop(whole, training.recurrent_dropout, (self.size,), training.example,
                        self.make_rng('dropout'))


def reverse(x, valid):
  """x[batch, time, ...] with the valid steps of each example reversed; its own inverse.

  Steps that are not valid stay where they are.
  """
  if platform.as_graph():
    return platform.operator('reverse', _reverse, x, valid)
  return _reverse(x, valid)


def _reverse(x, valid):
  time = jnp.arange(x.shape[1])[None]
  length = valid.sum(-1, keepdims=True)
  index = jnp.where(time < length, length - 1 - time, time)
  return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)


def pool_steps(x, valid, how):
  """x[batch, time, features] to [batch, features] over the valid steps: 'last', 'mean' or 'max'."""
  if how == 'last':
    last = jnp.maximum(valid.sum(-1) - 1, 0)
    return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
  mask = valid[..., None]
  if how == 'mean':
    total = jnp.sum(jnp.where(mask, x, jnp.zeros_like(x)), 1)
    return total / jnp.maximum(valid.sum(-1, keepdims=True), 1).astype(x.dtype)
  return jnp.max(jnp.where(mask, x, jnp.full_like(x, jnp.finfo(x.dtype).min)), 1)
