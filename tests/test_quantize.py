"""Quantisation: the law of each quantizer of kernels and of inputs, and runs by flags."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import assemble, registry, trees
from lepton_jax.compress.method import part
from lepton_jax.compress.quantize import inputs, sensitivity, sites, weights
from lepton_jax.errors import UserError
from lepton_jax.layers import recurrent, watch
from tests import LONG
from tests.test_train import assert_same, run_steps

CHANNEL = (0,)
UNIFORM = [name for name in registry.WEIGHT_QUANTIZERS.names()
           if registry.WEIGHT_QUANTIZERS.get(name)().bits is None]


def rounded(name, kernel, bits, axes=CHANNEL):
  quantizer, bits = registry.WEIGHT_QUANTIZERS.get(name)(), jnp.float32(bits)
  return np.asarray(quantizer.apply(kernel, bits, axes, quantizer.init(kernel, bits, axes)))


KERNEL = jax.random.normal(jax.random.key(0), (64, 3)) * jnp.array([1.0, 10.0, 0.1])


# kernels

@pytest.mark.parametrize('name', registry.WEIGHT_QUANTIZERS.names())
def test_kernels_stand_on_no_more_levels_than_their_bits_have(name):
  only = registry.WEIGHT_QUANTIZERS.get(name)().bits
  for bits in (only,) if only else (2, 3, 4, 8):
    for column in rounded(name, KERNEL, bits).T:
      assert len(np.unique(column)) <= 2 ** bits
    assert len(np.unique(rounded(name, KERNEL, bits, (0, 1)))) <= 2 ** bits


@pytest.mark.parametrize('name', UNIFORM)
def test_more_bits_err_less(name):
  kernel = KERNEL[:, :1]
  # DoReFa's levels are those of tanh(w).
  exact = rounded(name, kernel, 16) if name == 'dorefa' else kernel
  errors = [float(np.square(rounded(name, kernel, b) - exact).mean()) for b in (2, 3, 4, 6, 8)]
  # Powers of two gain levels near zero alone: there the largest weights keep their error.
  assert errors == sorted(errors, reverse=True)
  if name != 'power_of_two':
    assert errors[-1] < 0.01 * errors[0]


@pytest.mark.parametrize('name', registry.WEIGHT_QUANTIZERS.names())
def test_one_program_serves_all_bits_and_gradients_are_finite(name):
  quantizer = registry.WEIGHT_QUANTIZERS.get(name)()
  kernel = KERNEL.at[:, 2].set(0)  # a channel without a weight

  @jax.jit
  def gradients(bits):
    learned = quantizer.init(kernel, bits, CHANNEL)
    loss = lambda k, learned: jnp.sum(jnp.sin(quantizer.apply(k, bits, CHANNEL, learned)))
    return jax.grad(loss, (0, 1))(kernel, learned)

  for bits in (quantizer.bits,) if quantizer.bits else (2, 4, 8):
    found = gradients(jnp.float32(bits))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert np.abs(found[0]).max() > 0
  assert gradients._cache_size() == 1


def test_max_keeps_the_largest_weight_and_zero():
  for bits in (2, 3, 4, 8):
    new = rounded('max', KERNEL.at[0].set(0), bits)
    np.testing.assert_allclose(np.abs(new).max(0), np.abs(KERNEL).max(0), rtol=1e-6)
    assert not new[0].any()
  kernel = jax.random.normal(jax.random.key(0), (5, 4))
  gradient = jax.grad(lambda k: weights.max_().apply(k, jnp.float32(3), CHANNEL, {}).sum())(kernel)
  np.testing.assert_array_equal(gradient, np.ones((5, 4)))


def test_the_scale_of_least_error_is_never_worse_than_the_largest():
  error = lambda name, kernel, bits: np.square(rounded(name, kernel, bits) - kernel).sum(0)
  for seed in range(5):
    kernel = jax.random.t(jax.random.key(seed), 3.0, (200, 4))
    for bits in (2, 3, 4, 8):
      assert (error('mse', kernel, bits) <= error('max', kernel, bits) * (1 + 1e-6)).all()
  assert (error('mse', kernel, 2) < 0.6 * error('max', kernel, 2)).any()  # of heavy tails


@pytest.mark.parametrize('name', ['max', 'mse', 'apot', 'power_of_two', 'ternary', 'binary'])
def test_folding_a_norm_into_a_kernel_changes_no_level(name):
  """Its factors are of channels, as scales are, so it is all one which comes first."""
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 8, 4))
  factors = jnp.array([0.25, -2.0, 1.0, 8.0])
  bits = dict(ternary=2, binary=1).get(name, 3)
  np.testing.assert_allclose(rounded(name, kernel * factors, bits),
                             rounded(name, kernel, bits) * factors, rtol=1e-6)


def test_lsq_gradients_are_the_papers():
  """Equation 3 of arXiv:1902.08153 times its g = 1 / sqrt(N Q), and 1 inside, 0 outside.

  So that the logarithm's descent moves a step as the paper's moves the first one, both are alike
  up to the square of the first.
  """
  kernel, step = jnp.array([[0.6], [-0.9], [5.0], [-5.0]]), jnp.array([[0.5]])
  quantizer, bits = weights.lsq(), jnp.float32(3)  # levels -4 to 3
  apply = lambda k, log: quantizer.apply(k, bits, CHANNEL, dict(log_step=log)).sum()
  of_kernel, of_log = jax.grad(apply, (0, 1))(kernel, jnp.log(step))
  first = np.exp(quantizer.init(kernel, bits, CHANNEL)['log_step'])
  np.testing.assert_allclose(first, 2 * np.abs(kernel).mean() / np.sqrt(3), rtol=1e-6)
  np.testing.assert_array_equal(of_kernel.ravel(), [1, 1, 0, 0])
  wanted = (1 - 1.2) + (-2 - -1.8) + 3 - 4
  np.testing.assert_allclose(of_log / step * first ** 2, wanted / np.sqrt(4 * 3), rtol=1e-5)


def test_dorefa_by_hand():
  """2 quantize(tanh(w) / (2 max |tanh|) + 1/2) - 1 with 3 steps, here times the largest |w|."""
  kernel = jnp.array([[0.1], [-0.4], [2.0]])
  unit = np.tanh(kernel) / np.tanh(2.0)
  wanted = (2 * np.round((unit / 2 + 0.5) * 3) / 3 - 1) * 2
  np.testing.assert_allclose(rounded('dorefa', kernel, 2), wanted, rtol=1e-5)


def test_powers_of_two_by_hand():
  kernel = jnp.array([[1.0], [0.76], [0.74], [0.3], [0.13], [0.12], [-0.5]])
  # 3 bits: 0, 1/4, 1/2 and 1; half of the smallest divides it from zero.
  np.testing.assert_array_equal(rounded('power_of_two', kernel, 3).ravel(),
                                [1, 1, 0.5, 0.25, 0.25, 0, -0.5])


def test_additive_powers_of_two_have_the_papers_levels():
  """Figure 1 of arXiv:1909.13144: two terms {0, 1, 1/4, 1/16} + {0, 1/2, 1/8, 1/32}, scaled."""
  wanted = np.unique(np.add.outer([0, 1, 1 / 4, 1 / 16], [0, 1 / 2, 1 / 8, 1 / 32])) / 1.5
  np.testing.assert_allclose(weights.apot_levels()[3][:16], wanted)  # of 5 bits, one the sign
  for bits, levels in enumerate(weights.apot_levels(), 1):
    assert len(np.unique(levels)) == 2 ** bits


def test_codebooks_are_those_of_k_means():
  """Against scikit-learn's, from the same first values; zeros are in no cluster."""
  from sklearn.cluster import KMeans
  kernel = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
  kernel[:10] = 0
  found = registry.WEIGHT_QUANTIZERS.get('cluster')().init(jnp.asarray(kernel), jnp.float32(3), ())
  weights = kernel[kernel != 0][:, None]
  first = np.linspace(weights.min(), weights.max(), 15)[1::2, None]
  peer = KMeans(7, init=first, n_init=1, max_iter=30, tol=0).fit(weights)
  np.testing.assert_allclose(found['codebook'][:7], np.sort(peer.cluster_centers_[:, 0]), atol=1e-4)
  assert (found['codebook'][7:] == 0).all()  # which are not there, so no weight becomes zero
  on = registry.WEIGHT_QUANTIZERS.get('cluster')().apply(kernel, jnp.float32(3), (), found)
  assert len(np.unique(on)) == 8 and np.array_equal(on == 0, kernel == 0)


def test_a_value_of_a_codebook_gets_the_mean_gradient_of_its_weights():
  quantizer = registry.WEIGHT_QUANTIZERS.get('cluster')()
  kernel = jnp.array([[0.9, 1.2], [-1.0, 0.0]])
  learned = dict(codebook=jnp.array([1.0, -0.8, *[1e37] * 253]))
  loss = lambda k, l: jnp.sum(quantizer.apply(k, 2.0, (), l) * jnp.array([[1.0, 3.0], [5.0, 7.0]]))
  np.testing.assert_allclose(quantizer.apply(kernel, 2.0, (), learned), [[1, 1], [-0.8, 0]])
  weights, values = jax.grad(loss, (0, 1))(kernel, learned)
  np.testing.assert_allclose(weights, [[1, 3], [5, 0]])
  np.testing.assert_allclose(values['codebook'][:2], [2, 5])


def test_ternary_and_binary_by_hand():
  kernel = jnp.array([[1.0], [-2.0], [0.1], [0.9]])
  # Threshold 0.7 * 1 = 0.7; the mean of 1, 2 and 0.9 is 1.3.
  np.testing.assert_allclose(rounded('ternary', kernel, 2).ravel(), [1.3, -1.3, 0, 1.3], rtol=1e-6)
  np.testing.assert_allclose(rounded('binary', kernel, 1).ravel(), [1, -1, 1, 1], rtol=1e-6)
  ttq = weights.ttq()
  learned = dict(log_positive=jnp.log(jnp.array([[0.5]])),
                 log_negative=jnp.log(jnp.array([[0.25]])))
  loss = lambda k, learned: ttq.apply(k, jnp.float32(2), CHANNEL, learned).sum()
  new = ttq.apply(kernel, jnp.float32(2), CHANNEL, learned)
  np.testing.assert_allclose(new.ravel(), [0.5, -0.25, 0, 0.5])  # threshold 0.05 * 2
  of_kernel, of_levels = jax.grad(loss, (0, 1))(kernel, learned)
  # Equations 7 and 8 of arXiv:1612.01064.
  np.testing.assert_allclose(of_kernel.ravel(), [0.5, 0.25, 1, 0.5])
  np.testing.assert_allclose(of_levels['log_positive'], 2 * 0.5)  # times the level: of logarithms
  np.testing.assert_allclose(of_levels['log_negative'], -1 * 0.25)


# inputs

def test_affine_keeps_zero_clips_and_counts_levels():
  affine = lambda x, low, high, bits: np.asarray(inputs.affine(
      x, jnp.float32(low), jnp.float32(high), jnp.float32(bits), x.size))
  y = affine(jnp.linspace(-3.0, 5.0, 400)[None], -1, 2, 4)
  assert len(np.unique(y)) == 16
  assert affine(jnp.zeros((1, 1)), -0.7, 2.1, 4).item() == 0
  np.testing.assert_allclose([y.min(), y.max()], [-1, 2], atol=1e-6)
  # A range always reaches to zero.
  assert affine(jnp.linspace(0, 1, 50)[None], 0.4, 1, 8).min() == 0


def test_learned_ranges_get_the_papers_gradients():
  x, low, high, bits = jnp.array([[-2.0, 0.3, 0.8, 4.0]]), *map(jnp.float32, (-1, 1, 8))

  def gradient(function):
    loss = lambda x, low, high: function(x, low, high, bits, 4).sum()
    return jax.grad(loss, (0, 1, 2))(x, low, high)

  of_x, *ends = gradient(inputs.affine)
  np.testing.assert_array_equal(of_x, [[0, 1, 1, 0]])
  # One entry is clipped at each end. A clipped entry moves a step of mean |x| m by the same share
  # as in LSQ, levels / (2 m sqrt(entries)), where the range is 2 m.
  np.testing.assert_allclose(ends, np.ones(2) * 255 / np.sqrt(4), rtol=0.05)
  of_x, *ends = gradient(inputs.clipped)  # PACT: what is clipped, and nothing else
  np.testing.assert_array_equal(of_x, [[0, 1, 1, 0]])
  np.testing.assert_array_equal(ends, [1, 1])


def test_the_outermost_levels_get_the_whole_gradient():
  x, ends = jnp.array([[0.05, 0.4, 0.95]]), (jnp.float32(0), jnp.float32(1), jnp.float32(2))
  gradient = jax.grad(lambda x: inputs.affine(x, *ends, 3).sum())(x)
  np.testing.assert_array_equal(gradient, [[1, 1, 1]])


def seen(values, batches=4):
  parts = np.split(values, batches)
  return inputs.Seen(np.array([p.min() for p in parts]), np.array([p.max() for p in parts]), values)


@pytest.mark.parametrize('shape', [(64, 32, 32, 16), (64, 7, 7, 20), (9000,)])
def test_the_values_that_are_looked_at_are_of_all_channels_and_places(shape):
  for axis, size in enumerate(shape):
    index = np.broadcast_to(np.arange(size).reshape(-1, *[1] * (len(shape) - 1 - axis)), shape)
    seen = np.asarray(sites.sample(jnp.asarray(index.ravel())))
    assert seen.size == sites.SAMPLE
    parts = np.histogram(seen, size if size <= 32 else 16, (0, size))[0]
    assert parts.min() > 0.7 * parts.mean() and parts.max() < 1.3 * parts.mean()


@pytest.mark.parametrize('name', registry.INPUT_QUANTIZERS.names())
def test_calibrated_ranges_lie_within_the_extremes(name):
  values = np.maximum(np.random.default_rng(0).standard_t(3, 4096), 0)  # heavy tails after ReLU
  low, high = registry.INPUT_QUANTIZERS.get(name)().calibrate(seen(values), 4, None)
  assert low == 0 and 0 < high <= values.max()
  if name in ('percentile', 'mse_range', 'entropy'):
    assert high < values.max()


def test_the_range_of_least_error_errs_least():
  values = np.random.default_rng(0).standard_t(3, 4096)
  error = lambda ends: np.square(values - inputs.on_levels(values, *ends, 4)).mean()
  errors = {name: error(registry.INPUT_QUANTIZERS.get(name)().calibrate(seen(values), 4, None))
            for name in ('mse_range', 'min_max', 'batch_mean', 'percentile', 'entropy')}
  assert min(errors, key=errors.get) == 'mse_range' and errors['mse_range'] < errors['min_max'] / 2


def test_a_moving_average_follows_batch_after_batch():
  quantizer = inputs.moving_average()
  one = inputs.Seen(np.array([0.0]), np.array([1.0]), np.zeros(1))
  assert quantizer.calibrate(one, 8, None) == (0, 1)
  assert quantizer.calibrate(one, 8, (-1.0, 2.0)) == pytest.approx((-0.9, 1.9))


class Scanned(nn.Module):
  """A cell whose dense layer lives inside a scan, as a recurrent network's does."""

  @nn.compact
  def __call__(self, x, training=None):
    step = nn.scan(lambda layer, carry, _: (jnp.tanh(layer(carry)), None),
                   variable_broadcast='params', split_rngs={'params': False}, length=3)
    return step(nn.Dense(4, name='cell'), x, None)[0]


def test_layers_inside_a_scan_are_reached():
  x = jnp.ones((2, 4))
  variables = Scanned().init(jax.random.key(0), x)
  plain = Scanned().apply(variables, x)

  def changed(bits):
    read = lambda module, path, x: inputs.affine(x, jnp.float32(-1), jnp.float32(1), bits, 4)
    with watch.inputs({'cell'}, read):
      return Scanned().apply(variables, x)

  errors = [float(jnp.abs(jax.jit(changed)(jnp.float32(b)) - plain).max()) for b in (2, 4, 8)]
  assert errors[0] > errors[1] > errors[2] > 0


# runs

def test_ranges_are_trained_or_set_anew_and_exclusions_told(small):
  config = small.replace(quantize_weight_bits=4, quantize_activation_bits=4,
                         quantize_exclude='head', quantize_begin=0.0)
  first, _, _ = run_steps(config, 1)
  later, _, _ = run_steps(config, 8)
  ranges = part(first.held['quantize'], 'ranges')
  assert set(ranges) == {f'dense{i}/{end}' for i in (1, 2) for end in ('low', 'high')}
  assert all(float(r) > 0 for n, r in ranges.items() if n.endswith('high'))
  assert any(a != b for a, b in zip(jax.tree.leaves(first.learned),
                                    jax.tree.leaves(later.learned)))
  fixed, _, _ = run_steps(config.replace(quantize_inputs='min_max', gradient_noise=0.5), 1)
  fixed_later, _, _ = run_steps(config.replace(quantize_inputs='min_max', gradient_noise=0.5), 8)
  assert fixed.held and not fixed.learned
  assert_same(fixed.held, fixed_later.held)
  network = assemble.build(config, assemble.load_data(config)).network
  rows = {row['kernel']: row for row in network.compression.kernels(
      trees.kernels(first.params), config)}
  assert rows['dense1/kernel'] == dict(
      kernel='dense1/kernel', weight_bits=4, quantizer='max', granularity='channel',
      activation_bits=4, activation_quantizer='lsq_plus')
  assert rows['head/kernel']['reason'] == 'excluded by --quantize_exclude=head'


@pytest.mark.parametrize('model', ['cnn_mnist', 'lstm_classifier'])
@pytest.mark.parametrize('reader', ['lsq_plus', 'min_max'])
def test_inputs_are_neither_rounded_nor_clipped_before_rounding_begins(small, model, reader):
  config = small.replace(model=model, quantize_inputs=reader)
  if model == 'lstm_classifier':
    config = config.replace(recurrent_dropout=0.5)  # what is read of a state is up to 2
  total = assemble.build(config, assemble.load_data(config)).total_steps
  rounded = config.replace(quantize_activation_bits=2, quantize_begin=3 / total)
  for steps, same in ((3, True), (4, False)):
    plain, _, one = run_steps(config, steps)
    state, _, other = run_steps(rounded, steps)
    assert (abs(float(one['loss'] - other['loss'])) < 1e-5) == same
    assert all(bool(high) != same for name, high in part(state.held['quantize'], 'ranges').items()
               if name.endswith('high'))
    if same:
      expected = trees.named(plain.params)
      for name, leaf in trees.named(state.params).items():
        np.testing.assert_allclose(leaf, expected[name], atol=1e-5)


@pytest.mark.parametrize('name', registry.INPUT_QUANTIZERS.names())
def test_only_what_rounds_by_a_grid_lets_fused_cells_round(name, small):
  """A cell of its own puts x on levels, and the gradient passes where none is clipped."""
  reader = registry.INPUT_QUANTIZERS.get(name)()
  x, bits, same = jnp.linspace(-2, 2, 1001), jnp.float32(3), True
  for low, high in ((-1.0, 0.5), (0.4, 1.0)):
    scale, zero, levels = inputs.grid(jnp.float32(low), jnp.float32(high), bits)
    level = jnp.round(x / scale) + zero
    apply = functools.partial(reader.apply, low=jnp.float32(low), high=jnp.float32(high), bits=bits,
                              entries=1)
    found, back = jax.vjp(apply, x)
    passed, = back(jnp.ones_like(x))
    same &= np.allclose(found, inputs.rounded(x, scale, zero, levels))
    same &= np.array_equal(passed, (level >= 0) & (level <= levels))
  config = small.replace(model='lstm_classifier', quantize_activation_bits=8, quantize_inputs=name)
  method, = assemble.build(config, assemble.load_data(config)).network.compression.methods
  assert (same or method.grid is None) and (method.grid is None) <= (name != 'lsq_plus')


@pytest.mark.parametrize('reader', ('lsq_plus', 'pact'))
def test_every_range_of_a_recurrent_layer_is_trained(small, reader):
  config = small.replace(model='lstm_classifier', hidden=8, quantize_activation_bits=3,
                         quantize_gate_bits=3, quantize_begin=0.0, quantize_inputs=reader)
  state, _, _ = run_steps(config, 6)
  learned = part(state.learned['quantize'], 'ranges')
  moved = {name.rpartition('/')[0] for name, factor in learned.items() if factor != 1}
  assert {f'forward1/recurrent{inside}' for inside in (
      '', *(f'/{name}' for name in recurrent.KINDS['lstm'].inside))} <= moved


def test_bits_by_layer(small):
  config = small.replace(quantize_layers='dense1=8/6;head=3', quantize_weight_bits=2)
  network = assemble.build(config, assemble.load_data(config)).network
  rows = {row['kernel']: row for row in network.compression.kernels(
      ['dense1/kernel', 'dense2/kernel', 'head/kernel'], config)}
  assert [row['weight_bits'] for row in rows.values()] == [8, 2, 3]
  assert rows['dense1/kernel']['activation_bits'] == 6
  assert 'activation_bits' not in rows['head/kernel']
  state, _, _ = run_steps(config, 2)
  counted = trees.named(network.compression.counted(state.evaluated, state.hparams)['params'])
  for name, bits in (('dense1/kernel', 8), ('dense2/kernel', 2), ('head/kernel', 3)):
    levels = max(len(np.unique(column)) for column in np.asarray(counted[name]).T)
    assert min(2 ** (bits - 1) - 1, 40) < levels <= 2 ** bits - 1
  for text, words in (('conv=4', 'matches nothing'), ('head=4/1', 'inputs 2 to 16'),
                      ('head=x', 'invalid literal'), ('head=17', '1 to 16'),
                      ('head=4/4/1', 'gates too'), ('head=4/4/4/4', 'W/A/G')):
    with pytest.raises(UserError, match=words):
      run_steps(small.replace(quantize_layers=text), 1)


@pytest.mark.parametrize('name', ('lsq_plus', 'pact'))
def test_the_range_of_data_is_not_trained_and_costs_no_gradient(name):
  """Of what depends on a weight it is; for data the step has one product, not two more."""
  reader, normal = registry.INPUT_QUANTIZERS.get(name)(), np.random.default_rng(0).normal
  data, weight = jnp.float32(normal(size=(4, 6))), jnp.float32(normal(size=(6, 5)))

  def loss(weight, ends, x):
    low, high = inputs.trained_for(x, *ends)
    return jnp.sum(jnp.sin(reader.apply(x, low, high, jnp.float32(3), x.size) @ weight))

  ends = jnp.float32(-1), jnp.float32(1)
  to_weight, to_ends = jax.grad(loss, (0, 1))(weight, ends, data)
  assert np.abs(to_weight).max() > 0 and to_ends == (0, 0)
  on_data = jax.jit(jax.grad(loss, (0, 1))).lower(weight, ends, data).compile().as_text()
  assert on_data.count(' dot(') == 2  # forward, and the weight's gradient
  # Where x is trained, the gradient is what it is without that.
  found = jax.grad(lambda ends, x: loss(weight, ends, x), (0, 1))(ends, data)[0]
  plain = jax.grad(lambda ends: jnp.sum(jnp.sin(
      reader.apply(data, *ends, jnp.float32(3), data.size) @ weight)))(ends)
  assert all(np.abs(end) > 0 for end in plain)
  np.testing.assert_allclose(found, plain, rtol=1e-6)


def test_quantizers_with_bits_of_their_own_say_so(small):
  for options, words in ((dict(quantize_weights='ternary', quantize_weight_bits=4), 'takes 2 bits'),
                         (dict(quantize_weights='binary', quantize_weight_bits=2), 'takes 1 bits'),
                         (dict(quantize_weight_bits=1), 'takes 2 or more bits'),
                         (dict(quantize_gate_bits=8), 'no recurrent layer')):
    with pytest.raises(UserError, match=words):
      run_steps(small.replace(**options), 1)


# Fixed levels, a trained codebook and trained steps; every one in the long form.
@pytest.mark.parametrize('name', registry.WEIGHT_QUANTIZERS.names() if LONG else
                         ('apot', 'cluster', 'lsq', 'ttq'))
def test_what_is_pruned_stays_zero_under_every_quantizer(small, name):
  bits = registry.WEIGHT_QUANTIZERS.get(name)().bits or 3
  config = small.replace(quantize_weights=name, quantize_weight_bits=bits, prune_sparsity=0.7,
                         prune_begin=0.0, prune_end=0.05, quantize_activation_bits=8)
  state, _, measured = run_steps(config, 8)
  assert np.isfinite(measured['loss'])
  network = assemble.build(config, assemble.load_data(config)).network
  counted = trees.named(network.compression.counted(state.evaluated, state.hparams)['params'])
  for kernel, mask in part(state.held['prune'], 'masks').items():
    values = np.asarray(counted[kernel])
    assert not values[~np.asarray(mask)].any() and values.any()


def test_values_that_are_not_there_do_not_trouble_an_optimizer_that_looks_at_norms(small):
  config = small.replace(quantize_weights='cluster', quantize_weight_bits=2, optimizer='lamb')
  state, _, measured = run_steps(config, 3)
  assert np.isfinite(measured['loss'])
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.learned)))


@pytest.mark.parametrize('name', ('cluster', 'lsq', 'ttq'))
def test_what_was_learned_of_a_frozen_kernel_stays(small, name):
  config = small.replace(quantize_weights=name, quantize_weight_bits=2, freeze='dense1')
  network = assemble.build(config, assemble.load_data(config)).network
  counted = [trees.named(network.compression.counted(state.evaluated, state.hparams)['params'])
             for state in (first_state(config), run_steps(config, 3)[0])]
  same = {kernel: np.array_equal(*(of[kernel] for of in counted))
          for kernel in ('dense1/kernel', 'dense2/kernel')}
  assert same == {'dense1/kernel': True, 'dense2/kernel': False}


def first_state(config):
  return assemble.build(config, assemble.load_data(config)).state


def test_noise_reaches_weights_that_round_to_zero(small):
  """It comes before rounding, so a weight in the zero bin still has a gradient."""
  config = small.replace(quantize_weight_bits=2, weight_noise=0.01, optimizer='sgd',
                         schedule='constant', learning_rate=0.1)
  before, (after, _, _) = first_state(config), run_steps(config, 1)
  kernel, new = (np.asarray(s.params['dense2']['kernel']) for s in (before, after))
  in_zero_bin = rounded('max', jnp.asarray(kernel), 2) == 0
  assert in_zero_bin.mean() > 0.2 and (new != kernel)[in_zero_bin].mean() > 0.5


def test_penalties_see_kernels_before_rounding(small):
  """L1 pulls weights of the zero bin too, by its strength times the rate."""
  plain, penalised = (small.replace(quantize_weight_bits=2, optimizer='sgd', schedule='constant',
                                    learning_rate=0.1, l1=l1) for l1 in (0.0, 1e-2))
  (one, _, _), (two, _, _) = run_steps(plain, 1), run_steps(penalised, 1)
  start = first_state(plain)
  kernel = np.asarray(start.params['dense2']['kernel'])
  pulled = np.asarray(one.params['dense2']['kernel'] - two.params['dense2']['kernel'])
  np.testing.assert_allclose(pulled, 1e-3 * np.sign(kernel), atol=1e-6)


def test_a_tied_table_has_a_scale_for_each_of_its_outputs():
  from lepton_jax.compress.quantize import method
  assert method.axes('embed/embedding', 2, 'channel', {'embed'}) == (1,)
  assert method.axes('embed/embedding', 2, 'channel', set()) == (0,)
  assert method.axes('conv/kernel', 4, 'channel', set()) == (0, 1, 2)
  assert method.axes('conv/kernel', 4, 'tensor', set()) == (0, 1, 2, 3)


def test_statistics_are_of_all_steps_of_a_scan():
  layer, x = recurrent.Recurrent('gru', 4), jax.random.normal(jax.random.key(0), (2, 6, 3))
  variables = layer.init(jax.random.key(1), x)
  states = np.asarray(layer.apply(variables, x)[0])[:, :-1]  # the last is not read again
  with sites.watching({'recurrent', 'input'}):
    _, found = layer.apply(variables, x, mutable=('intermediates',))
  found = sites.statistics(found['intermediates'], {'recurrent', 'input'})
  np.testing.assert_allclose([found['recurrent'][end] for end in ('low', 'high')],
                             [min(states.min(), 0), max(states.max(), 0)], rtol=1e-5)
  assert found['recurrent']['values'].size == 2 * 6 * 4
  assert found['input']['high'] == x.max()


# sensitivity

def test_bits_are_spent_where_they_save_most_and_never_beyond_the_budget():
  costs = dict(a={2: 10.0, 4: 1.0, 8: 0.9}, b={2: 2.0, 4: 1.5, 8: 0.0}, c={2: 0.1, 4: 0.0, 8: 0.0})
  sizes = dict(a=100, b=100, c=100)
  assert sensitivity.allocate(costs, sizes, 74) is None  # 600 bits are 75 bytes
  assert sensitivity.allocate(costs, sizes, 75) == dict(a=2, b=2, c=2)
  assert sensitivity.allocate(costs, sizes, 100) == dict(a=4, b=2, c=2)
  assert sensitivity.allocate(costs, sizes, 175) == dict(a=4, b=8, c=2)
  assert sensitivity.allocate(costs, sizes, 10_000) == dict(a=8, b=8, c=4)
  costs['a'] = {bits: float('nan') for bits in costs['a']}
  assert sensitivity.allocate(costs, sizes, 100) == dict(a=2, b=4, c=2)
  assert sensitivity.as_flag(dict(a=4, b=8)) == '^a$=4;^b$=8'


def test_the_fewest_bits_fit_among_many_kernels_and_a_large_one():
  rng = np.random.default_rng(0)
  sizes = {i: int(rng.integers(100, 4000)) for i in range(60)} | {60: 5_000_000}
  costs = {name: {bits: rng.random() * 2.0 ** -bits for bits in (2, 3, 4, 8)} for name in sizes}
  least = 2 * sum(sizes.values()) / 8
  assert sensitivity.allocate(costs, sizes, least - 1) is None
  for share in (1.0, 1.00001, 1.0001):
    found = sensitivity.allocate(costs, sizes, share * least, most=50)
    used = sum(sizes[name] * bits for name, bits in found.items()) / 8
    assert least <= used <= share * least and found[60] == 2


@pytest.mark.parametrize('kernels', [1, 3, 5])
@pytest.mark.parametrize('share', [2.1, 3.7, 6.0])
def test_no_other_bits_cost_less_within_the_budget(kernels, share):
  rng, names, widths = np.random.default_rng(kernels), 'abcde'[:kernels], (2, 3, 4, 8)
  sizes = {name: int(rng.integers(10, 1000)) for name in names}
  costs = {name: {bits: rng.random() * 2.0 ** -bits for bits in widths} for name in names}
  budget = share * sum(sizes.values()) / 8

  def cost(chosen):
    return sum(costs[name][bits] for name, bits in chosen.items())

  every = [dict(zip(names, bits)) for bits in itertools.product(widths, repeat=kernels)]
  least = min(cost(chosen) for chosen in every
              if sum(sizes[name] * bits for name, bits in chosen.items()) <= 8 * budget)
  assert cost(sensitivity.allocate(costs, sizes, budget)) == pytest.approx(least)


def test_one_kernel_is_rounded_at_a_time():
  asked = []
  found = sensitivity.one_at_a_time(['a', 'b'], [2, 8], lambda bits: asked.append(bits) or bits)
  whole = sensitivity.WHOLE
  assert asked == [[2, whole], [8, whole], [whole, 2], [whole, 8]]
  assert found['b'][8] == [whole, 8]
