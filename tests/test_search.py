"""Searches over ranges, and how long a sweep will take."""

import pytest
from optuna import distributions

from lepton_jax import outcomes
from lepton_jax.errors import UserError
from lepton_jax.sweep import claims, engine, estimate, grid, search


def test_search_draws_on_the_field_s_scale():
  space = search.space(dict(l2=[1e-6, 1e-2], dropout=[0.0, 0.5], hidden=[8, 64],
                            optimizer=['adam', 'sgd'], l1=[0.0, 1e-3, 1e-2]))
  assert space['l2'] == distributions.FloatDistribution(1e-6, 1e-2, log=True)
  assert space['dropout'] == distributions.FloatDistribution(0.0, 0.5)
  assert space['hidden'] == distributions.IntDistribution(8, 64)
  assert space['optimizer'].choices == ('adam', 'sgd') and space['l1'].choices == (0.0, 1e-3, 1e-2)
  with pytest.raises(UserError, match='begin above 0'):
    search.space(dict(l2=[0.0, 1e-2]))
  with pytest.raises(UserError, match='ascend'):
    search.space(dict(dropout=[0.5, 0.1]))
  with pytest.raises(UserError, match='two or more values'):
    search.space({})


def test_search_trains_so_many_settings_once_and_gives_hopeless_ones_up(base, tmp_path):
  lists, lines = dict(learning_rate=[1e-9, 1e-1], seed=[0, 1]), []
  configs, costs = search.search(base.replace(epochs=3), lists, 'tpe', 10, 'inline', lines.append)
  given_up = sum('given up' in text for text in lines)
  finished = [c for c in configs if outcomes.finished(c)]
  assert given_up >= 1 and len(finished) == 2 * (10 - given_up) == costs.trials
  assert len(configs) - len(finished) == given_up
  reasons = [why.split(':')[0] for _, why in outcomes.without_result(configs)]
  assert reasons == ['given up'] * given_up and {c.training.seed for c in finished} == {0, 1}
  before, lines = lines, []
  again, costs = search.search(base.replace(epochs=3), lists, 'tpe', 10, 'inline', lines.append)
  assert [text for text in before if 'given up' in text] == lines
  assert [c.name() for c in again] == [c.name() for c in configs] and costs.trials == 0
  other = claims.take(tmp_path)
  with pytest.raises(UserError, match='another search'):
    search.search(base, lists, 'random', 2, 'inline', lines.append)
  other.release()
  with pytest.raises(UserError, match='inline or devices'):
    search.search(base, lists, 'random', 2, 'processes', lines.append)


def test_estimate_counts_what_is_left(base):
  configs = grid.product(base, dict(seed=[0, 1]))
  assert estimate.estimate(configs, 'inline', 0) > 2 * estimate.TRIAL
  engine.sweep(configs, tell=lambda text: None)
  assert estimate.estimate(configs, 'inline', 0) == 0


def test_a_search_on_numbers_goes_by_the_loss(base, tmp_path):
  """Whatever the flags say of the loss: the data decide."""
  (tmp_path / 't.csv').write_text('size,price\n' + '\n'.join(f'{x},{2 * x}' for x in range(60)))
  base = base.replace(model='linear', width=None, dataset=f'csv:{tmp_path}/t.csv', target='price',
                      task='regression', batch_size=8)
  configs, _ = search.search(base, dict(learning_rate=[1e-3, 1e-1]), 'random', 2, 'inline',
                             lambda text: None)
  assert len(configs) == 2 and all('validation_rmse' in outcomes.finished(c) for c in configs)


def test_equal_draws_are_one_setting_and_a_forbidden_one_is_left_out(base):
  lines = []
  configs, costs = search.search(base, dict(optimizer=['adam', 'sgd']), 'random', 5, 'inline',
                                 lines.append)
  assert len(configs) == costs.trials == 2
  search.search(base, dict(quantize_weight_bits=[0, 1]), 'random', 4, 'inline', lines.append)
  assert any('quantize_weight_bits=1' in text for text in lines)


def test_a_setting_whose_second_seed_fails_has_failed(base):
  lines = []
  for optimizer in ('sgd', 'momentum'):
    folder = outcomes.folder_of(base.replace(optimizer=optimizer, seed=1))
    folder.mkdir()
    (folder / 'data.json').write_text('{"version": "another"}')
  lists = dict(optimizer=['sgd', 'momentum'], seed=[0, 1])
  configs, _ = search.search(base, lists, 'random', 1, 'inline', lines.append)
  assert len(configs) == 2 and outcomes.finished(configs[0]) and outcomes.failure(configs[1])
  assert not any('given up' in text for text in lines)
