"""Recurrent layers and networks, text and its batches."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax import assemble, layers, trees
from lepton_jax import network as network_lib
from lepton_jax.config import Config
from lepton_jax.data import batches, dataset, text
from lepton_jax.errors import UserError
from lepton_jax.layers import recurrent
from lepton_jax.registry import MODELS
from tests.golden import make_recurrent

SEQUENCE_MODELS = [n for n in MODELS.names() if n.endswith(('_classifier', '_tagger')) or n == 'text_cnn']


def golden(kind):
  with np.load(pathlib.Path(make_recurrent.__file__).with_name('recurrent.npz')) as arrays:
    return {n.partition('/')[2]: arrays[n] for n in arrays if n.startswith(f'{kind}/')}


def ours_from_torch(kind, arrays, suffix):
  """Parameters of one Recurrent from PyTorch's names; suffix is 'l0', 'l0_reverse', ..."""
  input_bias, hidden_bias = arrays[f'bias_ih_{suffix}'], arrays[f'bias_hh_{suffix}']
  both = kind != 'gru'  # where the two biases only ever appear as their sum, there is one
  params = dict(input=dict(kernel=arrays[f'weight_ih_{suffix}'].T, bias=input_bias + hidden_bias if both else input_bias),
                recurrent=dict(kernel=arrays[f'weight_hh_{suffix}'].T))
  if not both:
    params['recurrent']['bias'] = hidden_bias
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
  pytest.importorskip('torch', reason='PyTorch is not installed; the committed numbers are checked instead')
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


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_reversing_twice_is_the_identity(lengths):
  x = jax.random.normal(jax.random.key(0), (len(lengths), 6, 2))
  valid = jnp.arange(6)[None] < jnp.array(lengths)[:, None]
  once = recurrent.reverse(x, valid)
  np.testing.assert_array_equal(recurrent.reverse(once, valid), x)
  for row, length in enumerate(lengths):
    np.testing.assert_array_equal(once[row, :length], x[row, :length][::-1])


@pytest.mark.parametrize('name, options', [
    (n, o) for n in SEQUENCE_MODELS for o in ([dict(pooling=p) for p in ('last', 'mean', 'max')] if n.endswith('_classifier') else [{}])])
def test_padding_never_changes_an_answer(name, options):
  module = MODELS.get(name)(outputs=2, vocabulary=20, **options)
  tokens = jnp.array([[3, 4, 5, 0, 0, 0], [7, 8, 9, 10, 0, 0]], jnp.int32)
  variables = module.init(jax.random.key(0), tokens, None)
  short, long = (module.apply(variables, jnp.pad(tokens, ((0, 0), (0, extra)))[:, :4 + extra], None) for extra in (0, 9))
  if name.endswith('_tagger'):
    long = long[:, :4]
  np.testing.assert_allclose(long, short, atol=1e-6)
  assert short.shape == ((2, 4, 2) if name.endswith('_tagger') else (2, 2))


def test_golden_parameter_counts():
  def count(name, shape=(28, 28, 1), **options):
    module = MODELS.get(name)(outputs=10, **options)
    return trees.count(jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *shape)), None))['params'])
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
  np.testing.assert_array_equal(run(0)[:, 0], plain[:, 0])  # the first state is zero: nothing to drop


# text

def test_tokens_and_vocabulary():
  assert text.tokens("It's GOOD, isn't it?") == ["it's", 'good', ',', "isn't", 'it', '?']
  texts = ['b a a', 'c a b', 'rare']
  assert text.build_vocabulary(texts, 10, 1) == ('<pad>', '<unk>', 'a', 'b', 'c', 'rare')
  assert text.build_vocabulary(texts, 4, 1) == ('<pad>', '<unk>', 'a', 'b')
  assert text.build_vocabulary(texts, 10, 2) == ('<pad>', '<unk>', 'a', 'b')
  np.testing.assert_array_equal(text.encode(['a zebra', 'b'], ('<pad>', '<unk>', 'a', 'b'), 5), [[2, 1], [3, 0]])
  np.testing.assert_array_equal(text.encode(['a b a b'], ('<pad>', '<unk>', 'a', 'b'), 3), [[2, 3, 2]])


def make_table(path, count=60):
  rng = np.random.default_rng(0)
  words = dict(good=['fine', 'great', 'lovely', 'warm'], bad=['dull', 'awful', 'cold', 'grim'])
  rows = [(' '.join(rng.choice([*words[label], 'the', 'film'], rng.integers(3, 20))) + ' ' + words[label][0], label)
          for label in rng.choice(['good', 'bad'], count)]
  path.write_text('review\tkind\n' + ''.join(f'{t}\t{l}\n' for t, l in rows))
  return dict(dataset=f'csv:{path}', text_column='review', target='kind')


def test_words_are_counted_in_the_training_part_alone(tmp_path):
  options = make_table(tmp_path / 't.tsv')
  data = dataset.load(Config().replace(**options).data)
  assert data.classes == ('bad', 'good') and data.splits['train'][0].dtype == np.int32
  content = (tmp_path / 't.tsv').read_text().splitlines()
  heldout = data.size('validation') + data.size('test')
  assert heldout > 0
  (tmp_path / 't.tsv').write_text('\n'.join(content).replace('film', 'movie'))
  assert set(dataset.load(Config().replace(**options).data).vocabulary) ^ set(data.vocabulary) == {'film', 'movie'}


@pytest.mark.parametrize('row, words', [('only one', '1 columns'), ('\tgood', 'review is empty'), ('text\t', 'kind is empty')])
def test_bad_rows_of_text_are_named_or_counted(tmp_path, capsys, row, words):
  options = make_table(tmp_path / 't.tsv')
  with (tmp_path / 't.tsv').open('a') as file:
    file.write(row + '\n')
  with pytest.raises(UserError, match=f't.tsv, line 62: {words}'):
    dataset.load(Config().replace(**options).data)
  data = dataset.load(Config().replace(skip_bad_rows=True, **options).data)
  assert sum(map(data.size, data.splits)) == 60 and '1 bad rows left out of 61' in capsys.readouterr().out


def test_buckets_depend_on_the_step_and_members_on_the_seed():
  rng = np.random.default_rng(0)
  length = rng.integers(1, 41, 300)
  inputs = (np.arange(40)[None] < length[:, None]) * rng.integers(1, 9, (300, 40), np.int32)
  one, two = (batches.BucketBatches(inputs.astype(np.int32), np.arange(300), 8, seed, 4) for seed in (0, 1))
  shapes = [[b.at(s)['inputs'].shape for s in range(b.steps_per_epoch)] for b in (one, two)]
  assert shapes[0] == shapes[1] and len(set(shapes[0])) == 4 and shapes[0] != sorted(shapes[0])
  seen = np.concatenate([one.at(s)['label'] for s in range(one.steps_per_epoch)])
  assert len(set(seen)) == len(seen) > 260
  for s in range(one.steps_per_epoch):
    batch = one.at(s)
    np.testing.assert_array_equal((batch['inputs'] > 0).sum(1), length[batch['label']])
  assert not np.array_equal(one.at(0)['label'], two.at(0)['label'])


def test_text_needs_a_network_that_reads_it(tmp_path, small):
  config = small.replace(**make_table(tmp_path / 't.tsv'), batch_size=4)
  with pytest.raises(UserError, match='mlp reads no text'):
    assemble.build(config, assemble.load_data(config))
  with pytest.raises(UserError, match='text_cnn reads only text'):
    assemble.build(small.replace(model='text_cnn'), assemble.load_data(small))
  with pytest.raises(UserError, match='augment_flip'):
    config = config.replace(model='text_cnn', augment_flip=True)
    assemble.build(config, assemble.load_data(config))


@pytest.mark.parametrize('model', ('gru_classifier', 'text_cnn'))
def test_text_runs_end_to_end_pruned_and_quantised(tmp_path, small, model):
  from lepton_jax import folder, run
  config = small.replace(**make_table(tmp_path / 't.tsv', 300), model=model, runs_dir=str(tmp_path / 'runs'), batch_size=8, epochs=6, learning_rate=0.01,
                         prune_sparsity=0.7, quantize_weight_bits=4, quantize_activation_bits=8, buckets=2, embedding=16,
                         **(dict(hidden=32) if model == 'gru_classifier' else dict(width=0.2)))
  result = run.train(config, quiet=True)
  assert result['test_accuracy'] > 0.9 and result['sparsity'] == pytest.approx(0.7, abs=1e-3)
  rows = {row['kernel']: row for row in result['kernels']}
  assert rows['embed/embedding']['weight_bits'] == 4 and 'floating-point' in rows['embed/embedding']['activation_reason']
  if model == 'gru_classifier':
    assert rows['forward1/input/kernel']['activation_bits'] == rows['forward1/recurrent/kernel']['activation_bits'] == 8
  trained = folder.load(str(tmp_path / 'runs' / config.name()))
  inputs, label = trained.data.splits['test']
  assert np.mean(trained.predict(inputs) == label) == result['test_accuracy']


# running text

def test_stream_batches_continue_each_row_and_passes_count_each_character_once():
  stream = np.arange(103, dtype=np.int32)
  one = batches.StreamBatches(stream, 4, 5)
  assert one.steps_per_epoch == 5
  for s in range(4):
    now, then = one.at(s), one.at(s + 1)
    np.testing.assert_array_equal(then['inputs'][:, 0], now['inputs'][:, -1] + 1)
    np.testing.assert_array_equal(now['label'], now['inputs'] + 1)
  np.testing.assert_array_equal(one.at(5)['inputs'], one.at(0)['inputs'])
  labels = np.concatenate([b['label'][b['label'] >= 0] for b in batches.stream_passes(stream, 4, 5)])
  assert sorted(labels) == list(range(1, 103))
  for batch in batches.stream_passes(stream, 4, 5):
    exists = batch['label'] >= 0
    np.testing.assert_array_equal(batch['label'][exists], batch['inputs'][exists] + 1)
  with pytest.raises(UserError, match='103'):
    batches.StreamBatches(stream, 60, 5)


def test_text_files_are_cut_in_order_and_named_when_bad(tmp_path):
  path = tmp_path / 'book.txt'
  path.write_text('a' * 70 + 'b' * 20 + 'z' * 10)
  data = dataset.load(Config().replace(dataset=f'text:{path}', test_fraction=0.1, validation_fraction=0.2).data)
  assert [data.size(s) for s in ('train', 'validation', 'test')] == [72, 18, 10]
  assert data.classes[1:] == ('a', 'b') and set(data.splits['test'][0]) == {0}  # a character unseen in training
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
  config = Config().replace(model='lstm_lm', dataset=f'text:{root}/abc.txt', hidden=16, embedding=8, batch_size=8, sequence_length=20, epochs=4,
                            learning_rate=0.02, runs_dir=str(root / 'runs'), tensorboard=False, pictures=False)
  return config, run.train(config, quiet=True), root / 'runs' / config.name()


def test_language_model_learns_and_writes(trained_lm):
  from lepton_jax import evaluation, folder, generate
  _, result, place = trained_lm
  assert result['test_loss'] < 0.1 and result['test_bits_per_character'] == pytest.approx(result['test_loss'] / np.log(2))
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
  assert {generate.draw(logits, 5.0, 0, rng) for _ in range(200)} == {1, 2, 3}  # never the unknown character


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
  assert all(np.abs(c).max() == 0 for c in jax.tree.leaves(restart(state, assembly.batches.steps_per_epoch).model_state['carry']))
  assert 'carry' not in state.evaluated['model_state']


# series

def make_series(path, rows=400, change_from=None):
  time = np.arange(rows)
  load = 10 + 3 * np.sin(2 * np.pi * time / 24) + np.random.default_rng(0).normal(0, 0.5, rows)
  if change_from is not None:
    load[change_from:] += 100
  heat = 20 + np.cos(2 * np.pi * time / 24)
  path.write_text('date,load,heat\n' + ''.join(f'{np.datetime64("2020-01-01T00") + t},{a},{b}\n' for t, a, b in zip(time, load, heat)))
  return dict(dataset=f'series:{path}', target='load', window=48, horizon=4)


def test_series_windows_and_no_leak_from_the_future(tmp_path):
  options = make_series(tmp_path / 's.csv')
  first = dataset.load(Config().replace(**options).data)
  inputs, label = first.splits['train']
  assert inputs.shape[1:] == (48, 2) and label.shape[1:] == (4,) and first.columns == ('load', 'heat')
  np.testing.assert_array_equal(inputs[1, :-1], inputs[0, 1:])
  np.testing.assert_array_equal(label[0, 0], inputs[1, -1, 0])
  test_start = 400 - round(400 * 0.2)
  train_end = test_start - round(test_start * 0.1)
  make_series(tmp_path / 's.csv', change_from=train_end)
  second = dataset.load(Config().replace(**options).data)
  for a, b in zip(first.splits['train'], second.splits['train']):
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal((first.mean, first.std), (second.mean, second.std))
  assert not np.array_equal(first.splits['test'][1], second.splits['test'][1])
  sizes = [first.size(s) for s in ('train', 'validation', 'test')]
  assert sizes == [train_end - 48 - 3, test_start - train_end - 3, 400 - test_start - 3]


def test_naive_forecasts_are_what_they_say(tmp_path):
  from lepton_jax.data import series
  data = dataset.load(Config().replace(**make_series(tmp_path / 's.csv')).data)
  inputs, label = data.splits['test']
  naive = series.baselines(inputs, label, data.targets, 24)
  np.testing.assert_array_equal(naive['last_value'], np.repeat(inputs[:, -1:, 0], 4, 1))
  np.testing.assert_array_equal(naive['seasonal_naive'], inputs[:, 24:28, 0])
  assert 'seasonal_naive' not in series.baselines(inputs, label, data.targets, 49)


@pytest.mark.parametrize('content, words', [
    ('date,load\n2020,1\n2021,x\n', "line 3: load is 'x'"), ('date,load\n2020,1\n2021\n', 'line 3: 1 columns'),
    ('date,load\n2021,1\n2020,2\n', 'must rise'), ('date,load\n2020,1\n2021,2\n', 'too few for --window=48'), ('day,load\n2020,1\n', "unknown column 'date'"),
])
def test_bad_series_are_named(tmp_path, content, words):
  (tmp_path / 's.csv').write_text(content)
  with pytest.raises(UserError, match=words):
    dataset.load(Config().replace(dataset=f'series:{tmp_path}/s.csv', target='load', window=48).data)


def test_regressor_beats_the_naive_forecasts(tmp_path, small):
  from lepton_jax import evaluation, folder, run
  config = small.replace(**make_series(tmp_path / 's.csv'), model='gru_regressor', hidden=16, epochs=30, learning_rate=0.01, runs_dir=str(tmp_path / 'runs'),
                         checkpoint_every=30)
  result = run.train(config, quiet=True)
  report, _ = evaluation.full_report(folder.load(str(tmp_path / 'runs' / config.name())), 'test')
  assert report['rmse'] == pytest.approx(result['test_rmse'], rel=1e-5)
  assert report['rmse'] < min(b['rmse'] for b in report['baselines'].values())


# imbalance

def test_balanced_weights_are_inverse_frequencies(small):
  data = assemble.load_data(small)
  weights = network_lib.class_weights(small.replace(class_weights='balanced'), data)
  label = data.splits['train'][1]
  assert np.mean(weights[label]) == pytest.approx(1) and np.all(np.abs(weights * np.bincount(label) - len(label) / 10) < 1e-3)


def test_threshold_is_chosen_for_the_best_f1():
  from lepton_jax import metrics
  positive, label = np.array([0.1, 0.2, 0.3, 0.4, 0.9]), np.array([0, 0, 1, 1, 1])
  threshold = metrics.best_threshold(positive, label)
  assert threshold == 0.3 and metrics.at_threshold(positive, label, threshold)['f1'] == 1


@pytest.mark.parametrize('mode', ('sharded', 'pmap'))
def test_running_text_gives_the_same_numbers_on_many_devices(tmp_path, small, mode):
  """The carried state is split with the rows and whole again after each step."""
  from lepton_jax.train import parallel
  (tmp_path / 't.txt').write_text('the quick brown fox ' * 200)
  config = small.replace(model='lstm_lm', dataset=f'text:{tmp_path}/t.txt', hidden=8, embedding=8, tied=True, batch_size=8, sequence_length=16,
                         optimizer='momentum', learning_rate=0.5, dropout=0.2, recurrent_dropout=0.2)
  data = assemble.load_data(config)

  def states(mode):
    assembly = assemble.build(config, data)
    layout = parallel.make_parallel(mode, 8)
    state, step = layout.put_state(assembly.state), layout.step(assembly.train_step(layout.axis))
    for i in range(5):
      state, _ = step(state, layout.put_batch(assembly.batches.at(i, layout.rows)))
    return {n: np.asarray(leaf) for n, leaf in trees.named(dict(state.trained, carry=state.model_state['carry'])).items()}

  one, many = states('jit'), states(mode)
  assert any(np.abs(a).max() > 0 for n, a in one.items() if n.startswith('carry'))
  for name in one:
    np.testing.assert_allclose(many[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)
