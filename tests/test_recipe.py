"""Recipes: what they say, and stages that keep what earlier ones did."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from lepton_jax import folder, recipe, registry, run, trees
from lepton_jax.config import Config
from lepton_jax.deploy import measure, pack
from lepton_jax.errors import UserError
from lepton_jax.report import markdown

ROOT = pathlib.Path(__file__).parents[1]


def test_stages_are_read():
  stages = recipe.parse('prune(0.9,score=movement,learning_rate=1e-3):10, cluster(16):5,'
                        'pack(bits=6)')
  assert [stage.epochs for stage in stages] == [10, 5, None]
  assert stages[0].options == dict(prune_sparsity=0.9, prune_score='movement', learning_rate=1e-3)
  assert stages[1].options == dict(quantize_weights='cluster', quantize_weight_bits=4)
  assert stages[2].options == dict(bits=6)


@pytest.mark.parametrize('text,words', [
    ('', 'no stage'), ('shrink(0.5):3', 'is no stage'), ('prune(0.9)', 'number of epochs'),
    ('prune(0.9):0', 'number of epochs'), ('pack:3', 'without epochs'),
    ('pack,prune(0.5):2', 'last stage'), ('cluster(15):3', 'allowed are 4, 8'),
    ('prune(0.5,colour=red):3', 'no option'), ('prune(x):3', 'not of type float'),
    ('prune(2):3', 'at most'), ('prune(0.5,0.6):3', 'values without a name'),
    ('pack(colour=1)', 'pack takes'), ('prune(0.9):3,,(', 'is no stage')])
def test_what_is_no_recipe_is_said(text, words):
  with pytest.raises(UserError, match=words):
    recipe.parse(text)


def test_rounding_stays_on_and_pruning_is_of_its_stage():
  base = Config().replace(seed=3, weight_decay=0.1, prune_sparsity=0.5)
  one, two, three = recipe.configs(
      recipe.parse('quantize(4,8):2,prune(0.9):3,train:1'), base, dict(learning_rate=0.5))
  assert [c.training.epochs for c in (one, two, three)] == [2, 3, 1]
  assert [c.prune.prune_sparsity for c in (one, two, three)] == [0, 0.9, 0]
  assert [c.quantize.quantize_weight_bits for c in (one, two, three)] == [4, 4, 4]
  for config in (one, two, three):
    assert config.training.seed == 3 and config.optimization.weight_decay == 0.1
    assert config.optimization.learning_rate == 0.5


def test_given_flags_hold_where_no_stage_says_otherwise():
  stages = recipe.parse('quantize(4):1,cluster(16,learning_rate=0.1):1,train:1,quantize(3):1')
  for given, wanted in (({}, ['max', 'cluster', 'cluster', 'max']),
                        (dict(quantize_weights='lsq'), ['lsq', 'cluster', 'cluster', 'lsq'])):
    found = recipe.configs(stages, Config(), given | dict(learning_rate=0.5))
    assert [one.quantize.quantize_weights for one in found] == wanted
    assert [one.optimization.learning_rate for one in found] == [0.5, 0.1, 0.1, 0.1]
  rounded = Config().replace(quantize_weights='lsq', quantize_weight_bits=4, quantize_after=True)
  one, = recipe.configs(recipe.parse('quantize(2,8):1'), rounded, {})
  assert one.quantize.quantize_weights == 'lsq' and not one.quantize.quantize_after


@pytest.mark.parametrize('name', registry.WEIGHT_QUANTIZERS.names())
def test_a_stage_that_rounds_goes_on_with_the_quantizer_before_it_where_that_can(name):
  before = Config().replace(quantize_weights=name, quantize_weight_bits=2)
  one, two = recipe.configs(recipe.parse('quantize(4):1,quantize(12):1'), before, {})
  four = name not in ('binary', 'cluster', 'ternary', 'ttq')
  assert one.quantize.quantize_weights == (name if four else 'max')
  twelve = four and name != 'apot'
  assert two.quantize.quantize_weights == (name if twelve else 'max')


@pytest.fixture(scope='module')
def dense(tmp_path_factory):
  """A finished run that its stages are beside."""
  config = Config().replace(model='mlp', dataset='digits', width=0.5, epochs=6, batch_size=32,
                            tensorboard=False, pictures=False, learning_rate=3e-3,
                            runs_dir=str(tmp_path_factory.mktemp('recipes')))
  run.train(config.check(), quiet=True)
  return pathlib.Path(config.run.runs_dir) / config.name()


def compress(dense, text, *more):
  command = [sys.executable, '-m', 'experiments.compress', f'--run={dense}', f'--recipe={text}',
             f'--runs_dir={dense.parent}', '--notensorboard', '--nopictures', *more]
  environment = dict(os.environ, COLUMNS='200')
  return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def kernels(place):
  trained = folder.load(str(place))
  counted = trained.network.compression.counted(trained.weights, trained.hparams)
  return {name: np.asarray(leaf) for name, leaf in trees.named(counted['params']).items()
          if trees.is_kernel(name)}


def test_stages_keep_zeros_and_codebooks_and_common_ones_are_trained_once(dense):
  done = compress(dense, 'prune(0.8):3,cluster(16):2,train:1,pack; prune(0.8):3,quantize(4):1')
  assert done.returncode == 0, done.stderr
  stages = 'prune(0.8):3: ', 'cluster(16):2: ', 'train:1: ', 'quantize(4):1: '
  places = [line.split(': ')[1] for line in done.stdout.splitlines() if line.startswith(stages)]
  pruned, clustered, last, again, rounded = places
  assert again == pruned and len(set(places)) == 4
  zeros = {name: kernel == 0 for name, kernel in kernels(pruned).items()}
  total = sum(mask.size for mask in zeros.values())
  assert sum(int(mask.sum()) for mask in zeros.values()) == round(0.8 * total)
  for place in (clustered, last, rounded):
    for name, kernel in kernels(place).items():
      assert not kernel[zeros[name]].any(), (place, name)
      outputs = kernel.T if place == rounded else [kernel]
      assert all(len(np.unique(values)) <= 16 for values in outputs)
  # The file has these very values, and what the table says of it was measured of the file.
  facts = json.loads((pathlib.Path(last) / measure.FACTS).read_text())
  data = (pathlib.Path(last) / measure.FILE).read_bytes()
  assert facts['file_bytes'] == len(data) and f'{len(data)} |' in done.stdout
  trained, again = folder.load(last), measure.opened(data, folder.load(last).data)
  assert again.measure('test')['accuracy'] == facts['test_accuracy']
  for name, kernel in kernels(last).items():
    packed = np.asarray(trees.named(again.weights['params'])[name])
    np.testing.assert_allclose(packed, kernel, rtol=2e-3, atol=1e-4)
  assert len(data) < 0.06 * facts['dense_bytes'] and len(data) < 0.9 * facts['xz_bytes']
  lost = json.loads((pathlib.Path(last) / 'forgetting.json').read_text())
  assert lost['accuracy_after'] == pytest.approx(facts['test_accuracy'])
  assert 'worst class' in done.stdout and trained.data.name == 'digits'


def test_the_first_recipe_that_loses_little_enough_is_the_last_that_is_trained(dense):
  texts = 'prune(0.999):1', 'prune(0.3):2', 'train:3'
  done = compress(dense, ';'.join(texts), '--within=0.05')
  assert done.returncode == 0, done.stderr
  assert [text for text in texts if f'{text}: ' in done.stdout] == list(texts[:2])
  assert 'kept: prune(0.3):2\n' in done.stdout
  done = compress(dense, texts[0], '--within=0.05')
  assert done.returncode == 1 and '--within=0.05: none of 1 recipes loses as little' in done.stderr


def test_what_a_recipe_loses_is_told_by_validation_in_either_direction():
  accuracy = lambda value: dict(measure='accuracy', validation_accuracy=value, test_accuracy=0)
  assert recipe.within(0.01, accuracy(0.93), accuracy(0.92))
  assert not recipe.within(0.01, accuracy(0.93), accuracy(0.919))
  assert recipe.within(0, accuracy(0.9), accuracy(0.95))
  loss = lambda value: dict(measure='loss', validation_loss=value)
  assert recipe.within(0.1, loss(1.5), loss(1.6)) and not recipe.within(0.1, loss(1.5), loss(1.7))


def test_a_mistake_in_a_later_stage_is_told_before_the_first_trains(dense):
  before = set(dense.parent.iterdir())
  done = compress(dense, 'prune(0.7):2,quantize(1):1')
  assert done.returncode == 1 and 'quantize_weight_bits=1' in done.stderr
  assert set(dense.parent.iterdir()) == before


def test_what_is_forgotten_by_hand(dense, monkeypatch):
  """Two examples of class 0 and one of class 1; the second network errs on one of class 0."""
  trained = folder.load(str(dense))
  label = np.array([0, 0, 1])
  splits = dict(trained.data.splits, test=(trained.data.splits['test'][0][:3], label))
  answers = iter([np.eye(10)[[0, 0, 1]] * 9, np.eye(10)[[0, 4, 1]] * 9])
  monkeypatch.setattr(folder.Trained, 'outputs', lambda self, inputs: next(answers))
  import dataclasses
  data = dataclasses.replace(trained.data, splits=splits)
  trained = dataclasses.replace(trained, data=data)
  found = measure.forgetting(trained, trained)
  assert found['disagree'] == pytest.approx(1 / 3)
  assert found['worst_class'] == '0' and found['worst_class_change'] == -0.5
  assert found['change_of_classes'] == {'0': -0.5, '1': 0.0}


def test_lower_levels_are_taken_where_they_save_more_bits_than_they_err(dense):
  """More rate, fewer bytes; no rate, the levels that were trained."""
  trained = folder.load(str(dense))
  sizes = [len(pack.pack(trained, bits=4, rate=rate)) for rate in (0.0, 0.1, 0.3, 3.0)]
  assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.8 * sizes[0]


def test_a_sweep_of_recipes_trains_once_what_they_share(tmp_path):
  """Recipes with a common beginning: their stages are the runs of `follow`."""
  given = ('--model=mlp', '--dataset=digits', '--width=0.5', '--epochs=1',
           f'--runs_dir={tmp_path}', '--recipes=prune(0.8):1,quantize(4):1,pack;'
           'prune(0.8):1,cluster(16):1')
  done = subprocess.run([sys.executable, '-m', 'experiments.compression_sweep', *given], cwd=ROOT,
                        capture_output=True, text=True, env=dict(os.environ, JAX_PLATFORMS='cpu'))
  assert done.returncode == 0, done.stderr
  rows = markdown.rows(tmp_path / 'report' / 'recipes.csv')
  assert {row['recipe'] for row in rows} == {
      'dense', 'prune(0.8):1,quantize(4):1,pack', 'prune(0.8):1,cluster(16):1'}
  assert sum(bool(row['test_accuracy']) for row in rows) == 1
  runs = [path for path in tmp_path.glob('mlp-*') if (path / 'result.json').exists()]
  assert len(runs) == 1 + 3  # of four stages one is shared
  base = Config().replace(model='mlp', dataset='digits', width=0.5, epochs=1, tensorboard=False,
                          pictures=False, checkpoint_every=0, runs_dir=str(tmp_path)).check()
  start = tmp_path / base.name()
  stages = recipe.parse('prune(0.8):1,quantize(4):1')
  before = {path.name for path in runs}
  for _, place, _ in recipe.follow(stages, base, {}, str(start)):
    assert pathlib.Path(place).name in before
