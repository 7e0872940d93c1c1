"""What is picked under a budget, worked by hand."""

import numpy as np
import pytest

from lepton_jax import run
from lepton_jax.config import Config
from lepton_jax.deploy import budget, comparison, exports, latency
from lepton_jax.errors import UserError
from tests.test_deploy import trained_of

ROWS = [dict(run=name, accuracy=accuracy, kb=kb, ms=ms) for name, accuracy, kb, ms in (
    ('large', 0.98, 100.0, 2.0), ('small', 0.95, 20.0, 1.0), ('fast', 0.95, 40.0, 0.5),
    ('worse', 0.94, 40.0, 0.5), ('twin', 0.95, 20.0, 1.0))]


def names(rows):
  return [row['run'] for row in rows]


def test_the_front_is_what_nothing_beats():
  assert names(budget.front(ROWS)) == ['large', 'small', 'fast', 'twin']


def test_the_most_accurate_that_fits_and_of_equals_the_smallest():
  assert budget.chosen(ROWS, {})['run'] == 'large'
  assert budget.chosen(ROWS, dict(kb=50))['run'] == 'small'
  assert budget.chosen(ROWS, dict(kb=50, ms=0.7))['run'] == 'fast'
  assert budget.chosen(ROWS, dict(kb=50, ms=0.7, accuracy=0.96)) is None


def test_the_nearest_misses_say_by_how_much():
  limits = dict(kb=30, ms=0.7, accuracy=0.96)
  near = budget.nearest(ROWS, limits)
  assert names(near) == ['fast', 'worse', 'small']
  assert budget.missed(near[0], limits) == '10 kb too much, 1.00 points of accuracy'
  assert budget.missed(near[2], limits) == '0.3 ms too much, 1.00 points of accuracy'


def test_a_ratio_is_of_the_times_of_equal_rounds():
  found = latency.side_by_side([sum, sum], range(1000), 3)
  assert found[0]['ratio'] == found[0]['low'] == found[0]['high'] == 1
  assert found[1]['low'] <= found[1]['ratio'] <= found[1]['high']


def test_runs_are_exported_measured_and_rebuilt_by_their_command(small, tmp_path):
  config = small.replace(runs_dir=str(tmp_path), epochs=1, width=0.5).check()
  result = run.train(config, quiet=True)
  place, told = tmp_path / config.name(), []
  (tmp_path / 'empty').mkdir()
  rows = budget.candidates([tmp_path / 'empty', place], tell=told.append)
  assert names(rows) == [str(place)] and not told
  assert rows[0]['accuracy'] == result['validation_accuracy']
  assert rows[0]['kb'] == (place / budget.FILE).stat().st_size / 1000
  command = budget.command(rows[0]['config']).split()
  given = {word.partition('=')[0][2:]: word.partition('=')[2] for word in command[2:]}
  again = Config().replace(**{name: type(Config().flat()[name] or '')(value)
                              if Config().flat()[name] is not None else float(value)
                              for name, value in given.items() if name != 'model'}, model='mlp')
  assert again.name() == config.name()
  # What the file answers on the whole test part is what the run measured.
  row, = comparison.rows([place / budget.FILE], 'test', '', [1], 3, tmp_path)
  assert row['test_accuracy'] == pytest.approx(result['test_accuracy'], abs=1e-9)
  assert row['bytes'] == (place / budget.FILE).stat().st_size and row['memory'] > 0


def test_files_of_unlike_inputs_are_not_compared(small, tmp_path, monkeypatch):
  for name, model in (('a', 'lenet_300_100'), ('b', 'cnn_cifar')):
    exports.write(trained_of(small, monkeypatch, model), 'onnx', tmp_path / f'{name}.onnx')
  with pytest.raises(UserError, match='different inputs'):
    comparison.rows([tmp_path / 'a.onnx', tmp_path / 'b.onnx'], 'test', '', [1], 3, tmp_path)
  with pytest.raises(UserError, match='none of the folders'):
    budget.candidates([])


def test_accuracy_of_a_split_is_counted_over_its_steps_or_examples():
  class Data:
    stream, measure = False, 'accuracy'
    splits = dict(test=(np.zeros((2, 3, 1), np.float32), np.array([[0, 1, -1], [1, 1, 0]])))

  class One:
    answer = staticmethod(lambda inputs: np.tile(np.array([0.0, 1.0], np.float32),
                                                 (len(inputs), 3, 1)))

  assert comparison.accuracy(One, Data, 'test') == dict(accuracy=3 / 5)
