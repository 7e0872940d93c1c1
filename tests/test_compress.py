"""Pruning and quantisation: their laws on arrays, and on every registered model through the flags."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax import assemble, run, trees
from lepton_jax import network as network_lib
from lepton_jax.compress import size
from lepton_jax.compress.prune import masks, schedule
from lepton_jax.compress.quantize import quantizers, sites
from lepton_jax.errors import UserError
from lepton_jax.registry import SCORES
from tests.test_models import DISTINCT, SHALLOW, SMALL, random_like, tiny_dataset
from tests.test_train import assert_same, run_steps

# pruning

@settings(max_examples=30)
@given(values=st.lists(st.integers(0, 3), min_size=1, max_size=60), share=st.floats(0, 1))
def test_masks_zero_an_exact_count_even_under_ties(values, share):
  half = len(values) // 2
  scores = dict(a=jnp.array(values[:half], jnp.float32), b=jnp.array(values[half:], jnp.float32))
  count = round(share * len(values))
  kept = masks.global_masks(scores, jnp.int32(count))
  flat = np.concatenate([kept['a'], kept['b']])
  assert np.sum(flat == 0) == count and set(flat) <= {0, 1}
  values = np.array(values)
  assert not count or count == len(values) or values[flat == 0].max() <= values[flat == 1].min()


def test_one_compile_of_masks_serves_every_sparsity():
  scores = dict(a=jnp.arange(100.0))
  remask = lambda count: masks.remask(scores, np.int32(count), SCORES.get('magnitude'))
  remask(1)
  before = masks.remask._cache_size()
  assert [int(remask(c)['a'].sum()) for c in (50, 99)] == [50, 1]
  assert masks.remask._cache_size() == before


def test_cubic_schedule_rises_fast_then_levels_off():
  steps = schedule.update_steps(1000, 0.1, 0.6, 10)
  assert (steps[0], steps[-1], len(steps)) == (100, 600, 11)
  values = [schedule.cubic(s, steps, 0.9) for s in steps]
  assert values[0] == 0 and values[-1] == 0.9 and values[5] == pytest.approx(0.9 * 0.875)
  assert np.all(np.diff(values) > 0) and np.all(np.diff(values, 2) < 0)
  assert schedule.cubic(99, steps, 0.9) == 0 and schedule.cubic(999, steps, 0.9) == 0.9
  assert schedule.update_steps(10, 1.0, 1.0, 3) == [9]


@pytest.mark.parametrize('optimizer', ('momentum', 'adam', 'lamb'))
def test_pruned_weights_stay_exactly_zero(small, optimizer):
  config = small.replace(optimizer=optimizer, prune_sparsity=0.9, prune_begin=0.0, prune_end=0.05, weight_decay=0.1, l2=1e-3, ema_decay=0.9)
  state, _, _ = run_steps(config, 12)
  kernels = trees.kernels(state.params)
  total = sum(trees.named(state.params)[n].size for n in kernels)
  for params in (state.params, state.ema['params']):
    named = trees.named(params)
    assert sum(int((named[n] == 0).sum()) for n in kernels) == round(0.9 * total)
    assert all(np.all(np.asarray(named[n])[np.asarray(state.masks[n]) == 0] == 0) for n in kernels)


def test_prune_exclude_keeps_kernels_dense(small):
  state, _, _ = run_steps(small.replace(prune_sparsity=0.8, prune_end=0.1, prune_begin=0.0, prune_exclude='^head'), 10)
  assert set(state.masks) == {'dense1/kernel', 'dense2/kernel'}
  assert not np.any(np.asarray(state.params['head']['kernel']) == 0)
  for pattern, words in (('conv', 'matches nothing. Paths: dense1/kernel'), ('(', 'not a regular expression'), ('.', 'leave no kernel')):
    with pytest.raises(UserError, match=words):
      run_steps(small.replace(prune_sparsity=0.8, prune_exclude=pattern), 1)


# quantisation

def test_symmetric_levels_and_zero():
  kernel = jax.random.normal(jax.random.key(0), (50, 3)) * jnp.array([1.0, 10.0, 0.0])
  for bits in (2, 3, 4, 8):
    rounded = np.asarray(quantizers.symmetric(kernel, jnp.float32(bits)))
    for column in range(3):
      levels = np.unique(rounded[:, column])
      assert len(levels) <= 2 ** bits - 1
      np.testing.assert_allclose(np.abs(rounded[:, column]).max(), np.abs(kernel[:, column]).max(), rtol=1e-6)
  assert not np.any(rounded[:, 2])


def test_more_bits_err_less():
  kernel = jax.random.normal(jax.random.key(0), (64, 8))
  x = jax.nn.relu(jax.random.normal(jax.random.key(1), (64, 8)))
  weight_errors = [float(jnp.abs(quantizers.symmetric(kernel, jnp.float32(b)) - kernel).mean()) for b in (2, 3, 4, 6, 8)]
  input_errors = [float(jnp.abs(quantizers.affine(x, jnp.float32(0), x.max(), jnp.float32(b)) - x).mean()) for b in (2, 3, 4, 6, 8)]
  assert weight_errors == sorted(weight_errors, reverse=True) and input_errors == sorted(input_errors, reverse=True)
  assert weight_errors[-1] < 0.01 * weight_errors[0] and input_errors[-1] < 0.02 * input_errors[0]


def test_affine_keeps_zero_clips_and_counts_levels():
  x = jnp.linspace(-3.0, 5.0, 400)[None]
  y = np.asarray(quantizers.affine(x, jnp.float32(-1), jnp.float32(2), jnp.float32(4)))
  assert len(np.unique(y)) == 16
  assert quantizers.affine(jnp.zeros((1, 1)), jnp.float32(-0.7), jnp.float32(2.1), jnp.float32(4)).item() == 0
  np.testing.assert_allclose([y.min(), y.max()], [-1, 2], atol=1e-6)
  positive = quantizers.affine(jnp.linspace(0, 1, 50)[None], jnp.float32(0.4), jnp.float32(1), jnp.float32(8))
  assert positive.min() == 0  # a range always reaches to zero


def test_gradients_pass_straight_through_and_reach_the_range():
  kernel = jax.random.normal(jax.random.key(0), (5, 4))
  np.testing.assert_array_equal(jax.grad(lambda k: quantizers.symmetric(k, jnp.float32(3)).sum())(kernel), np.ones((5, 4)))
  x = jnp.array([[-2.0, 0.3, 0.8, 4.0]])
  gradient = jax.grad(lambda x, low, high: quantizers.affine(x, low, high, jnp.float32(8)).sum(), (0, 1, 2))(x, jnp.float32(-1), jnp.float32(1))
  np.testing.assert_array_equal(gradient[0], [[0, 1, 1, 0]])
  # One entry is clipped at each end; LSQ scales the sum by 1 / sqrt(entries * levels).
  np.testing.assert_allclose(gradient[1:], np.ones(2) / np.sqrt(4 * 255), rtol=0.05)


def test_the_outermost_levels_get_the_whole_gradient():
  x = jnp.array([[0.05, 0.4, 0.95]])
  gradient = jax.grad(lambda x: quantizers.affine(x, jnp.float32(0), jnp.float32(1), jnp.float32(2)).sum())(x)
  np.testing.assert_array_equal(gradient, [[1, 1, 1]])


class Scanned(nn.Module):
  """A cell whose dense layer lives inside a scan, as a recurrent network's does."""

  @nn.compact
  def __call__(self, x, training=None):
    step = nn.scan(lambda layer, carry, _: (jnp.tanh(layer(carry)), None), variable_broadcast='params', split_rngs={'params': False}, length=3)
    return step(nn.Dense(4, name='cell'), x, None)[0]


def test_layers_inside_a_scan_are_reached():
  x = jnp.ones((2, 4))
  variables = Scanned().init(jax.random.key(0), x)
  plain = Scanned().apply(variables, x)

  def rounded(bits):
    with sites.replace_inputs({'cell'}, lambda path, x: quantizers.affine(x, jnp.float32(-1), jnp.float32(1), bits)):
      return Scanned().apply(variables, x)
  errors = [float(jnp.abs(jax.jit(rounded)(jnp.float32(b)) - plain).max()) for b in (2, 4, 8)]
  assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize('model', DISTINCT)
def test_every_model_is_pruned_and_quantised_by_flags(small, model, monkeypatch):
  """Masks, levels and reports of each registered model without a line of it in the model."""
  side = SMALL.get(model, 8)
  config = small.replace(model=model, prune_sparsity=0.75, quantize_weight_bits=4, quantize_activation_bits=6, **SHALLOW.get(model, {}))
  data = tiny_dataset(model, (side, side, 1), 2)
  real = network_lib.make_init
  monkeypatch.setattr(network_lib, 'make_init', lambda *arguments: lambda key: random_like(jax.eval_shape(lambda: real(*arguments)(key))))
  assembly = assemble.build(config.replace(batch_size=8, sequence_length=8), data)
  network, state = assembly.network, assembly.state
  kernels = trees.kernels(state.params)
  assert set(network.prunable) == set(network.quantized) == set(kernels)
  layers_with_inputs = {sites.owner(n) for n in kernels if not n.endswith('embedding')}
  assert layers_with_inputs == set(network.sites)
  report = run.describe_compression(network, state.evaluated, state.hparams)
  assert report['quantized_kernels'] == len(kernels)
  for row in report['kernels']:
    assert row['weight_bits'] == 4 and (row.get('activation_bits') == 6 or 'floating-point' in row['activation_reason'])
  rounded = trees.named(network.round_kernels(state.trained, state.hparams)['params'])
  for name in kernels:
    assert all(len(np.unique(np.asarray(rounded[name])[..., c])) <= 15 for c in range(rounded[name].shape[-1])), name


def test_quantisation_trains_its_ranges_and_reports_exclusions(small):
  config = small.replace(quantize_weight_bits=4, quantize_activation_bits=4, quantize_exclude='head')
  first, _, _ = run_steps(config, 1)
  later, _, _ = run_steps(config, 8)
  assert set(trees.named(first.quant)) == {f'dense{i}/{end}' for i in (1, 2) for end in ('low', 'high')}
  assert all(float(r) > 0 for n, r in trees.named(first.quant).items() if n.endswith('high'))
  assert any(a != b for a, b in zip(jax.tree.leaves(first.quant), jax.tree.leaves(later.quant)))
  fixed, _, _ = run_steps(config.replace(quantize_ranges='calibrated'), 1)
  fixed_later, _, _ = run_steps(config.replace(quantize_ranges='calibrated'), 8)
  assert_same(fixed.quant, fixed_later.quant)
  rows = sites.report(['a/kernel', 'b/kernel'], 4, 0, {'b/kernel'}, (), 'b')
  assert rows == [dict(kernel='a/kernel', weight_bits=4, activation_reason='no activation bits were asked for'),
                  dict(kernel='b/kernel', reason='excluded by --quantize_exclude=b')]


@pytest.mark.parametrize('option', [dict(prune_sparsity=0.5), dict(quantize_weight_bits=4), dict(quantize_activation_bits=4)])
def test_zero_is_bit_identical_to_absent_and_on_is_not(small, option):
  plain, _, _ = run_steps(small.replace(prune_begin=0.0), 4)
  zero, _, _ = run_steps(small.replace(prune_begin=0.0, **{k: type(v)(0) for k, v in option.items()}), 4)
  on, _, _ = run_steps(small.replace(prune_begin=0.0, **option), 4)
  assert_same(plain, zero)
  assert trees.digest(on.params) != trees.digest(plain.params)


def test_zero_strength_program_is_the_plain_program(small):
  def text(config):
    assembly = assemble.build(config, assemble.load_data(config))
    return jax.jit(assembly.train_step(None)).lower(assembly.state, assembly.batches.at(0)).as_text()
  assert text(small) == text(small.replace(prune_sparsity=0.0, quantize_weight_bits=0, prune_updates=3))
  assert dataclasses.asdict(small.prune)['prune_sparsity'] == 0


def test_estimated_size_counts_bits_positions_and_scales():
  kernel = np.zeros((10, 8))
  kernel[:4] = 1
  assert size.estimate(dict(k=kernel), {}, 3, 0) == (32 * 32 + 80 + 3 * 32) // 8  # 32 entries of 80, a bit each for where they are
  assert size.estimate(dict(k=kernel), dict(k=4), 0, 2) == (32 * 4 + 80 + 8 * 32 + 4 * 32) // 8
  assert size.estimate(dict(k=np.ones((10, 8))), dict(k=4), 0, 0) == (80 * 4 + 8 * 32) // 8  # dense is smaller
