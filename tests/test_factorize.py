"""Low-rank factorisation: layers that become two, of any model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import assemble, build_network, factorize, folder, layer_facts, run, trees
from lepton_jax.deploy import measure, pack
from lepton_jax.errors import UserError
from lepton_jax.options import Factorize
from tests import LONG
from tests.test_channels import logits
from tests.test_models import FAMILIES, SHALLOW, SMALL, random_like, tiny_dataset


def of_rank(kernel, rank):
  """A kernel of this rank and nearly the size of the given one."""
  left, values, right = np.linalg.svd(factorize.matrix(kernel), full_matrices=False)
  return ((left[:, :rank] * values[:rank]) @ right[:rank]).reshape(kernel.shape)


@pytest.mark.parametrize('model', [name for name in FAMILIES if name != 'linear'])
def test_kernels_of_low_rank_become_two_layers_with_the_same_answers(small, model, monkeypatch):
  """The law for every registered model, without a line of it in the model."""
  side = SMALL.get(model, 8)
  data = tiny_dataset(model, (side, side, 1), 2)
  config = small.replace(model=model, batch_size=8, sequence_length=8, **SHALLOW.get(model, {}))
  network = build_network.make_network(config, data)
  real = build_network.make_init

  def make_init(*arguments):
    def init(key):
      variables = random_like(jax.eval_shape(lambda: real(*arguments)(key)))
      low = lambda name, leaf: jnp.asarray(of_rank(leaf, 2)) if name.endswith('kernel') else leaf
      return dict(variables, params=trees.map_named(low, variables['params']))
    return init

  monkeypatch.setattr(build_network, 'make_init', make_init)
  whole = assemble.build(config, data)
  narrow = assemble.build(config.replace(factorize_energy=0.9999), data)
  found = narrow.network.widths
  assert found and all(path.endswith('/down') and rank <= 2 for path, rank in found.items())
  assert trees.count(narrow.state.params) < trees.count(whole.state.params)
  one, other = (logits(a.network, data, a.state.evaluated) for a in (whole, narrow))
  np.testing.assert_allclose(other, one, rtol=0.05, atol=0.05 * np.abs(one).max())
  assert not set(layer_facts.grouped_layers(network, data)) & {
      path.removesuffix('/down') for path in found}


def test_ranks_by_energy_and_by_budget_worked_by_hand():
  rng = np.random.default_rng(0)
  diagonal = lambda *values: np.pad(np.diag(np.sqrt(values)), ((0, 20), (0, 30)))
  params = {'a/kernel': diagonal(6.0, 3.0, 1.0), 'b/kernel': diagonal(9.0, 0.9, 0.1),
            'c/kernel': rng.normal(size=(2, 3)), 'd/bias': np.zeros(5)}
  params = trees.nest(params)
  found = factorize.ranks(Factorize(factorize_energy=0.85), params, lambda: {'c'})
  assert found == dict(a=2, b=1)
  # A rank of a or b costs 23 + 33 = 56 parameters; beside the first ones 0.15 * 1518 pays for two,
  # those that keep 0.3 and 0.1 of their kernel.
  found = factorize.ranks(Factorize(factorize_rank=0.15), params, lambda: {'c'})
  assert found == dict(a=3, b=1)
  assert factorize.ranks(Factorize(factorize_rank=0.15, factorize_exclude='b'), params, set) == (
      dict(a=1))
  assert factorize.ranks(Factorize(), params, set) == {}


def test_what_cannot_be_factorised_is_said():
  params = trees.nest({'a/kernel': np.eye(3)})
  for options, words in ((dict(factorize_energy=0.9999), 'no layer gets smaller'),
                         (dict(factorize_energy=0.5, factorize_rank=0.5), 'one of them'),
                         (dict(factorize_rank=0.5, factorize_exclude='x'), 'matches nothing')):
    with pytest.raises(UserError, match=words):
      factorize.ranks(Factorize(**options), params, set)


@pytest.mark.parametrize('options,more', [
    (dict(model='mlp'), dict(prune_structure='channels', prune_sparsity=0.4))] + LONG * [
        (dict(model='lstm_classifier', hidden=24),
         dict(quantize_weight_bits=8, quantize_activation_bits=8))])
def test_a_factorised_run_loads_and_is_compressed_further(small, tmp_path, options, more):
  base = small.replace(runs_dir=str(tmp_path), batch_size=64, epochs=1, **options)
  first = base.replace(factorize_rank=0.3)
  result = run.train(first.check(), quiet=True)
  place = str(tmp_path / first.name())
  ranks = {path for path in result['widths'] if path.endswith('down')}
  assert ranks
  inputs, label = folder.load(place).data.splits['test']
  after = base.replace(init_from=place, **more)
  found = run.train(after.check(), quiet=True)
  assert ranks <= set(found['widths'])
  assert found['num_parameters'] <= result['num_parameters']
  trained = folder.load(str(tmp_path / after.name()))
  assert np.mean(trained.predict(inputs) == label) == pytest.approx(found['test_accuracy'])


def test_zeros_and_levels_of_layers_that_stay_whole_are_kept(small, tmp_path):
  base = small.replace(runs_dir=str(tmp_path), epochs=1, quantize_weight_bits=3,
                       quantize_weights='lsq', quantize_activation_bits=8)
  first = base.replace(prune_sparsity=0.9)
  run.train(first.check(), quiet=True)
  place = str(tmp_path / first.name())
  before = folder.load(place)
  after = base.replace(init_from=place, factorize_rank=0.3, factorize_exclude='dense1',
                       learning_rate=1e-9)
  run.train(after.check(), quiet=True)
  trained = folder.load(str(tmp_path / after.name()))
  kernels = [trees.named(of.weights['params'])['dense1/kernel'] for of in (before, trained)]
  np.testing.assert_array_equal(*(np.asarray(kernel) == 0 for kernel in kernels))
  of = lambda one: {name: np.asarray(leaf) for kind in ('learned', 'held') for name, leaf in
                    trees.named(one.weights[kind]['quantize']).items()}
  own, theirs = of(trained), of(before)
  for name in own.keys() & theirs.keys():
    np.testing.assert_allclose(own[name], theirs[name], rtol=1e-4, err_msg=name)
  # The layers that are new have ranges of their own.
  ends = [name for name in own if name.startswith('ranges/') and name.endswith('high')]
  assert {name.split('/')[1] for name in ends} >= {'dense1', 'dense2'}
  assert all(own[name] != 0 for name in ends)


def test_a_factorised_network_that_lost_channels_is_packed(small, tmp_path):
  narrow = small.replace(runs_dir=str(tmp_path), epochs=1, prune_structure='channels',
                         prune_sparsity=0.4)
  run.train(narrow.check(), quiet=True)
  config = small.replace(runs_dir=str(tmp_path), epochs=1, factorize_rank=0.3,
                         init_from=str(tmp_path / narrow.name()))
  result = run.train(config.check(), quiet=True)
  assert {'dense1', 'dense1/down'} <= set(result['widths'])
  trained = folder.load(str(tmp_path / config.name()))
  again = measure.opened(pack.pack(trained, bits=0, number_bits=0), trained.data)
  inputs = trained.data.splits['test'][0][:50]
  np.testing.assert_allclose(again.outputs(inputs), trained.outputs(inputs), atol=1e-4)
