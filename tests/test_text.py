"""Text as words and tags."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import assemble, layers
from lepton_jax.config import Config, Data
from lepton_jax.data import augment, batches, character_ngrams, dataset, text
from lepton_jax.errors import UserError
from lepton_jax.registry import TOKENIZERS
from tests import LONG


def test_tokens_and_vocabulary():
  assert text.tokens("It's GOOD, isn't it?") == ["it's", 'good', ',', "isn't", 'it', '?']
  texts = ['b a a', 'c a b', 'rare']
  assert text.build_vocabulary(texts, 10, 1) == ('<pad>', '<unk>', 'a', 'b', 'c', 'rare')
  assert text.build_vocabulary(texts, 4, 1) == ('<pad>', '<unk>', 'a', 'b')
  assert text.build_vocabulary(texts, 10, 2) == ('<pad>', '<unk>', 'a', 'b')
  words = ('<pad>', '<unk>', 'a', 'b')
  numbers = TOKENIZERS.get('words')().numbers
  np.testing.assert_array_equal(text.encode(['a zebra', 'b'], numbers(words, 5)), [[2, 1], [3, 0]])
  np.testing.assert_array_equal(text.encode(['a b a b'], numbers(words, 3)), [[2, 3, 2]])


def test_word_pieces_by_hand():
  """The example of arXiv:1508.07909, with `##` where a piece does not begin its word."""
  texts = ['low ' * 5 + 'lower ' * 2 + 'newest ' * 6 + 'widest ' * 3]
  pieces = TOKENIZERS.get('word_pieces')()
  vocabulary = pieces.learn(texts, 25, 1)
  # Characters by how often they occur, then pairs by the same; of equal ones the alphabet's first.
  assert vocabulary[:6] == ('<pad>', '<unk>', '##e', '##w', '##s', '##t')
  assert vocabulary[13:] == ('##es', '##est', '##ow', 'low', '##ew', '##ewest', 'newest', '##dest',
                             '##idest', 'widest', '##er', 'lower')
  read = pieces.reader(vocabulary)
  assert read('low lowest NEWER') == ['low', 'low', '##est', 'n', '##ew', '##er']
  assert read('slow') == ['slow']  # no word began with an s, so it is unknown as a whole
  assert len(pieces.learn(texts, 9, 1)) == 9


def test_every_word_of_the_training_part_is_read_whole():
  texts = [f'{a}{b}{c}' for a in 'xyz' for b in ('ab', 'bc', 'c') for c in ('ing', 'ed', 's', '')]
  pieces = TOKENIZERS.get('word_pieces')()
  for size in (30, 45):
    vocabulary = pieces.learn(texts, size, 1)
    read = pieces.reader(vocabulary)
    for word in texts:
      assert ''.join(read(word)).replace('##', '') == word
      assert set(read(word)) <= set(vocabulary)


def test_character_ngrams_by_hand():
  """The example of arXiv:1607.04606: where < and > bound it, 3-grams of her are <he, her, er>."""
  grams = character_ngrams.ngrams('where')
  assert grams[:5] == ['#<wh', '#whe', '#her', '#ere', '#re>'] and grams[-1] == '#here>'
  assert len(grams) == 5 + 4 + 3 and '#<her>' in character_ngrams.ngrams('her')
  tokenizer = TOKENIZERS.get('character_ngrams')()
  texts = ['singer sings', 'ringing rings sing', 'sing king']
  vocabulary = tokenizer.learn(texts, 20, 1)
  # All six words, and n-grams that three of them have, by how many do.
  assert vocabulary == (
      '<pad>', '<unk>', 'sing', 'king', 'ringing', 'rings', 'singer', 'sings', '#ing', '#<si',
      '#<sin', '#<sing', '#ing>', '#ng>', '#sin', '#sing')
  found = tokenizer.numbers(vocabulary, 5)('Sing, wing')
  assert found.shape == (3, 25) and found.dtype == np.int32
  # Short n-grams first; a comma has none, and an unknown word those that are known.
  wanted = [[2, 9, 14, 8, 13, 10, 15, 12, 11], [1] + [0] * 8, [1, 8, 13, 12] + [0] * 5]
  np.testing.assert_array_equal(found[:, :9], wanted)
  assert not found[:, 9:].any()
  assert tokenizer.learn(texts, 9, 1) == (
      '<pad>', '<unk>', 'sing', 'king', 'ringing', '#ing', '#ing>', '#ng>')


def test_a_word_is_its_vector_and_those_of_its_parts():
  table = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
  tokens = jnp.array([[[1, 3, 4, 0], [2, 0, 0, 0], [0, 0, 0, 0]]])
  look = lambda table: layers.Embed(6, 3).apply(dict(params=dict(embedding=table)), tokens)
  wanted = [table[1] + (table[3] + table[4]) / np.sqrt(2), table[2], table[0]]
  np.testing.assert_allclose(look(table)[0], wanted, rtol=1e-6)
  # Where there is no part, none learns.
  gradient = jax.grad(lambda table: look(table)[:, :2].sum())(table)
  np.testing.assert_allclose(gradient[:, 0], [0, 1, 1, 0.5 ** 0.5, 0.5 ** 0.5, 0], rtol=1e-6)
  hidden = augment.word_dropout(tokens[0], jax.random.key(0), 1.0)
  np.testing.assert_array_equal(hidden, [[1, 3, 4, 0], [1, 0, 0, 0], [0, 0, 0, 0]])


def test_tags_are_of_words():
  parts = dict(train=(["don't a-b"], np.zeros((1, 2), np.int32)))
  with pytest.raises(UserError, match='has a class for each word'):
    text.encode_splits(parts, Data(tokenizer='word_pieces'))
  for tokenizer, shape in (('words', (1, 2)), ('character_ngrams', (1, 2, 25))):
    encoded, vocabulary = text.encode_splits(parts, Data(tokenizer=tokenizer))
    assert vocabulary == ('<pad>', '<unk>', 'a-b', "don't")
    assert encoded['train'][0].shape == shape


def test_running_text_has_no_tokenizer():
  with pytest.raises(UserError, match='read character by character'):
    dataset.load(Data(dataset='python_source', tokenizer='character_ngrams'))


def make_table(path, count=60):
  rng = np.random.default_rng(0)
  words = dict(good=['fine', 'great', 'lovely', 'warm'], bad=['dull', 'awful', 'cold', 'grim'])
  rows = []
  for label in rng.choice(['good', 'bad'], count):
    chosen = rng.choice([*words[label], 'the', 'film'], rng.integers(3, 20))
    rows.append((' '.join(chosen) + ' ' + words[label][0], label))
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
  other = dataset.load(Config().replace(**options).data)
  assert set(other.vocabulary) ^ set(data.vocabulary) == {'film', 'movie'}


@pytest.mark.parametrize('row, words', [
    ('only one', '1 columns'), ('\tgood', 'review is empty'), ('text\t', 'kind is empty')])
def test_bad_rows_of_text_are_named_or_counted(tmp_path, capsys, row, words):
  options = make_table(tmp_path / 't.tsv')
  with (tmp_path / 't.tsv').open('a') as file:
    file.write(row + '\n')
  with pytest.raises(UserError, match=f't.tsv, line 62: {words}'):
    dataset.load(Config().replace(**options).data)
  data = dataset.load(Config().replace(skip_bad_rows=True, **options).data)
  assert sum(map(data.size, data.splits)) == 60
  assert '1 bad rows left out of 61' in capsys.readouterr().out


def test_buckets_depend_on_the_step_and_members_on_the_seed():
  rng = np.random.default_rng(0)
  length = rng.integers(1, 41, 300)
  inputs = (np.arange(40)[None] < length[:, None]) * rng.integers(1, 9, (300, 40), np.int32)
  one, two = (batches.BucketBatches(inputs.astype(np.int32), np.arange(300), 8, seed, 4)
              for seed in (0, 1))
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


@pytest.mark.parametrize('model', ('text_cnn', *LONG * ('gru_classifier',)))
def test_text_runs_end_to_end_pruned_and_quantised(tmp_path, small, model):
  from lepton_jax import folder, run
  config = small.replace(**make_table(tmp_path / 't.tsv', 300), model=model,
                         runs_dir=str(tmp_path / 'runs'), batch_size=8, epochs=6,
                         learning_rate=0.01, prune_sparsity=0.7, quantize_weight_bits=4,
                         quantize_activation_bits=8, buckets=2, embedding=16,
                         **(dict(hidden=32) if model == 'gru_classifier' else dict(width=0.2)))
  result = run.train(config, quiet=True)
  assert result['test_accuracy'] > 0.9 and result['sparsity'] == pytest.approx(0.7, abs=1e-3)
  rows = {row['kernel']: row for row in result['kernels']}
  embedding = rows['embed/embedding']
  assert embedding['weight_bits'] == 4 and 'floating-point' in embedding['activation_reason']
  if model == 'gru_classifier':
    for name in ('input', 'recurrent'):
      assert rows[f'forward1/{name}/kernel']['activation_bits'] == 8
  trained = folder.load(str(tmp_path / 'runs' / config.name()))
  inputs, label = trained.data.splits['test']
  assert np.mean(trained.predict(inputs) == label) == result['test_accuracy']


# tags

def make_tags(path, count=200):
  """Words tagged by what they are; 'can' is a verb after a pronoun and a noun after an article.

  So the word before decides.
  """
  rng = np.random.default_rng(0)
  rows = []
  for _ in range(count):
    pairs = []
    for _ in range(rng.integers(1, 6)):
      verb = rng.random() < 0.5
      pairs += [('they', 'no'), ('can', 'no')] if verb else [('the', 'no'), ('can', 'yes')]
    rows.append(tuple(' '.join(column) for column in zip(*pairs)))
  path.write_text('words,nouns\n' + ''.join(f'{w},{t}\n' for w, t in rows))
  return dict(dataset=f'csv:{path}', text_column='words', target='nouns', task='tagging')


@pytest.mark.parametrize('loss', ('cross_entropy', *LONG * ('binary',)))
def test_tagger_learns_from_the_word_before(tmp_path, small, loss):
  from lepton_jax import evaluation, folder, run
  config = small.replace(**make_tags(tmp_path / 't.csv'), model='lstm_tagger', hidden=16,
                         embedding=8, epochs=8, batch_size=8, learning_rate=0.02, loss=loss,
                         buckets=2, runs_dir=str(tmp_path / 'runs'), checkpoint_every=30)
  result = run.train(config, quiet=True)
  assert result['test_accuracy'] == 1
  trained = folder.load(str(tmp_path / 'runs' / config.name()))
  assert trained.network.module.outputs == (1 if loss == 'binary' else 2)
  report, confusion = evaluation.full_report(trained, 'test')
  inputs, label = trained.data.splits['test']
  assert report['accuracy'] == 1 and np.sum(confusion) == np.sum(inputs > 0) == np.sum(label >= 0)
  np.testing.assert_array_equal(trained.predict(inputs)[label >= 0], label[label >= 0])


def test_a_row_needs_a_tag_for_each_word(tmp_path):
  options = make_tags(tmp_path / 't.csv')
  with (tmp_path / 't.csv').open('a') as file:
    file.write('the can can,no yes\n')
  with pytest.raises(UserError, match='t.csv, line 202: 3 words and 2 tags'):
    dataset.load(Config().replace(**options).data)
  data = dataset.load(Config().replace(skip_bad_rows=True, **options).data)
  inputs, label = data.splits['train']
  assert inputs.shape == label.shape and np.all((inputs > 0) == (label >= 0))
  with pytest.raises(UserError, match='tagging needs --text_column'):
    dataset.load(Config().replace(**dict(options, text_column='')).data)


def test_answers_and_labels_are_both_of_steps_or_both_of_examples(tmp_path, small):
  tags, texts = make_tags(tmp_path / 'tags.csv'), make_table(tmp_path / 'texts.tsv')
  for options, model, words in ((tags, 'lstm_classifier', 'each example; .* each step'),
                                (texts, 'gru_tagger', 'each step; .* each example')):
    config = small.replace(**options, model=model, batch_size=4, hidden=4)
    with pytest.raises(UserError, match=words):
      assemble.build(config, assemble.load_data(config))


# files of splits, words dropped, precision

def test_a_folder_of_tables_brings_its_own_splits(tmp_path):
  for split, count in (('train', 60), ('test', 20)):
    options = make_table(tmp_path / f'{split}.tsv', count)
  data = dataset.load(Config().replace(**dict(options, dataset=f'csv:{tmp_path}')).data)
  assert [data.size(s) for s in ('train', 'validation', 'test')] == [54, 6, 20]
  (tmp_path / 'test.tsv').write_text('kind\treview\ngood\tfine\n')
  with pytest.raises(UserError, match='test.tsv: its columns are kind, review'):
    dataset.load(Config().replace(**dict(options, dataset=f'csv:{tmp_path}')).data)
  (tmp_path / 'train.tsv').unlink()
  with pytest.raises(UserError, match='no train.csv'):
    dataset.load(Config().replace(**dict(options, dataset=f'csv:{tmp_path}')).data)


def test_word_dropout_hides_words_but_not_the_end():
  from lepton_jax.data import augment
  tokens = jnp.where(jnp.arange(2000) < 1500, 7, 0)
  dropped = np.asarray(augment.word_dropout(tokens, jax.random.key(0), 0.3))
  assert set(dropped[:1500]) == {1, 7} and set(dropped[1500:]) == {0}
  assert np.mean(dropped[:1500] == 1) == pytest.approx(0.3, abs=0.04)


def test_words_are_looked_up_in_the_precision_asked_for(tmp_path, small):
  config = small.replace(**make_table(tmp_path / 't.tsv'), model='lstm_classifier', hidden=4,
                         batch_size=4, dtype='bfloat16')
  network = assemble.build(config, assemble.load_data(config)).network
  variables = network.module.init(jax.random.key(0), jnp.ones((2, 3), jnp.int32), None)
  assert network.module.apply(variables, jnp.ones((2, 3), jnp.int32), None).dtype == jnp.bfloat16
  assert variables['params']['embed']['embedding'].dtype == jnp.float32


def test_vocabulary_is_saved_with_the_run(tmp_path, small):
  import json

  from lepton_jax import run
  config = small.replace(**make_table(tmp_path / 't.tsv'), model='text_cnn', width=0.05,
                         embedding=4, batch_size=4, epochs=1, runs_dir=str(tmp_path / 'runs'))
  run.train(config, quiet=True)
  saved = json.loads((tmp_path / 'runs' / config.name() / 'data.json').read_text())
  assert tuple(saved['vocabulary']) == assemble.load_data(config).vocabulary
  assert saved['classes'] == ['bad', 'good']


def test_every_example_is_reached_however_few_are_of_its_length():
  """Buckets that could not fill a batch join others."""
  for lengths in ([3] * 30 + [20] * 5, [3] * 5 + [20] * 30, [3, 9, 17, 25] * 5,
                  list(range(1, 41)) * 2):
    inputs = (np.arange(40)[None] < np.array(lengths)[:, None]).astype(np.int32)
    made = batches.BucketBatches(inputs, np.arange(len(lengths)), 8, 0, 4)
    seen = {int(i) for step in range(40 * made.steps_per_epoch) for i in made.at(step)['label']}
    assert seen == set(range(len(lengths)))
    for step in range(made.steps_per_epoch):
      batch = made.at(step)
      np.testing.assert_array_equal((batch['inputs'] > 0).sum(1), np.array(lengths)[batch['label']])


def test_quotes_and_odd_line_ends_in_tables(tmp_path):
  def texts(name, content, **options):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    given = dict(dataset=f'csv:{tmp_path}/{name}', text_column='t', target='k')
    given |= dict(validation_fraction=0, test_fraction=0) | options
    data = dataset.load(Config().replace(**given).data)
    return data.size('train'), set(data.vocabulary)

  # A quote in a .tsv is a character.
  assert texts('a.tsv', 't\tk\n"good film\ta\nbad "film"\tb\n')[0] == 2
  words = {'<pad>', '<unk>', 'one', ',', 'two', 'three', 'four', 'five', 'six'}
  content = 't,k\n"one, two\nthree",a\nfour\u2028five\x0csix,b\n'
  assert texts('b.csv', content) == (2, words)
  with pytest.raises(UserError, match=r'c.csv, line 3: '):
    texts('c.csv', 't,k\nx,a\n"unclosed,b\n' + 'y,a\n' * 50_000)
  with pytest.raises(UserError, match=r'd.csv, line 1: two columns'):
    texts('d.csv', 't,k,t\nx,a,y\n')
  with pytest.raises(UserError, match='line 3: not UTF-8'):
    texts('e.csv', b't,k\nx,a\n\xff,b\ny,b\n')
  assert texts('e.csv', b't,k\nx,a\n\xff,b\ny,b\n', skip_bad_rows=True)[0] == 2
  assert texts('f.csv', 't,k\n<pad> x <unk>,a\ny,b\n')[1] >= {'<pad>', 'x', 'y'}
  with pytest.raises(UserError, match='its own answer'):
    options = dict(dataset=f'csv:{tmp_path}/f.csv', text_column='t', target='t')
    dataset.load(Config().replace(**options).data)


def test_padding_written_in_a_text_is_an_unknown_word():
  vocabulary = text.build_vocabulary(['a <pad> c'], 10, 1, text.spaced)
  assert vocabulary == ('<pad>', '<unk>', 'a', 'c')
  numbers = text.Tokenizer(text.build_vocabulary, lambda _: text.spaced).numbers(vocabulary, 5)
  np.testing.assert_array_equal(text.encode(['a <pad> c'], numbers), [[2, 1, 3]])


def test_changed_data_and_foreign_vocabularies_are_refused(tmp_path, small):
  from lepton_jax import folder, run
  options = make_table(tmp_path / 't.tsv')
  config = small.replace(**options, model='text_cnn', width=0.05, embedding=4, batch_size=4,
                         epochs=1, runs_dir=str(tmp_path / 'runs'))
  run.train(config, quiet=True)
  place = str(tmp_path / 'runs' / config.name())
  (tmp_path / 't.tsv').write_text((tmp_path / 't.tsv').read_text().replace('film', 'movie'))
  with pytest.raises(UserError, match='begun on other data'):
    folder.load(place)
  with pytest.raises(UserError, match='another vocabulary'):
    run.train(config.replace(init_from=place, epochs=2), quiet=True)
