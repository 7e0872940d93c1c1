"""Recurrent layers and networks."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lepton_jax import layers, trees
from lepton_jax.compress.quantize import inputs as rounding
from lepton_jax.layers import lstm, platform, recur, recurrent, watch
from lepton_jax.registry import MODELS
from tests import LONG
from tests.golden import make_recurrent

SEQUENCE_MODELS = [n for n in MODELS.names()
                   if n.endswith(('_classifier', '_tagger')) or n == 'text_cnn'] if LONG else [
                       'bilstm_classifier', 'elman_tagger', 'gru_classifier', 'text_cnn']


def golden(kind):
  with np.load(pathlib.Path(make_recurrent.__file__).with_name('recurrent.npz')) as arrays:
    return {n.partition('/')[2]: arrays[n] for n in arrays if n.startswith(f'{kind}/')}


def ours_from_torch(kind, arrays, suffix):
  """Parameters of one Recurrent from PyTorch's names; suffix is 'l0', 'l0_reverse', ..."""
  input_bias, hidden_bias = arrays[f'bias_ih_{suffix}'], arrays[f'bias_hh_{suffix}']
  both = kind != 'gru'  # where the two biases only ever appear as their sum, there is one
  params = dict(input=dict(kernel=arrays[f'weight_ih_{suffix}'].T),
                recurrent=dict(kernel=arrays[f'weight_hh_{suffix}'].T,
                               bias=input_bias + hidden_bias if both else hidden_bias))
  if not both:
    params['input']['bias'] = input_bias
  return params


def check_against_torch(kind, arrays):
  x = jnp.asarray(arrays['x'])
  valid = jnp.arange(x.shape[1])[None] < jnp.array(make_recurrent.LENGTHS)[:, None]
  layer = recurrent.Recurrent(kind, make_recurrent.HIDDEN)
  for depth in range(2):
    run = lambda suffix, x: layer.apply({'params': ours_from_torch(kind, arrays, suffix)}, x, valid)
    forward, carry = run(f'l{depth}', x)
    backward, back_carry = run(f'l{depth}_reverse', recurrent.reverse(x, valid))
    np.testing.assert_allclose(carry[0], arrays['last'][2 * depth], atol=1e-5)
    np.testing.assert_allclose(back_carry[0], arrays['last'][2 * depth + 1], atol=1e-5)
    x = jnp.concatenate([forward, recurrent.reverse(backward, valid)], -1)
  np.testing.assert_allclose(x, arrays['outputs'], atol=1e-5)


@pytest.mark.parametrize('kind', make_recurrent.KINDS)
def test_equals_pytorch_with_its_weights(kind):
  """Two layers, both directions, unequal lengths, from committed numbers."""
  check_against_torch(kind, golden(kind))


@pytest.mark.parametrize('kind', make_recurrent.KINDS)
def test_equals_pytorch_live(kind):
  reason = 'PyTorch is not installed; the committed numbers are checked instead'
  pytest.importorskip('torch', reason=reason)
  fresh = make_recurrent.reference(kind)
  for name, array in golden(kind).items():
    np.testing.assert_allclose(fresh[name], array, atol=1e-5, err_msg=name)
  check_against_torch(kind, fresh)


@pytest.mark.parametrize('kind', recurrent.KINDS)
def test_step_by_step_with_carried_state_equals_the_whole(kind):
  x = jax.random.normal(jax.random.key(0), (3, 9, 5))
  layer = recurrent.Recurrent(kind, 4, layer_norm=True)
  variables = layer.init(jax.random.key(1), x)
  whole, end = layer.apply(variables, x)
  carry, parts = None, []
  for t in range(9):
    y, carry = layer.apply(variables, x[:, t:t + 1], carry=carry)
    parts.append(y)
  np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), carry, end)


@settings(max_examples=20 if LONG else 8)
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_reversing_twice_is_the_identity(lengths):
  x = jax.random.normal(jax.random.key(0), (len(lengths), 6, 2))
  valid = jnp.arange(6)[None] < jnp.array(lengths)[:, None]
  once = recurrent.reverse(x, valid)
  np.testing.assert_array_equal(recurrent.reverse(once, valid), x)
  for row, length in enumerate(lengths):
    np.testing.assert_array_equal(once[row, :length], x[row, :length][::-1])


def pooled(name):
  """The ways in which a model pools its steps, as options."""
  if not name.endswith('_classifier'):
    return [{}]
  return [dict(pooling=p) for p in ('last', 'mean', 'max')]


@pytest.mark.parametrize('name, options', [(n, o) for n in SEQUENCE_MODELS for o in pooled(n)])
def test_padding_never_changes_an_answer(name, options):
  module = MODELS.get(name)(outputs=2, vocabulary=20, **options)
  tokens = jnp.array([[3, 4, 5, 0, 0, 0], [7, 8, 9, 10, 0, 0]], jnp.int32)
  variables = jax.jit(lambda: module.init(jax.random.key(0), tokens, None))()
  pad = lambda extra: jnp.pad(tokens, ((0, 0), (0, extra)))[:, :4 + extra]
  answers = jax.jit(lambda tokens: module.apply(variables, tokens, None))
  short, long = (answers(pad(extra)) for extra in (0, 9))
  if name.endswith('_tagger'):
    long = long[:, :4]
  np.testing.assert_allclose(long, short, atol=1e-6)
  assert short.shape == ((2, 4, 2) if name.endswith('_tagger') else (2, 2))


def test_golden_parameter_counts():
  def count(name, shape=(28, 28, 1), **options):
    module = MODELS.get(name)(outputs=10, **options)
    x = jnp.zeros((1, *shape))
    return trees.count(jax.eval_shape(lambda: module.init(jax.random.key(0), x, None))['params'])
  cell = lambda gates, biases: gates * (28 * 128 + 128 * 128 + biases * 128)
  head = 128 * 10 + 10
  assert count('elman_classifier') == count('elman_tagger') == cell(1, 1) + head
  assert count('gru_classifier') == count('gru_tagger') == cell(3, 2) + head
  assert count('lstm_classifier') == count('lstm_tagger') == cell(4, 1) + head
  assert count('bilstm_classifier') == count('bilstm_tagger') == 2 * cell(4, 1) + 256 * 10 + 10
  assert count('lstm_classifier', depth=2) == cell(4, 1) + 4 * (128 * 128 + 128 * 128 + 128) + head


@pytest.mark.parametrize('kind', recurrent.KINDS)
def test_recurrent_dropout_keeps_one_mask_a_sequence(kind):
  x = jnp.ones((4, 6, 3))
  layer = recurrent.Recurrent(kind, 8)
  variables = layer.init(jax.random.key(0), x)
  on = layers.Training(example=jnp.arange(4), recurrent_dropout=jnp.float32(0.5))
  run = lambda rng: layer.apply(variables, x, None, on, rngs={'dropout': jax.random.key(rng)})[0]
  plain = layer.apply(variables, x)[0]
  np.testing.assert_array_equal(run(0), run(0))
  assert np.abs(run(0) - plain).max() > 0 and np.abs(run(0) - run(1)).max() > 0
  # The first state is zero, so there is nothing to drop.
  np.testing.assert_array_equal(run(0)[:, 0], plain[:, 0])


@settings(max_examples=10 if LONG else 1)
@given(kind=st.sampled_from(sorted(recurrent.KINDS)),
       activation=st.sampled_from(['tanh', 'relu', 'sigmoid']),
       lengths=st.lists(st.integers(0, 5), min_size=1, max_size=3), masked=st.booleans(),
       dropped=st.booleans(), mapped=st.booleans(), rounded=st.booleans(), inside=st.booleans())
# So many examples are computed in several parts.
@example(kind='lstm', activation='tanh', lengths=[0, 3, 5] * 12, masked=True, dropped=True,
         mapped=False, rounded=False, inside=False)
@example(kind='lstm', activation='tanh', lengths=[0, 3, 5] * 12, masked=True, dropped=True,
         mapped=False, rounded=True, inside=False)
@example(kind='lstm', activation='tanh', lengths=[2, 5], masked=False, dropped=True, mapped=True,
         rounded=True, inside=False)
@example(kind='lstm', activation='tanh', lengths=[2, 5], masked=True, dropped=False, mapped=True,
         rounded=False, inside=True)
@example(kind='lstm', activation='tanh', lengths=[0, 3, 5] * 12, masked=True, dropped=True,
         mapped=False, rounded=True, inside=True)
def test_own_gradient_of_the_recurrence_is_the_reference_s(kind, activation, lengths, masked,
                                                           dropped, mapped, rounded, inside):
  """Values and every gradient: missing steps, dropout, rounding of states and gates, vmap."""
  cell, batch, time, size = recurrent.KINDS[kind], len(lengths), 5, 3
  normal = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
  valid = (jnp.arange(time)[:, None] < jnp.array(lengths)) if masked else None
  keep = jnp.where(normal(9, batch, size) > 0, 2.0, 0.0) if dropped else None
  inputs = (normal(0, size, cell.gates * size), normal(1, cell.gates * size),
            normal(2, time, batch, cell.gates * size),
            tuple(normal(3 + i, batch, size) for i in range(cell.states)), jnp.float32(0.31))

  def read_kept(end):
    """Three bits, wide of the ends of which some states lie."""
    if not rounded:
      return lambda h: h
    return lambda h: rounding.affine(h, *rounding.trained_for(h, -end, end), jnp.float32(3), size)

  def read_inside(end):
    return lambda x: rounding.affine(x, *rounding.trained_for(x, -end, 2 * end), jnp.float32(4),
                                     size)

  def loss(run, kernel, bias, gates, states, end):
    read = lambda h: read_kept(end)(h if keep is None else h * keep)
    within = lambda name, x: read_inside(end)(x) if inside else x
    step = functools.partial(recurrent._step, kind, activation, read=within)
    arguments = (cell.join, step, read, kernel, bias, gates, valid, states)
    last, outputs = run(*arguments, end) if run.__name__ == 'native' else run(*arguments)
    return jnp.sum(jnp.sin(outputs)) + sum(jnp.sum(jnp.cos(s)) for s in last)

  def both(run):
    gradient = jax.value_and_grad(lambda *a: loss(run, *a), argnums=(0, 1, 2, 3, 4))
    if not mapped:
      return jax.jit(gradient)(*inputs)
    return jax.jit(jax.vmap(gradient))(*jax.tree.map(lambda x: jnp.stack([x, -x]), inputs))

  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  jax.tree.map(near, both(recur.fused), both(recur.plain))
  if (kind, activation) == ('lstm', 'tanh') and platform.native(jnp.ones(1)):
    def native(join, step, read, kernel, bias, gates, valid, states, end):
      change = watch.Change(read_kept(end), rounding.grid(-end, end, jnp.float32(3)))
      within = watch.Change(read_inside(end), rounding.grid(-end, 2 * end, jnp.float32(4)))
      changes = [change if rounded else None, *[within if inside else None] * 5]
      return lstm.lstm(kernel, bias, gates, valid, keep, states, changes)

    jax.tree.map(near, both(native), both(recur.plain))


def test_a_watched_recurrence_is_the_same_and_each_of_its_steps_is_seen():
  layer, x = recurrent.Recurrent('lstm', 4), jax.random.normal(jax.random.key(0), (2, 5, 3))
  variables = layer.init(jax.random.key(1), x)
  seen = []
  with watch.inputs({'recurrent'}, lambda module, path, h: (seen.append(path), h)[1]):
    watched = layer.apply(variables, x)[0]
  assert set(seen) == {'recurrent'} and watch.changes(('recurrent',)) is None
  np.testing.assert_allclose(layer.apply(variables, x)[0], watched, atol=1e-6)
