"""The train step and what it is made of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import assemble, losses, metrics, trees
from lepton_jax.config import Config
from lepton_jax.errors import UserError
from lepton_jax.registry import OPTIMIZERS, SCHEDULES
from lepton_jax.train import optim, schedules


def run_steps(config, steps=4, axis=None):
  """The state after a few steps, the compiled step and the last measurements."""
  data = assemble.load_data(config)
  assembly = assemble.build(config, data)
  step = jax.jit(assembly.train_step(axis))
  hooks = assembly.make_hooks(lambda b: b, slice(None), jax.jit)
  state = assembly.state
  for i in range(steps):
    for hook in hooks:
      state = hook(state, i)
    state, measured = step(state, assembly.batches.at(i))
  return state, step, measured


def assert_same(one, two):
  for (name, a), b in zip(trees.named(one).items(), jax.tree.leaves(two), strict=True):
    np.testing.assert_array_equal(a, b, err_msg=name)


# losses and metrics

def test_sigmoid_known_answers():
  np.testing.assert_allclose(jax.nn.sigmoid(jnp.array([1.6, 0.6])), [0.832, 0.646], atol=5e-4)
  np.testing.assert_allclose(metrics.probabilities(np.array([[1.6]])), [[0.168, 0.832]], atol=5e-4)


def test_losses_known_answers():
  uniform = jnp.zeros((2, 4))
  classes = jnp.array([0, 3])
  for smoothing in (None, jnp.float32(0.3)):
    found = losses.cross_entropy(uniform, classes, smoothing)
    np.testing.assert_allclose(found, np.log([4, 4]), rtol=1e-6)
  logits, label = jnp.array([[2.0], [-1.0]]), jnp.array([1, 1])
  two = jnp.concatenate([jnp.zeros_like(logits), logits], 1)
  for smoothing in (None, jnp.float32(0.2)):
    found, expected = (loss(z, label, smoothing)
                       for loss, z in ((losses.binary, logits), (losses.cross_entropy, two)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
  np.testing.assert_allclose(losses.mse(jnp.array([[3.0]]), jnp.array([1.0])), [4.0])


def test_calibration_error_known_answers():
  sure = np.array([[1.0, 0.0]] * 4)
  assert metrics.calibration_error(sure, np.array([0, 0, 0, 0])) == 0
  assert metrics.calibration_error(sure, np.array([0, 0, 1, 1])) == 0.5
  mixed = np.array([[0.75, 0.25]] * 4)
  assert metrics.calibration_error(mixed, np.array([0, 0, 0, 1])) == 0


def test_classification_report_known_answers():
  logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]))
  report = metrics.classification_report(logits, np.array([0, 1, 1, 2]), ('a', 'b', 'c'))
  assert report['accuracy'] == 0.75 and report['confusion'] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
  assert report['per_class'][1] == dict(name='b', precision=1.0, recall=0.5, f1=2 / 3, support=2)
  assert metrics.top_k(metrics.probabilities(logits), [0, 1, 1, 2], 2) == 1.0


# schedules and optimizers

@pytest.mark.parametrize('name', SCHEDULES.names())
def test_schedules_stay_between_zero_and_the_peak_and_warm_up(name):
  options = Config().replace(schedule=name, warmup_epochs=1.0).optimization
  factor = schedules.make_schedule(options, 100, 10)
  values = np.array([factor(jnp.int32(s)) for s in range(100)])
  assert values.min() >= 0 and values.max() <= 1
  assert np.all(np.diff(values[:10]) > 0)
  cold = schedules.make_schedule(dataclasses.replace(options, warmup_epochs=0.0), 90, 10)
  expected = [cold(jnp.int32(s)) for s in range(90)]
  np.testing.assert_allclose(values[10:], expected, rtol=1e-5, atol=1e-6)


def test_schedules_known_points():
  def value(progress, name, **options):
    schedule = SCHEDULES.get(name)
    return float(schedule(jnp.float32(progress), Config().replace(**options).optimization))
  assert value(0.5, name='cosine') == pytest.approx(0.5)
  assert [value(p, name='step') for p in (0.4, 0.5, 0.8)] == pytest.approx([1, 0.1, 0.01])
  assert value(1.0, name='exponential', schedule_factor=0.25) == pytest.approx(0.25)
  one_cycle = [value(p, name='one_cycle') for p in (0.0, 0.3, 1.0)]
  assert one_cycle == pytest.approx([0.04, 1, 1e-4], rel=1e-3)
  with pytest.raises(UserError, match='0.5,0.75'):
    config = Config().replace(schedule='step', schedule_boundaries='0.9,0.1')
    schedules.make_schedule(config.optimization, 10, 10)


REFERENCES = dict(
    sgd=optax.sgd(0.1), momentum=optax.sgd(0.1, 0.9), nesterov=optax.sgd(0.1, 0.9, nesterov=True),
    adam=optax.adam(0.1), adamw=optax.adam(0.1), lamb=optax.lamb(0.1),
    rmsprop=optax.chain(optax.scale_by_rms(), optax.trace(0.9), optax.scale(-0.1)))


def constant_rate(name):
  """The Optimizer of a name at a constant schedule."""
  options = Config().replace(optimizer=name).optimization
  return optim.make_optimizer(options, lambda step: jnp.float32(1))


@pytest.mark.parametrize('name', OPTIMIZERS.names())
def test_optimizers_equal_optax(name):
  trained = dict(kernel=jnp.array([1.0, -2.0]), bias=jnp.array([0.5]))
  rate = {'learning_rate': jnp.float32(0.1)}
  mine = constant_rate(name)
  my_state, reference_state = mine.init(trained, rate), REFERENCES[name].init(trained)
  my_weights = reference_weights = trained
  for i in range(4):
    gradient = lambda w, i=i: jax.tree.map(lambda x: jnp.cos(x) + i, w)
    updates, my_state = mine.update(gradient(my_weights), my_state, my_weights, jnp.int32(i), rate)
    my_weights = jax.tree.map(jnp.add, my_weights, updates)
    with jax.numpy_dtype_promotion('standard'):
      updates, reference_state = REFERENCES[name].update(
          gradient(reference_weights), reference_state, reference_weights)
    reference_weights = jax.tree.map(jnp.add, reference_weights, updates)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)
  jax.tree.map(near, my_weights, reference_weights)


@pytest.mark.parametrize('name', ('sgd', 'momentum', 'adam', 'rmsprop'))
def test_weight_decay_is_decoupled_and_spares_biases(name):
  trained = dict(kernel=jnp.array([1.0]), scale=jnp.array([1.0]), bias=jnp.array([1.0]))
  rates = dict(learning_rate=jnp.float32(0.1), weight_decay=jnp.float32(0.5))
  rule, zeros = constant_rate(name), jax.tree.map(jnp.zeros_like, trained)
  updates, _ = rule.update(zeros, rule.init(trained, rates), trained, jnp.int32(0), rates)
  found = [updates[part][0] for part in ('kernel', 'bias', 'scale')]
  np.testing.assert_allclose(found, [-0.05, 0, 0], rtol=1e-6)


def test_clipping_bounds_the_gradient():
  trained = dict(kernel=jnp.zeros(2))
  rates = dict(learning_rate=jnp.float32(1), clip_norm=jnp.float32(1))
  rule = constant_rate('sgd')

  def move(g):
    state = rule.init(trained, rates)
    return rule.update(dict(kernel=jnp.array(g)), state, trained, jnp.int32(0), rates)[0]['kernel']
  np.testing.assert_allclose(move([3.0, 4.0]), [-0.6, -0.8], rtol=1e-6)
  np.testing.assert_allclose(move([0.3, 0.4]), [-0.3, -0.4], rtol=1e-6)


# the step

def test_one_compile_serves_every_strength(small):
  config = small.replace(l2=1e-4, dropout=0.1, weight_decay=0.1, label_smoothing=0.1,
                         prune_sparsity=0.5, quantize_weight_bits=8, quantize_activation_bits=8)
  state, step, _ = run_steps(config, 2)
  batch = assemble.build(config, assemble.load_data(config)).batches.at(0)
  changed = config.replace(l2=0.1, dropout=0.5, learning_rate=0.1, prune_sparsity=0.99,
                           quantize_weight_bits=2, quantize_activation_bits=3, prune_begin=0.0)
  other = assemble.build(changed, assemble.load_data(config))
  before = step._cache_size()
  step(state.replace(hparams=other.state.hparams), batch)
  assert step._cache_size() == before


def test_frozen_parameters_do_not_move(small):
  config = small.replace(freeze='dense1', weight_decay=0.1, optimizer='lamb')
  start = assemble.build(config, assemble.load_data(config)).state.params
  end, _, _ = run_steps(config)
  assert_same(start['dense1'], end.params['dense1'])
  assert trees.digest(start['head']) != trees.digest(end.params['head'])
  with pytest.raises(UserError, match='matches nothing.*head/kernel'):
    run_steps(small.replace(freeze='conv'))


def test_moving_average_lies_between_start_and_end(small):
  state, _, _ = run_steps(small.replace(ema_decay=0.9), 20)
  kernel, average = (np.asarray(t['params']['head']['kernel']) for t in (state.trained, state.ema))
  assert 0 < np.abs(kernel - average).max() < np.abs(kernel).max()


def test_batch_statistics_are_averaged_with_the_weights(small):
  config = small.replace(model='lenet5', norm='batch', image_size=20, width=0.2, ema_decay=0.5,
                         train_limit=300)
  states = [run_steps(config, count)[0] for count in (3, 4)]
  share = min(0.5, (1 + 3) / (10 + 3))  # of the average that a fourth step keeps
  for name, new in trees.named(states[1].model_state).items():
    before, after = (np.asarray(trees.named(s.ema['model_state'])[name]) for s in states)
    wanted = share * before + (1 - share) * np.asarray(new)
    np.testing.assert_allclose(after, wanted, rtol=1e-5, atol=1e-7)
    assert np.abs(after - new).max() > 0
  assert trees.digest(states[1].evaluated['model_state']) == trees.digest(
      states[1].ema['model_state'])


def test_bfloat16_computes_and_keeps_float32_weights(small):
  state, _, measured = run_steps(small.replace(dtype='bfloat16', model='resnet8'), 3)
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype('float32')}
  full, _, reference = run_steps(small.replace(model='resnet8'), 3)
  assert measured['loss'] == pytest.approx(float(reference['loss']), rel=0.1)
  assert measured['loss'] != reference['loss']


def test_state_holds_arrays_only(small):
  config = small.replace(prune_sparsity=0.5, quantize_activation_bits=4, ema_decay=0.9)
  state, _, _ = run_steps(config, 1)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize('options, words', [
    (dict(model='linear', width=2.0), 'linear; it takes: none'),
    (dict(model='mlp', norm='batch'), 'it takes: --width'),
    (dict(loss='mse'), 'does not fit'),
    (dict(loss='binary'), 'needs 2 classes'),
    (dict(model='cnn_binary', image_size=32), 'needs 2 classes'),
    (dict(warmup_epochs=2.0), 'whole run has 2 epochs'),
    (dict(dtype='float64'), 'JAX_ENABLE_X64'),
    (dict(batch_size=5000), 'only 1294'),
])
def test_options_that_do_not_fit_say_so(small, options, words):
  config = small.replace(**options)
  with pytest.raises(UserError, match=words):
    assemble.build(config, assemble.load_data(config))
