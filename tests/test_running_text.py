"""Running text, character by character."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import assemble, folder, other_runs, trees
from lepton_jax.config import Config
from lepton_jax.data import batches, dataset
from lepton_jax.errors import UserError
from lepton_jax.train import parallel


def test_stream_batches_continue_each_row_and_passes_count_each_character_once():
  stream = np.arange(103, dtype=np.int32)
  one = batches.StreamBatches(stream, 4, 5)
  assert one.steps_per_epoch == 5
  for s in range(4):
    now, then = one.at(s), one.at(s + 1)
    np.testing.assert_array_equal(then['inputs'][:, 0], now['inputs'][:, -1] + 1)
    np.testing.assert_array_equal(now['label'], now['inputs'] + 1)
  np.testing.assert_array_equal(one.at(5)['inputs'], one.at(0)['inputs'])
  labels = np.concatenate([b['label'][b['label'] >= 0]
                           for b in batches.stream_passes(stream, 4, 5)])
  assert sorted(labels) == list(range(1, 103))
  for batch in batches.stream_passes(stream, 4, 5):
    exists = batch['label'] >= 0
    np.testing.assert_array_equal(batch['label'][exists], batch['inputs'][exists] + 1)
  with pytest.raises(UserError, match='103'):
    batches.StreamBatches(stream, 60, 5)


def test_text_files_are_cut_in_order_and_named_when_bad(tmp_path):
  path = tmp_path / 'book.txt'
  path.write_text('a' * 70 + 'b' * 20 + 'z' * 10)
  data = dataset.load(Config().replace(dataset=f'text:{path}', test_fraction=0.1,
                                       validation_fraction=0.2).data)
  assert [data.size(s) for s in ('train', 'validation', 'test')] == [72, 18, 10]
  # The test part's character is unseen in training.
  assert data.classes[1:] == ('a', 'b') and set(data.splits['test'][0]) == {0}
  path.write_bytes(b'ok\nok\n\xff')
  with pytest.raises(UserError, match='book.txt, line 3: not UTF-8'):
    dataset.load(Config().replace(dataset=f'text:{path}').data)
  path.write_text(' \n')
  with pytest.raises(UserError, match='is empty'):
    dataset.load(Config().replace(dataset=f'text:{path}').data)


@pytest.fixture(scope='module')
def trained_lm(tmp_path_factory):
  from lepton_jax import run
  root = tmp_path_factory.mktemp('lm')
  (root / 'abc.txt').write_text('abcdefgh ' * 1200)
  config = Config().replace(model='lstm_lm', dataset=f'text:{root}/abc.txt', hidden=16, embedding=8,
                            batch_size=8, sequence_length=20, epochs=4, learning_rate=0.02,
                            runs_dir=str(root / 'runs'), tensorboard=False, pictures=False)
  return config, run.train(config, quiet=True), root / 'runs' / config.name()


def test_language_model_learns_and_writes(trained_lm):
  from lepton_jax import evaluation, folder, generate
  _, result, place = trained_lm
  assert result['test_loss'] < 0.1
  assert result['test_bits_per_character'] == pytest.approx(result['test_loss'] / np.log(2))
  assert result['test_perplexity'] == pytest.approx(np.exp(result['test_loss']))
  trained = folder.load(str(place))
  assert generate.text(trained, 'abc', 12, temperature=0) == 'defgh abcdef'
  assert generate.text(trained, 'a', 30, seed=3) == generate.text(trained, 'a', 30, seed=3)
  assert evaluation.full_report(trained, 'test')[0]['loss'] == result['test_loss']
  with pytest.raises(UserError, match='empty'):
    generate.text(trained, '', 5)


def test_draws_respect_temperature_and_top_k():
  from lepton_jax import generate
  logits, rng = np.array([9.0, 1.0, 3.0, 2.0]), np.random.default_rng(0)
  assert {generate.draw(logits, 0, 0, rng) for _ in range(20)} == {2}
  assert {generate.draw(logits, 5.0, 2, rng) for _ in range(200)} == {2, 3}
  # The unknown character is never drawn.
  assert {generate.draw(logits, 5.0, 0, rng) for _ in range(200)} == {1, 2, 3}


def test_carry_restarts_with_each_epoch(trained_lm):
  config, _, _ = trained_lm
  data = assemble.load_data(config)
  assembly = assemble.build(config, data)
  step = jax.jit(assembly.train_step(None))
  restart = assembly.make_hooks(lambda b: b, slice(None), jax.jit)[0]
  state, _ = step(assembly.state, assembly.batches.at(0))
  carried = jax.tree.leaves(state.model_state['carry'])
  assert all(np.abs(c).max() > 0 for c in carried)
  assert all(np.abs(c).max() > 0 for c in jax.tree.leaves(restart(state, 1).model_state['carry']))
  restarted = restart(state, assembly.batches.steps_per_epoch).model_state['carry']
  assert all(np.abs(c).max() == 0 for c in jax.tree.leaves(restarted))
  assert 'carry' not in state.evaluated['model_state']


@pytest.mark.parametrize('mode', ('sharded', 'pmap'))
def test_running_text_gives_the_same_numbers_on_many_devices(tmp_path, small, mode):
  """The carried state is split with the rows and whole again after each step."""
  from lepton_jax.train import parallel
  (tmp_path / 't.txt').write_text('the quick brown fox ' * 200)
  config = small.replace(model='lstm_lm', dataset=f'text:{tmp_path}/t.txt', hidden=8, embedding=8,
                         tied=True, batch_size=8, sequence_length=16, optimizer='momentum',
                         learning_rate=0.5, dropout=0.2, recurrent_dropout=0.2)
  data = assemble.load_data(config)

  def states(mode):
    assembly = assemble.build(config, data)
    layout = parallel.make_parallel(mode, 8)
    state, step = layout.put_state(assembly.state), layout.step(assembly.train_step(layout.axis))
    for i in range(5):
      state, _ = step(state, layout.put_batch(assembly.batches.at(i, layout.rows)))
    kept = dict(state.trained, carry=state.model_state['carry'])
    return {n: np.asarray(leaf) for n, leaf in trees.named(kept).items()}

  one, many = states('jit'), states(mode)
  assert any(np.abs(a).max() > 0 for n, a in one.items() if n.startswith('carry'))
  for name in one:
    np.testing.assert_allclose(many[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_teacher_reads_on_where_the_text_does(trained_lm):
  """What it answers to piece after piece is what it answers to the whole text, in all modes.

  Hints come from a layer that is wider than the student's.
  """
  config, _, teacher = trained_lm
  config = config.replace(teacher=str(teacher), distill=1.0, hidden=8, distill_hints=1.0,
                          distill_layers='forward')
  data = assemble.load_data(config)
  assembly = assemble.build(config, data, **other_runs.read(config, data))
  pieces, trained = [assembly.batches.at(i) for i in range(3)], folder.load(teacher)
  whole = np.concatenate([piece['inputs'] for piece in pieces], 1)
  _, carry = trained.network.continue_text(
      trained.weights, trained.network.carry(len(whole)), whole, trained.hparams)
  learned = []
  for mode in ('jit', 'sharded', 'pmap'):
    layout = parallel.make_parallel(mode, config.data.batch_size)
    step = layout.step(assembly.train_step(layout.axis))  # which takes the state that it is given
    state = layout.put_state(jax.tree.map(jnp.copy, assembly.state))
    for piece in pieces:
      state, _ = step(state, layout.put_batch(piece))
    found = trees.named(state.model_state['carry']['teacher'])
    for name, wanted in trees.named(carry).items():
      np.testing.assert_allclose(np.asarray(found[name]), wanted, atol=1e-5, err_msg=name)
    learned.append({name: np.asarray(leaf) for name, leaf in trees.named(state.params).items()})
  for other in learned[1:]:
    for name, leaf in learned[0].items():
      np.testing.assert_allclose(other[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)


def test_what_is_split_along_time_is_not_drawn_at_random(tmp_path):
  (tmp_path / 'a.txt').write_text('abc' * 100)
  for options in (dict(folds=3), dict(train_limit=10)):
    with pytest.raises(UserError, match='split along time'):
      dataset.load(Config().replace(dataset=f'text:{tmp_path}/a.txt', **options).data)
  with pytest.raises(UserError, match='a.txt: its validation part has 0 characters'):
    dataset.load(Config().replace(dataset=f'text:{tmp_path}/a.txt', validation_fraction=0).data)


def test_tied_output_layer_is_quantised(tmp_path, small):
  (tmp_path / 'a.txt').write_text('hello world ' * 50)
  config = small.replace(model='lstm_lm', dataset=f'text:{tmp_path}/a.txt', tied=True, hidden=8,
                         embedding=8, batch_size=4, sequence_length=8, quantize_activation_bits=8)
  assert 'embed' in assemble.build(config, assemble.load_data(config)).network.compression.sites
