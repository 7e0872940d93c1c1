"""Pruning: the law of each score, allocation, structure and schedule, and runs by flags."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax import assemble, folder, other_runs, registry, run, trees
from lepton_jax.compress import coupling
from lepton_jax.compress.method import part
from lepton_jax.compress.prune import allocate, channels, masks, method, schedule, structure
from lepton_jax.errors import UserError
from lepton_jax.options import Prune
from tests import LONG
from tests.test_train import assert_same, run_steps

SHAPES = dict(conv=(3, 3, 4, 8), dense=(50, 20), head=(20, 5))


def draw(seed=0, shapes=SHAPES):
  rng = np.random.default_rng(seed)
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def units_of(scores):
  """Units of scores of entries, of which those at -inf are gone."""
  return {name: masks.Units.of(one, one > -np.inf) for name, one in scores.items()}


def masks_of(state):
  return part(state.held['prune'], 'masks')


# masks

@settings(max_examples=50)
@given(values=st.lists(st.integers(0, 3), min_size=1, max_size=60), share=st.floats(0, 1))
def test_an_exact_count_is_lowest_and_of_equal_ones_the_first(values, share):
  score, count = np.array(values, np.float32), round(share * len(values))
  chosen = masks.lowest(score, count)
  first = np.argsort(score, kind='stable')[:count]
  np.testing.assert_array_equal(np.flatnonzero(chosen), np.sort(first))
  # What is no number is the last to go.
  beside = np.append(np.float32(np.nan), score)
  np.testing.assert_array_equal(masks.lowest(beside, count), [False, *chosen])
  np.testing.assert_array_equal(masks.lowest(beside, len(beside)), True)
  np.testing.assert_array_equal(masks.lowest(np.append(np.nan, beside), len(beside)),
                                [True, False, *np.ones(len(score), bool)])


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), share=st.floats(0, 1), levels=st.sampled_from((1, 2, 9, 10 ** 6)),
       order=st.sampled_from((None, 'rising', 'falling', 'period')), beside=st.booleans())
def test_a_sample_finds_the_value_that_a_sort_finds(seed, share, levels, order, beside):
  """Of more values than are sampled, many of them equal, in orders that a sample may miss."""
  rng = np.random.default_rng(seed)
  values = rng.integers(0, levels, 3 * masks.SAMPLE + 5).astype(np.float32)
  if order in ('rising', 'falling'):
    values = np.sort(values)[::1 if order == 'rising' else -1]
  if order == 'period':  # the sample sees the highest alone
    values[::1 + len(values) // masks.SAMPLE] = levels
  if beside:
    values[rng.random(len(values)) < 0.3] = rng.choice([-np.inf, np.inf, np.nan])
  count = max(round(share * len(values)), 1)
  np.testing.assert_array_equal(masks.smallest(values, count), np.sort(values)[count - 1])


def test_dead_weights_stay_dead_beside_a_weight_that_is_zero():
  there = np.array([[True, False], [True, True]])
  units = masks.Units.of(np.array([[0.0, 0.0], [2.0, 3.0]]), there)
  assert (units.gone, units.total) == (1, 4)
  np.testing.assert_array_equal(units.staying(1), [True, False, True, True])
  np.testing.assert_array_equal(units.staying(2), [False, False, True, True])


# allocations

@settings(max_examples=30)
@given(name=st.sampled_from(registry.ALLOCATIONS.names()), share=st.floats(0, 1),
       seed=st.integers(0, 5))
def test_every_allocation_gives_up_exactly_what_is_asked(name, share, seed):
  units = units_of({n: np.abs(kernel) for n, kernel in draw(seed).items()})
  sizes = {n: one.total for n, one in units.items()}
  count = round(share * sum(sizes.values()))
  given_up = registry.ALLOCATIONS.get(name)(units, count)
  assert sum(given_up.values()) == count
  assert all(0 <= given_up[n] <= sizes[n] for n in sizes)


@settings(max_examples=30)
@given(name=st.sampled_from(registry.ALLOCATIONS.names()), share=st.floats(0, 1),
       gone=st.tuples(*[st.floats(0, 1)] * 3), seed=st.integers(0, 5))
def test_every_allocation_counts_what_is_gone_already(name, share, gone, seed):
  rng = np.random.default_rng(seed)
  units = units_of({n: np.where(rng.random(kernel.shape) < part, -np.inf, kernel ** 2)
                    for part, (n, kernel) in zip(gone, draw(seed).items())})
  least = sum(one.gone for one in units.values())
  count = least + round(share * (sum(one.total for one in units.values()) - least))
  given_up = registry.ALLOCATIONS.get(name)(units, count)
  assert sum(given_up.values()) == count
  assert all(one.gone <= given_up[n] <= one.total for n, one in units.items())


def test_uniform_gives_each_kernel_the_same_share():
  scores = draw()
  given_up = allocate.uniform(units_of(scores), round(0.75 * sum(map(np.size, scores.values()))))
  for name, count in given_up.items():
    assert count == pytest.approx(0.75 * scores[name].size, abs=1)


def test_erk_keeps_in_proportion_to_the_sum_over_the_product_of_sides():
  """Density of kernel l: epsilon * (n_in + n_out + h + w) / (n_in n_out h w), 1 at most."""
  scores = draw()
  total = sum(map(np.size, scores.values()))
  given_up = allocate.erk(units_of(scores), round(0.9 * total))
  density = {n: 1 - given_up[n] / scores[n].size for n in scores}
  raw = {n: sum(SHAPES[n]) / np.prod(SHAPES[n]) for n in SHAPES}
  factors = [density[n] / raw[n] for n in scores]
  np.testing.assert_allclose(factors, factors[0], rtol=0.03)
  # At half, the head would keep more than all it has: it stays dense, but for nothing.
  given_up = allocate.erk(units_of(scores), round(0.5 * total))
  assert given_up['head'] == 0 and given_up['dense'] > 0


def test_lamp_is_the_published_score_worked_by_hand():
  # Squares 1, 4, 9: 1/14, 4/13, 9/9 (equation 2 of arXiv:2010.07611).
  found = allocate.lamp_scores(np.array([3.0, 1.0, 2.0]))
  np.testing.assert_allclose(found, [1 / 14, 4 / 13, 1])
  scores = dict(small=np.array([0.1, 0.2, 0.3]), large=np.array([10.0, 20.0, 30.0]))
  assert allocate.lamp(units_of(scores), 4) == dict(small=2, large=2)
  assert allocate.global_(units_of(scores), 3) == dict(small=3, large=0)
  # What is gone counts first, and the ranking is of the rest: 1/14, 4/13, 1 and 1/10, 1.
  gone = dict(small=np.array([0.1, 0.2, 0.3]), large=np.array([-np.inf, 30.0, 10.0]))
  assert allocate.lamp(units_of(gone), 3) == dict(small=1, large=2)
  huge = dict(small=np.array([1.0, 2.0, 3.0]), large=np.array([3e38, np.inf, 1.0], np.float32))
  assert allocate.lamp(units_of(huge), 3) == dict(small=2, large=1)
  endless = dict(small=masks.Units.of(np.array([1.0, -np.inf])))
  assert allocate.lamp(endless, 1) == dict(small=1)
  # Scores with signs count from the lowest: here 0, 2, 4 and 6 of 56.
  signed = allocate.Bins.of(np.array([3.0, -3.0, -1.0, 1.0])).scores
  np.testing.assert_allclose(allocate.lamp_scores(signed), [0, 4 / 56, 16 / 52, 1])


@settings(max_examples=50)
@given(seed=st.integers(0, 1000), share=st.floats(0, 1), signed=st.booleans(),
       digits=st.integers(0, 8))
def test_lamp_finds_by_bins_what_a_ranking_of_all_finds(seed, share, signed, digits):
  rng = np.random.default_rng(seed)
  scores = {str(size): np.round(10.0 ** rng.integers(-9, 4) * rng.normal(size=size), digits)
            for size in (1, 7, 500, 20_000)}
  scores = {n: one if signed else np.abs(one) for n, one in scores.items()}
  gone = rng.random() < 0.5
  scores = {n: np.where(gone & (rng.random(one.shape) < 0.5), -np.inf, one).astype(np.float32)
            for n, one in scores.items()}
  staying = {n: one[one > -np.inf] for n, one in scores.items()}
  least = sum(map(np.size, scores.values())) - sum(map(np.size, staying.values()))
  count = least + round(share * sum(map(np.size, staying.values())))
  above = {n: one - min(one.min(initial=0), 0) for n, one in staying.items()}
  every = {n: allocate.lamp_scores(one) for n, one in above.items()}
  whole = allocate.global_(units_of(every), count - least)
  assert allocate.lamp(units_of(scores), count) == {
      n: scores[n].size - staying[n].size + whole[n] for n in scores}


# structures

@settings(max_examples=30)
@given(n=st.integers(1, 3), extra=st.integers(1, 3), inputs=st.integers(1, 9),
       seed=st.integers(0, 3))
def test_n_of_m_keeps_the_n_highest_of_every_m_inputs(n, extra, inputs, seed):
  m = n + extra
  kind = structure.pattern(f'{n}:{m}')
  score = np.abs(np.random.default_rng(seed).normal(size=(2, inputs, 3)))
  units = kind.units(score)
  kept = structure.chosen_masks(kind, dict(k=units), dict(k=units.total))['k']
  for row in range(2):
    for column in range(3):
      for start in range(0, inputs, m):
        group = score[row, start:start + m, column]
        stays = kept[row, start:start + m, column]
        assert stays.sum() == min(n, len(group))
        assert stays.all() or group[stays].min() >= group[~stays].max()


def test_structures_refuse_what_they_are_not():
  for name in ('channelz', '4:2', '0:4', '2:'):
    with pytest.raises(UserError, match='allowed are none, channels, and N:M'):
      structure.pattern(name)


# schedules

def test_cubic_rises_fast_then_levels_off():
  options = Prune(prune_begin=0.1, prune_end=0.6, prune_updates=10)
  plan = schedule.cubic(options, 1000)
  assert (plan.steps[0], plan.steps[-1], len(plan.steps)) == (100, 600, 11)
  values = [plan.share(step) for step in plan.steps]
  assert values[0] == 0 and values[-1] == 1 and values[5] == pytest.approx(0.875)
  assert np.all(np.diff(values) > 0) and np.all(np.diff(values, 2) < 0)
  assert plan.share(99) == 0 and plan.share(999) == 1
  assert schedule.update_steps(10, 1.0, 1.0, 3) == (9,)


def test_exchanged_share_falls_to_nothing():
  plan = schedule.rigl(Prune(prune_exchange=0.4, prune_begin=0.0, prune_end=0.5), 1000)
  values = [plan.exchange(step) for step in plan.steps if step]
  assert values[0] < 0.4 and values == sorted(values, reverse=True) and values[-1] == 0
  assert plan.steps[0] == 0 and plan.share(0) == 1


# runs

PRUNED = dict(prune_sparsity=0.8, prune_begin=0.0, prune_end=0.1)


@pytest.mark.parametrize('optimizer', ('momentum', 'adam', 'lamb'))
def test_pruned_weights_stay_exactly_zero(small, optimizer):
  config = small.replace(optimizer=optimizer, weight_decay=0.1, l2=1e-3, ema_decay=0.9, **PRUNED)
  state, _, _ = run_steps(config, 12)
  kernels = trees.kernels(state.params)
  total = sum(trees.named(state.params)[n].size for n in kernels)
  for params in (state.params, state.ema['params']):
    named = {n: np.asarray(leaf) for n, leaf in trees.named(params).items()}
    assert sum(int((named[n] == 0).sum()) for n in kernels) == round(0.8 * total)
    assert all(not named[n][~np.asarray(masks_of(state)[n])].any() for n in kernels)


@pytest.mark.parametrize('name', registry.SCORES.names())
def test_every_score_prunes_exactly_and_repeats_itself(small, name):
  config = small.replace(prune_score=name, prune_schedule='one_shot', prune_sparsity=0.7,
                         prune_begin=0.02, prune_batches=2)
  (one, _, _), (two, _, _) = run_steps(config, 6), run_steps(config, 6)
  assert_same(one, two)
  kept = masks_of(one)
  total = sum(mask.size for mask in kept.values())
  assert sum(int((~np.asarray(mask)).sum()) for mask in kept.values()) == round(0.7 * total)


def scores_of(small, name, activation='tanh'):
  """({kernel: score}, weights, their gradients on two batches, tools, assembly) at the start."""
  config = small.replace(prune_score=name, prune_sparsity=0.5, prune_batches=2, width=0.1,
                         activation=activation)
  assembly = assemble.build(config, assemble.load_data(config))
  _, batches, make_tools = assembly.make_hooks.args
  tools, state = make_tools(batches, lambda b: b, slice(None), jax.jit), assembly.state
  ranked = sorted(masks_of(state))
  evidence = method.evidence(config, tools, ranked, {}, state, 0)
  found = registry.SCORES.get(name)(evidence)
  gradients = [trees.named(jax.grad(tools.loss)(state.params, state, assembly.batches.at(i)))
               for i in range(2)]
  return found, trees.named(state.params), gradients, tools, assembly


def test_scores_are_the_published_formulas(small):
  saliency, w, (one, two), _, _ = scores_of(small, 'saliency')
  for name, score in saliency.items():
    wanted = (np.abs(w[name] * one[name]) + np.abs(w[name] * two[name])) / 2
    np.testing.assert_allclose(score, wanted, rtol=1e-4, atol=1e-9)
  snip, *_ = scores_of(small, 'snip')
  for name, score in snip.items():
    wanted = np.abs(w[name] * (one[name] + two[name]) / 2)
    np.testing.assert_allclose(score, wanted, rtol=1e-4, atol=1e-9)
  grasp, *_, tools, assembly = scores_of(small, 'grasp')
  for name, score in grasp.items():  # w * (g(w + h g) - g(w - h g)) / 2h, by batch
    def curved(i, found, step=1e-3, name=name):
      def moved(sign):
        shifted = trees.map_named(lambda n, p: p + sign * step * found[n], assembly.state.params)
        gradient = jax.grad(tools.loss)(shifted, assembly.state, assembly.batches.at(i))
        return trees.named(gradient)[name]
      return (moved(1) - moved(-1)) / (2 * step)

    wanted = w[name] * (curved(0, one) + curved(1, two)) / 2
    np.testing.assert_allclose(score, wanted, rtol=0.05, atol=2e-2 * np.abs(wanted).max())


def test_synflow_conserves_what_flows_through_each_layer(small):
  """The scores of each layer add up alike where no bias adds to the flow (arXiv:2006.05467)."""
  score, *_ = scores_of(small, 'synflow', 'relu')
  sums = [float(jnp.sum(one)) for one in score.values()]
  np.testing.assert_allclose(sums, sums[0], rtol=1e-3)


def test_movement_adds_up_minus_weight_times_gradient(small):
  config = small.replace(prune_score='movement', prune_sparsity=0.5, prune_begin=0.9,
                         prune_end=0.9, optimizer='sgd', learning_rate=0.1, schedule='constant')
  before, _, _ = run_steps(config, 1)
  after, _, _ = run_steps(config, 2)
  for name, sum_ in part(after.held['prune'], 'movement').items():
    w, new = trees.named(before.params)[name], trees.named(after.params)[name]
    gradient = (w - new) / 0.1  # what plain descent subtracted
    step = sum_ - part(before.held['prune'], 'movement')[name]
    np.testing.assert_allclose(step, -w * gradient, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize('options', [
    dict(), dict(prune_gradient='straight_through'), dict(prune_structure='2:4'),
    dict(prune_allocation='uniform'), dict(prune_layers='.*=0.45')])
def test_zeros_of_another_run_stay_and_a_loaded_network_is_the_measured_one(small, tmp_path,
                                                                            options):
  base = small.replace(runs_dir=str(tmp_path), epochs=1, prune_begin=0.0, prune_end=0.3)
  first = base.replace(prune_sparsity=0.7, **{k: v for k, v in options.items()
                                              if k == 'prune_gradient'})
  run.train(first, quiet=True)
  place = f'{tmp_path}/{first.name()}'
  before = {n: np.asarray(leaf) for n, leaf in trees.named(counted(place)).items()
            if trees.is_kernel(n)}
  sparsity = 0.45 if 'prune_structure' in options else 0.8
  if 'prune_gradient' in options:  # dead weights were stored beside the masks; now they stay dead
    options, sparsity = {}, 0.0
  again = base.replace(init_from=place, prune_sparsity=sparsity, **options)
  result = run.train(again, quiet=True)
  after = {n: np.asarray(leaf) for n, leaf in
           trees.named(counted(f'{tmp_path}/{again.name()}')).items()}
  for name, kernel in before.items():
    assert 0 < (kernel == 0).mean() < 1 and not after[name][kernel == 0].any()
  zeros = sum(int((after[n] == 0).sum()) for n in before) / sum(k.size for k in before.values())
  assert zeros == pytest.approx(result['sparsity'], abs=1e-6) and zeros > 0.69


def counted(place):
  trained = folder.load(place)
  compression = trained.network.compression
  return compression.counted(trained.weights, trained.hparams)['params']


def test_movement_needs_updates_to_sum_up(small):
  for options in (dict(prune_schedule='rigl'), dict(prune_begin=0.0)):
    with pytest.raises(UserError, match='takes a --prune_begin above 0'):
      run_steps(small.replace(prune_score='movement', prune_sparsity=0.5, **options), 1)


@pytest.mark.parametrize('name', ('set', 'rigl'))
def test_exchanged_weights_keep_the_sparsity_and_start_at_zero(small, name):
  config = small.replace(prune_schedule=name, prune_allocation='erk', prune_sparsity=0.9,
                         prune_begin=0.04, prune_end=0.5, prune_updates=5)
  data = assemble.load_data(config)
  assembly = assemble.build(config, data)
  step, state = jax.jit(assembly.train_step()), assembly.state
  hooks = assembly.make_hooks(lambda b: b, slice(None), jax.jit)
  exchanged = 0
  for i in range(30):
    old = state
    for hook in hooks:
      state = hook(state, i)
    new, before = masks_of(state), masks_of(old)
    total = sum(mask.size for mask in new.values())
    assert sum(int(mask.sum()) for mask in new.values()) == total - round(0.9 * total)
    for kernel, mask in new.items():
      if i:
        assert int(mask.sum()) == int(before[kernel].sum())
        grown = np.asarray(mask & ~before[kernel])
        exchanged += int(grown.sum())
        moments = [leaf for n, leaf in trees.named(state.opt_state).items()
                   if n.endswith(f'params/{kernel}')]
        assert len(moments) == 2  # of Adam
        for leaf in (trees.named(state.params)[kernel], *moments):
          assert not np.asarray(leaf)[grown].any()
    state, _ = step(state, assembly.batches.at(i))
  assert exchanged > 100


def test_the_most_promising_come_back(monkeypatch):
  plan = schedule.Plan((0, 5), lambda step: 1.0, lambda step: 0.5, 'random')
  before = dict(k=np.array([True, True, True, True, False, False, False, False]))
  score = dict(k=np.array([4.0, 1.0, 3.0, 2.0, -np.inf, -np.inf, -np.inf, -np.inf]))
  promise = dict(k=np.array([0, 0, 0, 0, 1.0, 9.0, 3.0, 8.0]))
  monkeypatch.setattr(method, 'growth', lambda *_: promise)
  kept = method.exchanged(plan, None, units_of(score), before, None, 5, 0)['k']
  np.testing.assert_array_equal(kept, [True, False, True, False, False, True, False, True])


def test_straight_through_lets_dead_weights_come_back(small):
  config = small.replace(prune_gradient='straight_through', prune_sparsity=0.8, prune_begin=0.0,
                         prune_end=0.8, prune_updates=20, learning_rate=0.05)
  early, _, _ = run_steps(config, 8)
  later, _, _ = run_steps(config, 20)
  back = [np.asarray(masks_of(later)[n] & ~mask).sum()
          for n, mask in masks_of(early).items()]
  assert sum(back) > 0
  network = assemble.build(config, assemble.load_data(config)).network
  counted = network.compression.counted(later.evaluated, later.hparams)
  for name, mask in masks_of(later).items():
    assert not np.asarray(trees.named(counted['params'])[name])[~np.asarray(mask)].any()


def test_sparsities_by_layer(small):
  config = small.replace(prune_layers='dense1=0.5;head=0', **PRUNED)
  state, _, _ = run_steps(config, 10)
  share = {n: 1 - np.mean(np.asarray(mask)) for n, mask in masks_of(state).items()}
  assert share == {'dense1/kernel': pytest.approx(0.5, abs=1e-3), 'head/kernel': 0,
                   'dense2/kernel': pytest.approx(0.8, abs=1e-3)}
  alone = small.replace(prune_layers='head=0.6', prune_begin=0.0, prune_end=0.1)
  alone, _, _ = run_steps(alone, 10)
  assert list(masks_of(alone)) == ['head/kernel']
  assert np.mean(np.asarray(masks_of(alone)['head/kernel'])) == pytest.approx(0.4, abs=1e-3)
  for text, words in (('nothing=0.5', 'matches nothing. Paths: dense1/kernel'),
                      ('dense1', 'lacks a value'), ('dense1=2', 'at least 0 and below 1'),
                      ('(=0.5', 'not a regular expression')):
    with pytest.raises(UserError, match=words):
      run_steps(small.replace(prune_layers=text, **PRUNED), 1)


def test_two_of_four_by_flags(small):
  state, _, _ = run_steps(small.replace(prune_structure='2:4', prune_sparsity=0.5, prune_begin=0.0,
                                        prune_end=0.1), 10)
  for name, kernel in trees.named(state.params).items():
    if trees.is_kernel(name):
      groups = np.asarray(kernel).reshape(-1, 4, kernel.shape[-1])
      assert set(np.unique((groups != 0).sum(1))) <= {0, 1, 2} and (groups != 0).any()
  half = small.replace(prune_structure='2:4', prune_sparsity=0.5)
  assembly = assemble.build(half, assemble.load_data(half))
  with pytest.raises(UserError, match='leaves out 0.5 at most'):
    run_steps(half.replace(prune_sparsity=0.8), 1)
  with pytest.raises(UserError, match='leaves out 0.5 at most'):  # a trial of the same program
    assembly.another(half.replace(prune_sparsity=0.8))
  with pytest.raises(UserError, match='it takes --prune_structure=none'):
    run_steps(small.replace(prune_structure='2:4', prune_sparsity=0.5, prune_schedule='rigl'), 1)


def test_prune_exclude_keeps_kernels_dense(small):
  state, _, _ = run_steps(small.replace(prune_exclude='^head', **PRUNED), 10)
  assert set(masks_of(state)) == {'dense1/kernel', 'dense2/kernel'}
  assert not np.any(np.asarray(state.params['head']['kernel']) == 0)
  for pattern, words in (('conv', 'matches nothing. Paths: dense1/kernel'),
                         ('(', 'not a regular expression'), ('.', 'leave no kernel')):
    with pytest.raises(UserError, match=words):
      run_steps(small.replace(prune_sparsity=0.8, prune_exclude=pattern), 1)


def test_a_ticket_prunes_by_another_run_and_keeps_its_own_weights(small, tmp_path):
  base = small.replace(runs_dir=str(tmp_path), epochs=1, tensorboard=False, pictures=False)
  run.train(base, quiet=True)
  folder = str(tmp_path / base.name())
  config = base.replace(prune_ticket=folder, prune_sparsity=0.8, prune_schedule='one_shot',
                        prune_begin=0.0, prune_allocation='global')
  data = assemble.load_data(config)
  assembly = assemble.build(config, data, **other_runs.read(config, data))
  state = assembly.state
  for hook in assembly.make_hooks(lambda b: b, slice(None), jax.jit):
    state = hook(state, 0)
  trained = trees.named(other_runs.read(config, data)['ticket']['params'])
  fresh = trees.named(assembly.state.params)
  units = units_of({n: np.abs(trained[n]) for n in masks_of(state)})
  counts = allocate.global_(units, round(0.8 * sum(one.total for one in units.values())))
  for name, mask in masks_of(state).items():
    wanted = units[name].staying(counts[name]).reshape(mask.shape)
    np.testing.assert_array_equal(mask, wanted)
    np.testing.assert_array_equal(trees.named(state.params)[name],
                                  np.where(wanted, fresh[name], 0))
  with pytest.raises(UserError, match='--prune_schedule=one_shot --prune_begin=0'):
    assemble.build(config.replace(prune_begin=0.5), data, **other_runs.read(config, data))


def test_a_ticket_is_what_scores_of_gradients_look_at_too(small, tmp_path):
  base = small.replace(runs_dir=str(tmp_path), epochs=1, tensorboard=False, pictures=False)
  run.train(base, quiet=True)
  ticket = str(tmp_path / base.name())
  for score in ('saliency', 'snip') + LONG * ('synflow', 'grasp'):
    shares = dict(prune_score=score, prune_sparsity=0.8, prune_schedule='one_shot',
                  prune_begin=0.0, seed=1)
    found = []
    # The weights of the ticket, as those of this run and as what says what is pruned in another.
    for options in (dict(init_from=ticket), dict(prune_ticket=ticket)):
      config = base.replace(**shares | options)
      data = assemble.load_data(config)
      assembly = assemble.build(config, data, **other_runs.read(config, data))
      state, = (hook(assembly.state, 0) for hook in assembly.make_hooks(
          lambda batch: batch, slice(None), jax.jit))
      found.append(masks_of(state))
    for name, mask in found[0].items():
      np.testing.assert_array_equal(mask, found[1][name], err_msg=(score, name))


def test_a_ticket_is_judged_without_what_is_dead_in_it(small, tmp_path):
  """Straight through, dead weights are kept beside those that count."""
  base = small.replace(runs_dir=str(tmp_path), epochs=1, prune_sparsity=0.5)
  ticket = base.replace(prune_gradient='straight_through')
  run.train(ticket.check(), quiet=True)
  place = str(tmp_path / ticket.name())
  config = base.replace(prune_ticket=place, prune_schedule='one_shot', prune_begin=0.0)
  found = trees.named(other_runs.read(config, assemble.load_data(config))['ticket']['params'])
  weights = folder.read_weights(place)[0]
  dead = {name: ~np.asarray(mask) for name, mask in method.masks_of(weights).items()}
  raw = trees.named(weights['params'])
  assert any(np.asarray(raw[name])[mask].any() for name, mask in dead.items())
  assert not any(np.asarray(found[name])[mask].any() for name, mask in dead.items())


def test_sparsity_is_exact_where_zeros_that_stay_have_moved(small):
  """Straight through, a weight that is gone for good goes on moving, and may rank high."""
  config = small.replace(prune_sparsity=0.9, prune_gradient='straight_through', prune_begin=0.0,
                         prune_end=0.05, prune_updates=3, learning_rate=0.1)
  data = assemble.load_data(config)
  start = assemble.build(config, data).state
  pruned = trees.map_named(
      lambda name, leaf: jnp.where(jnp.arange(leaf.size).reshape(leaf.shape) % 20 < 17, 0, leaf)
      if trees.is_kernel(name) else leaf, start.params)
  initial = dict(params=pruned, model_state=start.model_state, held={}, learned={})
  assembly = assemble.build(config, data, initial=initial)
  step, state = jax.jit(assembly.train_step(None)), assembly.state
  hooks = assembly.make_hooks(lambda batch: batch, slice(None), jax.jit)
  for i in range(8):
    for hook in hooks:
      state = hook(state, i)
    state, _ = step(state, assembly.batches.at(i))
  found = {name: np.asarray(mask) for name, mask in masks_of(state).items()}
  for name, mask in found.items():
    begun = np.asarray(trees.named(pruned)[name]) != 0
    assert not (mask & ~begun).any()
    moved = np.asarray(trees.named(state.params)[name])[~begun]
    assert (moved != 0).any()
  total = sum(mask.size for mask in found.values())
  assert sum(int((~mask).sum()) for mask in found.values()) == round(0.9 * total)


# a peer's numbers

@pytest.fixture(scope='module')
def golden():
  with np.load(pathlib.Path(__file__).parent / 'golden' / 'pruning.npz') as found:
    return {kind: part(dict(found), kind) for kind in (
        'kernel', 'magnitude', 'global', 'lamp', 'two_of_four', 'filters')}


@pytest.mark.parametrize('kind,pattern,allocation', [
    ('magnitude', 'none', None), ('global', 'none', 'global'), ('lamp', 'none', 'lamp'),
    ('two_of_four', '2:4', None)])
def test_masks_are_those_of_pytorch_and_of_the_definition(golden, kind, pattern, allocation):
  """PyTorch's own pruning, and LAMP worked one weight after the other: tests/golden."""
  found = structure.pattern(pattern)
  scores = {name: np.abs(kernel) for name, kernel in golden['kernel'].items()}
  units = {name: found.units(score) for name, score in scores.items()}
  if allocation is None:
    share = 0.7 if pattern == 'none' else 1.0
    counts = {name: round(share * one.total) for name, one in units.items()}
  else:
    count = round(0.7 * sum(one.total for one in units.values()))
    counts = registry.ALLOCATIONS.get(allocation)(units, count)
  for name, mask in structure.chosen_masks(found, units, counts).items():
    np.testing.assert_array_equal(mask, golden[kind][name], err_msg=name)


def test_filters_of_the_lowest_norm_are_those_of_pytorch(golden):
  scores = {name: np.abs(kernel) for name, kernel in golden['kernel'].items()}
  for name, score in scores.items():
    outputs = np.arange(score.shape[-1])[:, None]
    group = coupling.Group({name: ((score.ndim - 1, outputs),)}, (name,))
    gone = masks.lowest(channels.mean_by_channel(group, scores), score.shape[-1] // 2)
    kept = coupling.without(group, gone, {name: score.shape})[name]
    np.testing.assert_array_equal(kept, golden['filters'][name])
