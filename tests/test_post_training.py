"""Quantisation after training: what it reads, what it leaves alone, and that it helps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import assemble, folder, layers, other_runs, post_training, run, trees
from lepton_jax.compress.quantize import weights
from lepton_jax.errors import UserError
from tests import LONG
from tests.test_train import assert_same


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  from lepton_jax.config import Config
  config = Config().replace(model='lenet5', norm='batch', image_size=16, width=0.5, epochs=4,
                            dataset='digits', batch_size=32, tensorboard=False, pictures=False,
                            runs_dir=str(tmp_path_factory.mktemp('float')), learning_rate=3e-3)
  return config, run.train(config, quiet=True), f'{config.run.runs_dir}/{config.name()}'


AFTER = dict(quantize_after=True, quantize_weights='lsq', quantize_inputs='mse_range',
             quantize_calibration=4, quantize_rounding_steps=100)


def quantised(trained, tmp_path, **options):
  config, _, place = trained
  config = config.replace(init_from=place, runs_dir=str(tmp_path), **AFTER | options)
  return config, run.train(config, quiet=True)


def test_eight_bits_cost_nothing_and_fewer_cost_more(trained, tmp_path):
  _, exact, _ = trained
  accuracy = {}
  for bits in (8, 2):
    config, result = quantised(trained, tmp_path, quantize_weight_bits=bits,
                               quantize_activation_bits=8)
    accuracy[bits] = result['test_loss']
    assert result['steps'] == 0 and result['quantized_kernels'] == 4
    again = folder.load(f'{tmp_path}/{config.name()}')
    counted = trees.named(again.network.compression.counted(again.weights, again.hparams)['params'])
    for name, kernel in counted.items():
      if trees.is_kernel(name):
        channels = np.asarray(kernel).reshape(-1, kernel.shape[-1]).T
        assert max(len(np.unique(channel)) for channel in channels) <= 2 ** bits - 1
        # What is stored is what counts.
        np.testing.assert_allclose(trees.named(again.weights['params'])[name], kernel, atol=1e-6)
  assert accuracy[8] == pytest.approx(exact['test_loss'], abs=0.03)
  assert accuracy[8] < accuracy[2]


@pytest.mark.parametrize('model, options, changed, kept', [
    ('lenet5', dict(activation='relu'), {'conv1', 'conv2', 'dense1', 'head'}, set()),
    # Between its convolutions is pooling alone; a tanh is not linear.
    ('lenet5', dict(activation='tanh'), {'conv1', 'conv2', 'dense1'}, {'head'}),
    # What comes out of a norm is as it was, however large what goes in.
    ('lenet5', dict(norm='batch'), {'norm1', 'conv2', 'norm2', 'dense1'}, {'conv1'}),
    *[('resnet8', {}, {'stage1_block1/norm1', 'stage1_block1/conv2'}, set())] * LONG])
def test_channels_are_made_alike_and_answers_stay(small, model, options, changed, kept):
  config = small.replace(model=model, image_size=16, width=0.25, **options)
  data = assemble.load_data(config)
  assembly = assemble.build(config, data)
  network, state = assembly.network, assembly.state
  uneven = lambda name, leaf: leaf * (1 + jnp.arange(leaf.shape[-1]) % 5).astype(leaf.dtype)
  state = state.replace(params=trees.map_named(uneven, state.params))
  owners = frozenset(name.rpartition('/')[0] for name in trees.kernels(state.params))
  look = post_training.inputs_of(network, owners)
  batches = [assembly.batches.at(0)]
  new = post_training.equalized(network, data, state, batches, look)

  def answers(state):
    weights = dict(state.trained, held=state.held, model_state=state.model_state)
    return np.asarray(network.predict(weights, batches[0]['inputs'], state.hparams))

  np.testing.assert_allclose(answers(new), answers(state),
                             atol=2e-4 * np.abs(answers(state)).max())
  old, params = trees.named(state.params), trees.named(new.params)
  moved = {name.rpartition('/')[0] for name in old if not np.array_equal(old[name], params[name])}
  assert moved >= changed and not moved & kept
  for layer in {'conv2', 'stage1_block1/conv2'} & moved if 'conv1' not in moved else ():
    seen = np.asarray(look(dict(new.trained, held=new.held), new, batches[0])[layer])
    inputs = np.abs(seen).max((0, 1, 2))
    weights_of = np.abs(params[f'{layer}/kernel']).max((0, 1, 3))
    ratio = (inputs / weights_of)[inputs > 0]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_rounding_by_answers_beats_the_nearest_level(trained, tmp_path):
  loss = {how: quantised(trained, tmp_path, quantize_rounding=how, quantize_weight_bits=2)[1]
          for how in ('nearest', 'adaround')}
  assert loss['adaround']['validation_loss'] < loss['nearest']['validation_loss']


def test_adaround_keeps_a_layers_answers_where_the_nearest_level_does_not():
  """Inputs that move together: errors of the nearest levels add up, others' cancel."""
  rng = np.random.default_rng(0)
  read = (rng.normal(size=(256, 1)) + 0.05 * rng.normal(size=(256, 16))).astype(np.float32)
  kernel = jnp.linspace(0.1, 0.45, 16)[:, None] * jnp.ones(3)  # of which the nearest level is 0
  own = dict(kernel=kernel, bias=jnp.zeros(3))
  module, step = layers.Dense(3), jnp.ones((1, 3))
  wanted = jax.jit(lambda x: module.apply({'params': own}, x))
  kernel = post_training.adaround(module, own, step, jnp.float32(3), read, read, wanted, 800)
  assert set(np.unique(kernel)) == {0.0, 1.0}
  error = lambda k: float(jnp.square(module.apply({'params': dict(own, kernel=k)}, read)
                                     - wanted(read)).mean())
  assert error(kernel) < 0.1 * error(jnp.round(own['kernel']))
  # A zero may be a weight that was pruned.
  own['kernel'] = own['kernel'].at[::2].set(0)
  kernel = post_training.adaround(module, own, step, jnp.float32(3), read, read, wanted, 800)
  assert not kernel[::2].any() and kernel[1::2].any()


def test_only_the_calibration_batches_are_read(trained):
  config, _, place = trained
  config = config.replace(init_from=place, quantize_weight_bits=8, **AFTER)
  data = assemble.load_data(config)
  assembly = assemble.build(config, data, **other_runs.read(config, data))
  read, at = [], assembly.batches.at
  assembly.batches.at = lambda step, rows=slice(None): read.append(step) or at(step, rows)
  state = post_training.quantize(assembly)
  assert set(read) == {0, 1, 2, 3}
  steps = trees.named(state.learned['quantize'])
  kernel = trees.named(assembly.state.params)['conv1/kernel']
  wanted = weights.mse_scale(kernel, 127.0, (0, 1, 2))
  found = np.exp(steps['kernels/conv1/kernel/log_step'])
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_running_averages_move_by_what_rounding_changes_alone(small):
  config = small.replace(model='cnn_mnist', norm='batch', batch_size=16)
  assembly = assemble.build(config, assemble.load_data(config))
  batches = [assembly.batches.at(i) for i in range(2)]
  network, state = assembly.network, assembly.state
  now = dict(state.trained, held=state.held)
  same = post_training.with_statistics(network, state, batches, network, now)
  assert_same(same.model_state, state.model_state)
  # Twice as large kernels: twice the mean, four times the variance of the first layer's answers.
  twice = dict(now, params=trees.map_named(
      lambda name, leaf: 2 * leaf if trees.is_kernel(name) else leaf, now['params']))
  moved = post_training.with_statistics(network, state, batches, network, twice)
  before, after = (trees.named(one.model_state['batch_stats']) for one in (state, moved))
  first = next(name for name in before if name.endswith('var'))
  np.testing.assert_allclose(after[first], before[first] / 4, rtol=1e-2)


def test_ranges_are_those_of_the_network_that_is_rounded(trained, tmp_path):
  """Whenever its own training began to round, and whatever was calibrated of it before."""
  _, _, place = trained
  found = {}
  for name, options in dict(plain={}, late=dict(quantize_begin=0.5)).items():
    config, _ = quantised(trained, tmp_path, quantize_weight_bits=8, quantize_activation_bits=8,
                          quantize_inputs='lsq_plus', **options)
    at = f'{tmp_path}/{config.name()}'
    found[name] = {key: float(leaf) for key, leaf in trees.named(
        folder.read_weights(at)[0]['held']['quantize']).items()}
  assert found['plain'] == found['late']
  assert all(found['plain'][key] > 0 for key in found['plain'] if key.endswith('high'))
  again = config.replace(init_from=at, quantize_equalize=True)
  assert not other_runs.read(again, assemble.load_data(again))['keeps']
  child = again.replace(quantize_after=False, quantize_equalize=False)
  assert other_runs.read(child, assemble.load_data(child))['keeps']


def test_options_that_do_not_fit_say_so(trained):
  config, _, place = trained
  whole = config.replace(init_from=place, quantize_weight_bits=8, **AFTER)
  data = assemble.load_data(config)
  for options, words in ((dict(init_from=''), 'needs --init_from'),
                         (dict(quantize_weights='max'), 'takes --quantize_weights=lsq'),
                         (dict(ema_decay=0.9), 'no --ema_decay'),
                         (dict(quantize_after=False, quantize_equalize=True), 'goes with'),
                         (dict(prune_sparsity=0.5), 'does not prune'),
                         (dict(factorize_rank=0.5), 'does not factorise')):
    with pytest.raises(UserError, match=words):
      assemble.build(whole.replace(**options), data)


@pytest.mark.skipif(not LONG, reason='long form')
def test_texts_in_buckets_are_read_at_the_length_of_the_longest(small, tmp_path):
  """Batches of several lengths; eight bits change no answer of a word-level network."""
  rng = np.random.default_rng(0)
  good, bad = ['fine', 'good', 'great', 'nice'], ['bad', 'poor', 'sad', 'dull']
  lines = ['text,label']
  for i in range(300):
    words = rng.choice(good if i % 2 else bad, 1 + i % 20)
    lines.append(f'{" ".join(words)},{"up" if i % 2 else "down"}')
  (tmp_path / 'texts.csv').write_text('\n'.join(lines) + '\n')
  config = small.replace(model='lstm_classifier', hidden=16, embedding=8, epochs=4, batch_size=16,
                         dataset=f'csv:{tmp_path}/texts.csv', text_column='text', target='label',
                         learning_rate=1e-2, runs_dir=str(tmp_path / 'runs'))
  exact = run.train(config.check(), quiet=True)
  place = f'{config.run.runs_dir}/{config.name()}'
  assembly = assemble.build(config, assemble.load_data(config))
  widths = {assembly.batches.at(i)['inputs'].shape[1] for i in range(4)}
  assert len(widths) > 1
  rounded = config.replace(init_from=place, quantize_weight_bits=8, quantize_activation_bits=8,
                           **AFTER).check()
  found = run.train(rounded, quiet=True)
  assert found['quantized_kernels'] == 4 and found['steps'] == 0
  assert exact['test_accuracy'] > 0.95
  assert abs(found['test_loss'] - exact['test_loss']) < 0.02
