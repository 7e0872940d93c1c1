"""What `import lepton_jax` offers to other programs."""

import inspect
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import lepton_jax
from lepton_jax import registry

ROOT = pathlib.Path(__file__).parents[1]


def fresh(code):
  """What a new process prints."""
  return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT,
                        check=True).stdout.split()


def test_names_are_listed_documented_and_found():
  names = {'Config', 'DATASETS', 'MODELS', 'UserError', 'load', 'train'}
  assert set(lepton_jax.__all__) == names <= set(dir(lepton_jax))
  for name in names:
    assert f'{name}:' in lepton_jax.__doc__ or f'{name},' in lepton_jax.__doc__
    assert getattr(lepton_jax, name) is not None
  assert lepton_jax.MODELS is registry.MODELS and lepton_jax.DATASETS is registry.DATASETS
  with pytest.raises(AttributeError, match="no attribute 'tarin'"):
    _ = lepton_jax.tarin


def test_names_need_no_numerical_library_until_something_is_trained_or_loaded():
  assert fresh('import sys, lepton_jax\n'
               'before = sorted(m for m in sys.modules if m.startswith("lepton_jax."))\n'
               'lepton_jax.Config().replace(model="mlp").check(); dir(lepton_jax)\n'
               'lepton_jax.train, lepton_jax.UserError\n'
               'heavy = ("jax", "numpy", "flax", "absl")\n'
               'print(before, sorted(m for m in heavy if m in sys.modules))') == ['[]', '[]']


@pytest.mark.parametrize('first', ['lepton_jax.train', 'lepton_jax.load', 'import lepton_jax.run'])
def test_train_is_a_function_and_a_package_whatever_is_imported_first(first):
  assert fresh(f'import lepton_jax\n{first}\n'
               'import lepton_jax.train.loop as loop\n'
               'from lepton_jax.train import loop as same\n'
               'print(callable(lepton_jax.train), lepton_jax.train.loop is loop is same)'
               ) == ['True', 'True']
  from lepton_jax import run
  assert inspect.signature(lepton_jax.train) == inspect.signature(run.train)


@pytest.fixture
def one_layer():
  """The name of a model that a user registers."""
  @lepton_jax.MODELS.register
  def one_layer(*, outputs):
    from lepton_jax.models.dense import DenseNetwork
    return DenseNetwork((), outputs)

  yield one_layer.__name__
  del registry.MODELS._functions['one_layer']


def test_a_model_of_ones_own_is_trained_loaded_and_predicts(small, tmp_path, one_layer):
  config = small.replace(model=one_layer, runs_dir=str(tmp_path), learning_rate=0.01)
  result = lepton_jax.train(config, quiet=True)
  assert result['num_parameters'] == 64 * 10 + 10
  network = lepton_jax.load(tmp_path / result['name'])
  inputs, label = network.data.splits['test']
  assert np.mean(network.predict(inputs) == label) == result['test_accuracy'] > 0.8
