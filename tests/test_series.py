"""Time series."""

import numpy as np
import pytest

from lepton_jax import run
from lepton_jax.config import Config
from lepton_jax.data import dataset
from lepton_jax.errors import UserError


def make_series(path, rows=400, change_from=None):
  time = np.arange(rows)
  load = 10 + 3 * np.sin(2 * np.pi * time / 24) + np.random.default_rng(0).normal(0, 0.5, rows)
  if change_from is not None:
    load[change_from:] += 100
  heat = 20 + np.cos(2 * np.pi * time / 24)
  start = np.datetime64('2020-01-01T00')
  rows = ''.join(f'{start + t},{a},{b}\n' for t, a, b in zip(time, load, heat))
  path.write_text('date,load,heat\n' + rows)
  return dict(dataset=f'series:{path}', target='load', window=48, horizon=4)


def test_series_windows_and_no_leak_from_the_future(tmp_path):
  options = make_series(tmp_path / 's.csv')
  first = dataset.load(Config().replace(**options).data)
  inputs, label = first.splits['train']
  assert inputs.shape[1:] == (48, 2) and label.shape[1:] == (4,)
  assert first.columns == ('load', 'heat')
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
    ('date,load\n2020,1\n2021,x\n', "line 3: load is 'x'"),
    ('date,load\n2020,1\n2021\n', 'line 3: 1 columns'),
    ('date,load\n2021,1\n2020,2\n', 'line 3: date must rise'),
    ('date,load\n2020,1\n2021,2\n', 'too few for --window=48'),
    ('day,load\n2020,1\n', "unknown column 'date'"),
])
def test_bad_series_are_named(tmp_path, content, words):
  (tmp_path / 's.csv').write_text(content)
  with pytest.raises(UserError, match=words):
    options = dict(dataset=f'series:{tmp_path}/s.csv', target='load', window=48)
    dataset.load(Config().replace(**options).data)


def test_regressor_beats_the_naive_forecasts(tmp_path, small):
  from lepton_jax import evaluation, folder, run
  config = small.replace(**make_series(tmp_path / 's.csv'), model='gru_regressor', hidden=16,
                         epochs=30, learning_rate=0.01, runs_dir=str(tmp_path / 'runs'),
                         checkpoint_every=30)
  result = run.train(config, quiet=True)
  report, _ = evaluation.full_report(folder.load(str(tmp_path / 'runs' / config.name())), 'test')
  assert report['rmse'] == pytest.approx(result['test_rmse'], rel=1e-5)
  assert report['rmse'] < min(b['rmse'] for b in report['baselines'].values())


def test_bad_rows_of_a_series_are_left_out_only_on_request(tmp_path, capsys):
  options = make_series(tmp_path / 's.csv')
  with (tmp_path / 's.csv').open('a') as file:
    file.write('2030-01-01T00,12,nan\n')
  with pytest.raises(UserError, match='line 402: heat is .nan., not a finite number'):
    dataset.load(Config().replace(**options).data)
  data = dataset.load(Config().replace(skip_bad_rows=True, **options).data)
  assert '1 bad rows left out of 401' in capsys.readouterr().out
  assert data.size('test') == 400 - 320 - 3


def test_a_relative_forecast_moves_with_its_level(tmp_path, small):
  """A constant added to what is seen is added to the forecast, unlike in an absolute forecast."""
  from lepton_jax import evaluation, folder, run
  config = small.replace(**make_series(tmp_path / 's.csv'), relative=True, model='elman_regressor',
                         hidden=8, epochs=8, learning_rate=0.01, runs_dir=str(tmp_path / 'runs'),
                         checkpoint_every=30)
  result = run.train(config, quiet=True)
  trained = folder.load(str(tmp_path / 'runs' / config.name()))
  inputs, label = trained.data.splits['test']
  np.testing.assert_allclose(trained.predict(inputs + 50), trained.predict(inputs) + 50, atol=1e-3)
  report, _ = evaluation.full_report(trained, 'test')
  assert report['rmse'] == pytest.approx(result['test_rmse'], rel=1e-4)
  assert report['rmse'] < report['baselines']['last_value']['rmse']
  with pytest.raises(UserError, match='digits is none'):
    dataset.load(small.replace(relative=True).data)


def test_time_is_compared_as_numbers_where_it_is(tmp_path):
  content = 'date,load\n' + ''.join(f'{t},{t % 7}\n' for t in range(1, 41))
  (tmp_path / 's.csv').write_text(content)

  def load(**options):
    defaults = dict(dataset=f'series:{tmp_path}/s.csv', target='load', window=8)
    return dataset.load(Config().replace(**(defaults | options)).data)
  assert load().size('train') == 29 - 8
  for options, words in ((dict(target='date'), "unknown column 'date'"),
                         (dict(target='load,load'), 'twice'),
                         (dict(horizon=9), 'the validation part has 3 rows'),
                         (dict(folds=3), 'split along time')):
    with pytest.raises(UserError, match=words):
      load(**options)
  (tmp_path / 's.csv').write_text(content + '40,1\n')
  with pytest.raises(UserError, match='line 42: date must rise'):
    load()


@pytest.mark.parametrize('relative', (False, True))
@pytest.mark.parametrize('solver', ('closed_form', 'gradient'))
def test_linear_forecasts_of_a_series(tmp_path, small, solver, relative):
  """Least squares finds the linear rule that made the series, of values or of changes."""
  values = [1.0, 2.0]
  for _ in range(398):
    values.append(1.6 * values[-1] - 0.9 * values[-2] + 3)
  noisy = np.array(values) + np.random.default_rng(0).normal(0, 1e-3, 400)
  start = np.datetime64('2020-01-01T00')
  rows = ''.join(f'{start + t},{value}\n' for t, value in enumerate(noisy))
  (tmp_path / 's.csv').write_text('date,y\n' + rows)
  config = small.replace(model='linear', width=None, loss='mse', dataset=f'series:{tmp_path}/s.csv',
                         target='y', window=6, horizon=2, relative=relative, solver=solver,
                         epochs=1, runs_dir=str(tmp_path / 'runs'))
  result = run.train(config, quiet=True)
  assert 'coefficients' not in result  # a table's alone
  if solver == 'closed_form':
    assert result['test_rmse'] < 0.1 * noisy.std()
