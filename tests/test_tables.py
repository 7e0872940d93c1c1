"""Runs on tables: least squares, units, what is measured, a table that changed."""

import json

import numpy as np
import pytest

from lepton_jax import folder as folder_lib
from lepton_jax import run
from lepton_jax.errors import UserError


def table(path, rows):
  path.write_text('size,price\n' + ''.join(f'{x},{y}\n' for x, y in rows))
  return f'csv:{path}'


@pytest.mark.parametrize('solver', ('closed_form', 'gradient'))
def test_linear_regression_known_answer(tmp_path, small, solver):
  """(100, 8) (120, 9.5) (140, 11) (160, 12.5): intercept 0.5, slope 0.075, so 200 gives 15.5."""
  dataset = table(tmp_path / 'prices.csv', [(100, 8), (120, 9.5), (140, 11), (160, 12.5)])
  config = small.replace(runs_dir=str(tmp_path / 'runs'), model='linear', loss='mse',
                         dataset=dataset, target='price', test_fraction=0.0,
                         validation_fraction=0.0, batch_size=4, epochs=200, checkpoint_every=200,
                         optimizer='sgd', learning_rate=0.3, schedule='constant', solver=solver)
  result = run.train(config, quiet=True)
  assert result['intercept'] == pytest.approx(0.5, abs=1e-4)
  assert result['coefficients']['size'] == pytest.approx(0.075, abs=1e-6)
  trained = folder_lib.load(str(tmp_path / 'runs' / config.name()))
  np.testing.assert_allclose(trained.predict(np.array([[200.0]], np.float32)), [15.5], rtol=1e-5)


def test_regression_measures_in_the_units_of_the_table(tmp_path, small):
  rng = np.random.default_rng(0)
  rows = [(x, 1000 + 50 * x + rng.normal() * 30) for x in rng.uniform(0, 10, 200)]
  config = small.replace(runs_dir=str(tmp_path / 'runs'), model='linear', loss='mse',
                         dataset=table(tmp_path / 't.csv', rows), target='price',
                         solver='closed_form')
  result = run.train(config, quiet=True)
  assert 20 < result['test_rmse'] < 45
  assert result['coefficients']['size'] == pytest.approx(50, abs=3)
  with pytest.raises(UserError, match='linear --loss=mse'):
    run.train(config.replace(model='mlp'), quiet=True)


@pytest.mark.parametrize('options, words', [
    (dict(model='lenet5'), 'lenet5 cannot read'),
    (dict(model='mlp', augment_flip=True), 'augment_flip changes images'),
    (dict(model='mlp', solver='closed_form'), 'closed_form solves'),
    (dict(model='linear', solver='closed_form', ema_decay=0.9), 'knows no --ema_decay'),
    (dict(model='linear', solver='closed_form', prune_layers='.*=0.5'), 'knows no --prune_layers'),
])
def test_options_that_a_table_does_not_bear(tmp_path, small, options, words):
  dataset = table(tmp_path / 't.csv', [(x, 2 * x) for x in range(50)])
  with pytest.raises(UserError, match=words):
    run.train(small.replace(runs_dir=str(tmp_path / 'runs'), loss='mse', dataset=dataset,
                            target='price', **options), quiet=True)
  assert not (tmp_path / 'runs').exists()


def test_regression_rows_have_no_accuracy(tmp_path, small):
  dataset = table(tmp_path / 't.csv', [(x, 2 * x) for x in range(50)])
  config = small.replace(runs_dir=str(tmp_path / 'runs'), model='linear', loss='mse',
                         dataset=dataset, target='price', batch_size=8)
  run.train(config, quiet=True)
  lines = (tmp_path / 'runs' / config.name() / 'metrics.jsonl').read_text().splitlines()
  row = json.loads(lines[-1])
  assert 'train_loss' in row and 'validation_rmse' in row
  assert not any('accuracy' in name for name in row)


def test_a_run_begun_on_other_data_is_not_continued(tmp_path, small):
  rows = [(x, 2 * x) for x in range(50)]
  config = small.replace(runs_dir=str(tmp_path / 'runs'), model='linear', loss='mse',
                         dataset=table(tmp_path / 't.csv', rows), target='price', batch_size=8)
  first = run.train(config, quiet=True)
  table(tmp_path / 't.csv', [(x, 3 * y) for x, y in rows])
  with pytest.raises(UserError, match='begun on other data .* --rerun'):
    run.train(config, quiet=True)
  assert run.train(config.replace(rerun=True), quiet=True)['coefficients'] != first['coefficients']
