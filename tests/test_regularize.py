"""Every regulariser: its law, and the contract that all of them keep."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax import assemble, layers, trees
from lepton_jax.config import Config, Regularize
from lepton_jax.errors import UserError
from lepton_jax.registry import PENALTIES
from lepton_jax.regularize import constraints, feature_maps, noise, outputs
from lepton_jax.train import step as step_lib
from tests import LONG

# Each with what it needs beside it.
CASES = dict(
    l1=dict(l1=1e-2), l2=dict(l2=1e-2), group_lasso=dict(group_lasso=1e-2),
    orthogonality=dict(orthogonality=1e-2), max_norm=dict(max_norm=0.5),
    spatial_dropout=dict(spatial_dropout=0.2, model='cnn_mnist'),
    drop_connect=dict(drop_connect=0.2), weight_noise=dict(weight_noise=0.1),
    input_noise=dict(input_noise=0.2), gradient_noise=dict(gradient_noise=0.1),
    label_smoothing=dict(label_smoothing=0.1), confidence_penalty=dict(confidence_penalty=0.1),
    r_drop=dict(r_drop=1.0, dropout=0.3), sam=dict(sam=0.05),
    weight_decay=dict(weight_decay=0.1), clip_norm=dict(clip_norm=0.1), dropout=dict(dropout=0.2),
    stochastic_depth=dict(stochastic_depth=0.5, model='resnet8'),
    recurrent_dropout=dict(recurrent_dropout=0.3, model='lstm_classifier', hidden=8),
    augment_mixup=dict(augment_mixup=1.0), augment_cutmix=dict(augment_cutmix=1.0),
    augment_cutout=dict(augment_cutout=3))


@pytest.fixture
def base(small):
  return small.replace(width=0.1)


def built(config):
  if config.architecture.model == 'lstm_classifier':
    config = config.replace(width=None)
  return assemble.build(config, assemble.load_data(config))


def run(assembly, state, steps, step=None):
  step = step or jax.jit(assembly.train_step())
  for _ in range(steps):
    state, measured = step(state, assembly.batches.at(int(state.step)))
  return state, measured


def assert_same(one, two):
  for (name, a), b in zip(trees.named(one).items(), jax.tree.leaves(two), strict=True):
    np.testing.assert_array_equal(a, b, err_msg=name)


def test_every_regulariser_has_a_case():
  assert {field.name for field in dataclasses.fields(Regularize)} <= CASES.keys()


@functools.cache
def three_steps(config):
  """The parameters after three steps."""
  assembly = built(config)
  return run(assembly, assembly.state, 3)[0].params


@pytest.mark.parametrize('name', CASES)
def test_on_changes_training_zero_is_absent_and_resuming_changes_nothing(base, name):
  needed = {k: v for k, v in CASES[name].items() if k != name}
  plain = base.replace(**needed)
  zero = plain.replace(**{name: type(CASES[name][name])(0)})
  if zero != plain:  # given as 0 where the default is unset
    assert_same(three_steps(zero), three_steps(plain))
  on = built(base.replace(**CASES[name]))
  step = jax.jit(on.train_step())
  half, _ = run(on, on.state, 2, step)
  kept = jax.device_get(half)
  whole, _ = run(on, half, 1, step)
  again = on.another(on.config)
  resumed, _ = run(again, jax.tree.map(jnp.asarray, kept), 1, step)
  assert_same(whole, resumed)
  assert trees.digest(whole.params) != trees.digest(three_steps(plain))


def everything():
  options = {}
  for name, case in CASES.items():
    if name != 'recurrent_dropout':
      options.update({k: v for k, v in case.items() if k not in ('model', 'hidden')})
  return options


def all_finite(tree):
  return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


OF_AN_MLP = sorted(everything().keys() - {'stochastic_depth', 'spatial_dropout'})


@pytest.mark.skipif(not LONG, reason='LEPTON_LONG_TESTS=1 asks for it')
@settings(max_examples=3)
@given(names=st.sets(st.sampled_from(OF_AN_MLP), min_size=2))
def test_any_of_them_together_are_finite(names):
  if 'r_drop' in names:
    names = names | {'dropout'}
  options = {name: value for name, value in everything().items() if name in names}
  config = Config().replace(model='mlp', dataset='digits', batch_size=32, width=0.1, ema_decay=0.9,
                            swa_start=0.01, **options)
  assembly = built(config)
  state, measured = run(assembly, assembly.state, 3)
  assert np.isfinite(measured['loss']) and all_finite((state.params, state.ema))


@pytest.mark.skipif(not LONG, reason='long form')
def test_all_of_one_pass_together_are_finite_and_give_one_program(base):
  on = {name: value for name, value in everything().items() if name not in ('sam', 'r_drop')}
  config = base.replace(model='resnet8', ema_decay=0.9, swa_start=0.01, **on)
  assembly = built(config)
  step = jax.jit(assembly.train_step())
  state, measured = run(assembly, assembly.state, 2, step)
  assert np.isfinite(measured['loss']) and all_finite(state.params)
  weaker = {name: value / 2 for name, value in on.items() if isinstance(value, float)}
  other = assembly.another(config.replace(**weaker, seed=5))
  step(other.state, other.batches.at(0))
  assert step._cache_size() == 1


# laws

def kernels(*shapes):
  return {f'k{i}': jnp.asarray(np.random.default_rng(i).normal(size=shape), jnp.float32)
          for i, shape in enumerate(shapes)}


def test_l2_gradient_is_twice_strength_times_weight_on_kernels_and_zero_on_biases(base):
  weights = kernels((2, 3))
  gradient = jax.grad(lambda k: 3 * PENALTIES.get('l2')(k))(weights)
  np.testing.assert_allclose(gradient['k0'], 6 * weights['k0'], rtol=1e-6)
  np.testing.assert_allclose(PENALTIES.get('l1')(weights), np.abs(weights['k0']).sum(), rtol=1e-6)
  base = base.replace(optimizer='sgd', learning_rate=1.0, schedule='constant')
  plain, decayed = (built(base.replace(l2=l2)) for l2 in (0.0, 1e-2))
  start = plain.state.params['head']
  (one, _), (two, _) = (run(a, a.state, 1) for a in (plain, decayed))
  np.testing.assert_allclose(one.params['head']['kernel'] - two.params['head']['kernel'],
                             2 * 1e-2 * np.asarray(start['kernel']), atol=1e-6)
  np.testing.assert_allclose(one.params['head']['bias'], two.params['head']['bias'], atol=1e-7)


def test_group_lasso_counts_filters_and_is_smooth_at_a_group_of_zeros():
  weights = dict(conv=kernels((3, 3, 2, 4))['k0'].at[..., 1].set(0))
  norms = np.sqrt(np.square(weights['conv']).sum((0, 1, 2)))
  value, gradient = jax.value_and_grad(PENALTIES.get('group_lasso'))(weights)
  np.testing.assert_allclose(value, np.sqrt(18) * norms.sum(), rtol=1e-5)
  np.testing.assert_array_equal(gradient['conv'][..., 1], 0)
  np.testing.assert_allclose(gradient['conv'][..., 0],
                             np.sqrt(18) * weights['conv'][..., 0] / norms[0], rtol=1e-5)


@pytest.mark.parametrize('shape', [(5, 3), (3, 5), (3, 3, 1, 4)])
def test_orthogonality_is_zero_on_an_orthogonal_kernel_alone(shape):
  flat = np.random.default_rng(0).normal(size=(int(np.prod(shape[:-1])), shape[-1]))
  tall = flat.shape[0] >= flat.shape[1]
  orthogonal = np.linalg.qr(flat if tall else flat.T)[0]
  kernel = jnp.asarray((orthogonal if tall else orthogonal.T).reshape(shape), jnp.float32)
  penalty = PENALTIES.get('orthogonality')
  assert penalty(dict(k=kernel)) == pytest.approx(0, abs=1e-10)
  assert penalty(dict(k=2 * kernel)) == pytest.approx(9 * min(flat.shape), rel=1e-4)


def test_max_norm_shortens_long_columns_alone():
  kernel = jnp.array([[3.0, 0.3], [4.0, 0.4]])
  shortened = constraints.max_norm(kernel, jnp.float32(1))
  np.testing.assert_allclose(shortened, [[0.6, 0.3], [0.8, 0.4]], rtol=1e-6)


def test_max_norm_holds_after_every_step(base):
  assembly = built(base.replace(max_norm=0.3, learning_rate=0.1))
  state, _ = run(assembly, assembly.state, 2)
  for name, leaf in trees.named(state.params).items():
    if trees.is_kernel(name):
      columns = np.asarray(leaf).reshape(-1, leaf.shape[-1])
      assert np.linalg.norm(columns, axis=0).max() <= 0.3 * (1 + 1e-5)


TRAINING = layers.Training(example=jnp.arange(4000), dropout=jnp.float32(0.3),
                           stochastic_depth=jnp.float32(0.4))


@pytest.mark.parametrize('layer, shape, rate', [
    (layers.Dropout(), (4000, 8), 0.3), (layers.StochasticDepth(0.5), (4000, 2, 2, 3), 0.2)])
def test_dropout_keeps_the_mean(layer, shape, rate):
  out = np.asarray(layer.apply({}, jnp.ones(shape), TRAINING, rngs=dict(dropout=jax.random.key(0))))
  assert out.mean() == pytest.approx(1, abs=0.03)
  assert (out == 0).mean() == pytest.approx(rate, abs=0.03)
  np.testing.assert_allclose(out[out > 0], 1 / (1 - rate), rtol=1e-6)
  np.testing.assert_array_equal(layer.apply({}, jnp.ones(shape), None), 1)


def test_stochastic_depth_leaves_out_whole_branches():
  layer, x = layers.StochasticDepth(1.0), jnp.ones((4000, 3, 2))
  out = np.asarray(layer.apply({}, x, TRAINING, rngs=dict(dropout=jax.random.key(0))))
  assert set(np.unique((out == 0).mean((1, 2)))) == {0, 1}


def test_spatial_dropout_zeroes_whole_maps_and_keeps_the_mean():
  layer, x = layers.Conv(8, (1, 1), use_bias=False), jnp.ones((4000, 3, 3, 1))
  variables = dict(params=dict(kernel=jnp.ones((1, 1, 1, 8))))
  with feature_maps.spatial_dropout(TRAINING, jnp.float32(0.25)):
    out = np.asarray(layer.apply(variables, x, rngs=dict(dropout=jax.random.key(0))))
  assert set(np.unique((out == 0).mean((1, 2)))) == {0, 1}
  assert (out == 0).mean() == pytest.approx(0.25, abs=0.02)
  assert out.mean() == pytest.approx(1, abs=0.02)


def test_drop_connect_keeps_the_mean_and_weight_noise_the_zeros():
  weights = dict(a=jnp.ones((100, 100)), b=jnp.zeros((3, 3)))
  dropped = np.asarray(noise.drop_connect(weights, jnp.float32(0.2), jax.random.key(0))['a'])
  assert (dropped == 0).mean() == pytest.approx(0.2, abs=0.02)
  assert dropped.mean() == pytest.approx(1, abs=0.02)
  noisy = noise.weight_noise(weights, jnp.float32(0.1), jax.random.key(0))
  assert float(jnp.std(noisy['a'])) == pytest.approx(0.1, rel=0.05) and not noisy['b'].any()


def test_noise_has_its_deviation_and_gradient_noise_fades():
  half, key = jnp.float32(0.5), jax.random.key(0)
  x = noise.input_noise(jnp.zeros((50, 400)), jnp.arange(50), half, key)
  assert float(x.std()) == pytest.approx(0.5, rel=0.05)
  alone = noise.input_noise(jnp.zeros((1, 400)), jnp.array([7]), half, key)
  # The noise of an example does not depend on the others on its device.
  np.testing.assert_array_equal(alone[0], x[7])

  def deviation(step):
    noisy = noise.gradient_noise(dict(a=jnp.zeros(40_000)), jnp.float32(0.3), jnp.int32(step),
                                 jax.random.key(1))
    return float(noisy['a'].std())

  assert deviation(0) == pytest.approx(0.3, rel=0.03)
  assert deviation(99) == pytest.approx(0.3 * 100 ** -0.275, rel=0.03)


def test_confidence_penalty_and_r_drop_known_answers():
  label = jnp.zeros(1, jnp.int32)
  of_four = outputs.confidence_penalty(jnp.zeros((2, 4)), jnp.zeros(2, jnp.int32))
  np.testing.assert_allclose(of_four, -np.log([4, 4]), rtol=1e-6)
  binary = outputs.confidence_penalty(jnp.zeros((1, 1)), label)
  np.testing.assert_allclose(binary, [-np.log(2)], rtol=1e-6)
  one, two = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.75]]))
  np.testing.assert_allclose(outputs.r_drop(one, one, label), [0], atol=1e-7)
  kl = lambda p, q: sum(a * np.log(a / b) for a, b in zip(p, q))
  expected = (kl([0.5, 0.5], [0.25, 0.75]) + kl([0.25, 0.75], [0.5, 0.5])) / 2
  np.testing.assert_allclose(outputs.r_drop(one, two, label), [expected], rtol=1e-5)
  steps, real = jnp.stack([one, two, two], 1), jnp.array([[0, -1, -1]])  # one step, and padding
  np.testing.assert_allclose(outputs.confidence_penalty(steps, real), [-np.log(2)], rtol=1e-6)
  np.testing.assert_allclose(outputs.r_drop(steps, steps[:, ::-1], real), [expected], rtol=1e-5)


def test_sam_looks_uphill_at_the_radius():
  trained, gradients = dict(a=jnp.array([1.0, 2.0])), dict(a=jnp.array([3.0, 4.0]))
  radius = jnp.float32(0.5)
  uphill = constraints.sharpest(trained, gradients, radius)
  np.testing.assert_allclose(uphill['a'], [1.3, 2.4], rtol=1e-6)
  assert all_finite(constraints.sharpest(trained, dict(a=jnp.zeros(2)), radius))


def test_swa_is_the_mean_of_the_weights_since_its_start():
  average, seen = dict(w=jnp.float32(0)), []
  for step in range(10):
    weight = float(np.sin(step))
    kept = step_lib.kept_share(jnp.int32(step), dict(swa_start=jnp.float32(0.6)), 10)
    average = step_lib.blend(average, dict(w=jnp.float32(weight)), kept)
    seen = seen + [weight] if step > 6 else [weight]
    assert float(average['w']) == pytest.approx(np.mean(seen), rel=1e-5)


def test_words_get_no_noise(base):
  text = dataclasses.replace(assemble.load_data(base), vocabulary=('a', 'b'))
  with pytest.raises(UserError, match='has words'):
    assemble.make_batches(base.replace(input_noise=0.1), text)
  with pytest.raises(UserError, match='--stochastic_depth does not apply to model mlp'):
    built(base.replace(stochastic_depth=0.1))


@pytest.mark.parametrize('options, words', [
    (dict(spatial_dropout=0.1), 'no convolution'), (dict(r_drop=1.0), 'add one of'),
    (dict(label_smoothing=0.1, model='linear', task='regression'), 'made for classes'),
    (dict(confidence_penalty=0.1, model='linear', task='regression'), 'made for classes')])
def test_a_regulariser_that_would_do_nothing_is_refused(base, tmp_path, options, words):
  (tmp_path / 't.csv').write_text('size,price\n' + '\n'.join(f'{x},{2 * x}' for x in range(60)))
  if 'task' in options:
    options = dict(options, dataset=f'csv:{tmp_path}/t.csv', target='price', batch_size=8,
                   width=None)
  with pytest.raises(UserError, match=words):
    built(base.replace(**options))
