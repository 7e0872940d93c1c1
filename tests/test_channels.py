"""Channels that are found in a traced program, masked, and really removed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import (
  assemble,
  build_network,
  folder,
  layer_facts,
  other_runs,
  registry,
  removal,
  run,
  trees,
)
from lepton_jax.compress import coupling as coupling_lib
from lepton_jax.compress.prune import channel_scores, channels
from lepton_jax.compress.prune import method as prune
from lepton_jax.compress.prune.masks import Units
from lepton_jax.compress.prune.scores import Evidence
from lepton_jax.compress.quantize import weights as quantizers
from lepton_jax.errors import UserError
from tests import LONG
from tests.test_models import FAMILIES, SHALLOW, SMALL, random_like, tiny_dataset

EXTRA = [('bilstm_classifier', dict(depth=2)), ('gru_classifier', dict(depth=2)),
         ('lstm_lm', dict(tied=True, embedding=8, hidden=8)), ('resnet8', dict(norm='none')),
         ('ds_cnn', dict(width=0.1, share=0.99)), *LONG * [
             ('resnet20', dict(width=0.5, depth=2)), ('bilstm_classifier', dict(pooling='max')),
             ('mobilenet_v1', dict(width=0.05, share=0.9))]]


def assembled(small, monkeypatch, model, **options):
  """The Assembly of a model with random weights, on data that it can read."""
  side = SMALL.get(model, 8)
  data = tiny_dataset(model, (side, side, 1), 2)
  real = build_network.make_init

  def make_init(*arguments):
    return lambda key: random_like(jax.eval_shape(lambda: real(*arguments)(key)))

  monkeypatch.setattr(build_network, 'make_init', make_init)
  config = small.replace(model=model, batch_size=8, sequence_length=8,
                         **SHALLOW.get(model, {}) | options)
  return assemble.build(config, data), data


def coupled(assembly, data):
  state = assembly.state
  return layer_facts.coupled(assembly.network, state.params, state.evaluated['model_state'], data)


def masked(state, coupling, share, seed=0):
  """(state under masks without a share of each group's channels at random, channels that go)."""
  rng = np.random.default_rng(seed)
  counts = {name: channels.allowed(coupling, 1, name, group.channels, round(share * group.channels))
            for name, group in coupling.groups.items()}
  units = {name: Units.of(rng.random(group.channels)) for name, group in coupling.groups.items()}
  return prune.with_masks(state, channels.chosen(coupling, units, counts), {}, False), counts


def logits(network, data, weights):
  inputs = jnp.asarray(data.splits['train'][0][:8])
  state = weights['model_state']
  if data.stream:
    inputs, state = inputs[None], dict(state, carry=network.carry(1))
  counted = network.compression.counted(weights, {})
  return np.asarray(network.forward(counted, state, network.scaling.inputs(inputs), {})[0])


@pytest.mark.parametrize(
    'model,options', [(name, {}) for name in FAMILIES if name != 'linear'] + EXTRA)
def test_a_model_without_channels_answers_as_the_masked_one(small, model, options, monkeypatch):
  """The law for every registered model, without a line of it in the model."""
  options = dict(options)
  share = options.pop('share', 0.3)
  on = dict(prune_structure='channels', prune_sparsity=share)
  assembly, data = assembled(small, monkeypatch, model, **options | on)
  coupling = coupled(assembly, data)
  state, counts = masked(assembly.state, coupling, share)
  assert sum(counts.values())
  network, weights = removal.narrowed(assembly.network, data, state.evaluated, {})
  whole = logits(assembly.network, data, state.evaluated)
  np.testing.assert_allclose(logits(network, data, weights), whole, rtol=1e-5,
                             atol=1e-5 * max(1, np.abs(whole).max()))
  left = layer_facts.coupled(network, weights['params'], weights['model_state'], data)
  before = {group.signature: group.channels - counts[name]
            for name, group in coupling.groups.items()}
  assert {group.signature: group.channels for group in left.groups.values()} == before
  # Nothing of what is left is masked, and what is left is all that was not.
  assert not prune.masks_of(weights)
  alive = {name: np.asarray(mask) for name, mask in prune.masks_of(state.evaluated).items()}
  for name, leaf in trees.named(weights['params']).items():
    assert leaf.size == (alive[name].sum() if name in alive else np.size(
        trees.named(state.params)[name])), name


QUANTIZERS = registry.WEIGHT_QUANTIZERS.names()


@pytest.mark.parametrize('granularity', ['channel', 'tensor'])
@pytest.mark.parametrize('name', QUANTIZERS if LONG else (
    'binary', 'dorefa', 'lsq', 'ternary', 'ttq'))
def test_rounded_kernels_stay_as_they_are_when_channels_leave(small, monkeypatch, name,
                                                              granularity):
  bits = registry.WEIGHT_QUANTIZERS.get(name)().bits or 3
  on = dict(width=0.25, prune_structure='channels', prune_sparsity=0.3, quantize_weights=name,
            quantize_weight_bits=bits, quantize_granularity=granularity)
  if quantizers.counts_zeros(name):
    with pytest.raises(UserError, match='prune first'):
      assembled(small, monkeypatch, 'mlp', **on)
    return
  assembly, data = assembled(small, monkeypatch, 'mlp', **on)
  state, _ = masked(assembly.state, coupled(assembly, data), 0.3)
  whole = assembly.network.compression.counted(state.evaluated, state.hparams)
  network, fewer = removal.narrowed(assembly.network, data, state.evaluated, state.hparams)
  left = network.compression.counted(fewer, state.hparams)
  for of, kernel in trees.named(left['params']).items():
    if trees.is_kernel(of):
      before, after = (np.asarray(found) for found in (trees.named(whole['params'])[of], kernel))
      dense = lambda found: found[found.any(1)][:, found.any(0)]
      assert after.any()
      np.testing.assert_allclose(dense(after), dense(before), rtol=1e-5, err_msg=of)


def test_quantizers_whose_levels_count_zeros_are_found_by_trying():
  assert {name for name in QUANTIZERS if quantizers.counts_zeros(name)} == {'ternary'}


@pytest.mark.parametrize('learned,counts', [
    (lambda kernel: jnp.ones(kernel.shape[-1]), False), (jnp.ones_like, False),
    (lambda kernel: jnp.ones(3), True)])
def test_quantizers_that_learn_in_other_shapes_are_tried_too(monkeypatch, learned, counts):
  """A number an output, one an entry; what does not fit a wider kernel counts zeros."""
  def scaled():
    return quantizers.Quantizer(
        lambda kernel, bits, axes, own: jnp.round(kernel * own['scale']),
        lambda kernel, bits, axes: dict(scale=learned(kernel)), most=2)

  monkeypatch.setitem(registry.WEIGHT_QUANTIZERS._functions, f'scaled{learned}', scaled)
  assert quantizers.counts_zeros(f'scaled{learned}') == counts


def test_groups_are_those_of_a_residual_network_worked_by_hand(small, monkeypatch):
  """ResNet with padded shortcuts: 4 channels run through, 4 and 8 come with the wider stages."""
  assembly, data = assembled(small, monkeypatch, 'resnet20', width=0.25, depth=1)
  groups = coupled(assembly, data).groups
  sizes = {name: group.channels for name, group in groups.items()}
  assert sizes == {
      'stage1_block1/conv1/kernel': 4, 'stage1_block1/conv2/kernel': 4,
      'stage2_block1/conv1/kernel': 8, 'stage2_block1/conv2/kernel': 4,
      'stage3_block1/conv1/kernel': 16, 'stage3_block1/conv2/kernel': 8}
  through = groups['stage1_block1/conv2/kernel']
  assert set(through.made_by) == {'stem/kernel', 'stage1_block1/conv2/kernel',
                                  'stage2_block1/conv2/kernel', 'stage3_block1/conv2/kernel'}
  # Half of what a stage adds lies before what it had: channels 2 to 5, then 6 to 9.
  for name, first in (('stem_norm/scale', 0), ('stage2_block1/norm2/scale', 2),
                      ('batch_stats/stage3_block1/norm2/mean', 6)):
    assert through.positions(name, 0).tolist() == [[first + i] for i in range(4)]


def test_units_of_an_lstm_are_its_gates_rows_and_readers(small, monkeypatch):
  assembly, data = assembled(small, monkeypatch, 'lstm_classifier', hidden=3)
  group, = coupled(assembly, data).groups.values()
  gates = [[i, 3 + i, 6 + i, 9 + i] for i in range(3)]
  assert group.positions('forward1/input/kernel', 1).tolist() == gates
  assert group.positions('forward1/recurrent/kernel', 1).tolist() == gates
  assert group.positions('forward1/recurrent/kernel', 0).tolist() == [[0], [1], [2]]
  assert group.positions('head/kernel', 0).tolist() == [[0], [1], [2]]


def test_a_flattened_channel_is_all_of_its_places(small, monkeypatch):
  assembly, data = assembled(small, monkeypatch, 'cnn_mnist', width=0.1)
  group = coupled(assembly, data).groups['conv2/kernel']  # 6 channels on 2x2 places
  assert group.positions('dense1/kernel', 0).tolist() == [[i, 6 + i, 12 + i, 18 + i]
                                                          for i in range(6)]


@pytest.mark.parametrize('model,norm,why', [
    ('lstm_classifier', 'layer', 'reduce_sum'), ('resnet8', 'group', 'reshape')])
def test_what_a_norm_reads_whole_cannot_leave(small, model, norm, why, monkeypatch):
  assembly, data = assembled(small, monkeypatch, model, norm=norm)
  coupling = coupled(assembly, data)
  assert not coupling.groups
  assert all(why in reason for name, reason in coupling.reasons.items() if 'head' not in name)


def test_an_unknown_operation_keeps_its_channels_and_is_named():
  weights = dict(params=dict(kernel=np.ones((3, 4), np.float32)))
  found = coupling_lib.couple(lambda v, x: jnp.fft.fft(x @ v['params']['kernel']).real.sum(-1),
                              weights, jnp.ones((1, 3)))
  assert not found.groups and found.reasons == dict(kernel='fft needs all of them')


def run_of(small, tmp_path, **options):
  config = small.replace(runs_dir=str(tmp_path), epochs=1, batch_size=64, **options)
  return config, run.train(config.check(), quiet=True), str(tmp_path / config.name())


@pytest.mark.parametrize('options', [
    dict(model='lstm_classifier', hidden=16)] + [dict(model='mlp', hidden=None)] * LONG)
def test_a_narrow_run_loads_trains_on_and_is_compressed_again(small, tmp_path, options):
  options = {name: value for name, value in options.items() if value is not None}
  config, result, place = run_of(small, tmp_path, prune_structure='channels', prune_sparsity=0.5,
                                 **options)
  widths = json.loads((tmp_path / config.name() / 'widths.json').read_text())
  assert result['widths'] == widths
  kernels = trees.named(folder.read_weights(place)[0]['params'])
  assert all(kernels[f'{path}/kernel'].shape[-1] == width for path, width in widths.items())
  assert result['num_parameters'] == trees.count(kernels) < result['parameters_before']
  trained = folder.load(place)
  inputs, label = trained.data.splits['test']
  assert np.mean(trained.predict(inputs) == label) == pytest.approx(result['test_accuracy'])
  # Trained on with no other change than 8 bits, then narrower still.
  on = dict(init_from=place, quantize_weight_bits=8, quantize_activation_bits=8, **options)
  _, after, further = run_of(small, tmp_path, **on)
  assert after['num_parameters'] == result['num_parameters'] and after['widths'] == widths
  _, again, last = run_of(small, tmp_path, init_from=further, prune_structure='channels',
                          prune_sparsity=0.5, prune_round=2, quantize_weight_bits=4,
                          quantize_weights='lsq', quantize_activation_bits=8, **options)
  assert again['num_parameters'] < after['num_parameters']
  if LONG:  # rounded after training from a few batches, too
    _, rounded, _ = run_of(small, tmp_path, quantize_after=True, quantize_weights='lsq',
                           **on | dict(quantize_inputs='mse_range'))
    assert rounded['num_parameters'] == result['num_parameters']
  for wrong in (dict(options, model='lenet_300_100', hidden=None), dict(
      options, prune_ticket=further, prune_schedule='one_shot', prune_begin=0.0,
      prune_sparsity=0.5, init_from='')):
    config = small.replace(**dict(dict(init_from=place), **wrong))
    with pytest.raises(UserError, match='other widths'):
      other_runs.read(config, assemble.load_data(config))
  assert all(width % 2 == 0 and width < widths[path] for path, width in again['widths'].items())
  trained = folder.load(last)
  assert np.mean(trained.predict(inputs) == label) == pytest.approx(again['test_accuracy'])


def test_shares_of_channels_are_exact(small, tmp_path):
  _, result, _ = run_of(small, tmp_path, prune_structure='channels', prune_sparsity=0.25)
  assert result['widths'] == dict(dense1=96, dense2=96)
  _, result, _ = run_of(small, tmp_path, prune_structure='channels',
                        prune_layers='dense1=0.5', prune_round=8)
  assert result['widths'] == dict(dense1=64)


@pytest.mark.parametrize('multiple,units,count,expected', [
    (1, 10, 3, 3), (8, 64, 21, 24), (8, 64, 63, 56), (8, 20, 1, 4), (8, 6, 3, 0), (8, 64, 0, 0)])
def test_widths_are_rounded_to_multiples(multiple, units, count, expected):
  assert channels.rounded(multiple, units, count) == expected


def evidence(kernels, gradients, params=None):
  """Evidence whose batches have these gradients."""
  class Fake(Evidence):
    def over_batches(self, name, function):
      del name
      return function(kernels, gradients, None)

  return Fake(kernels, {**kernels, **(params or {})}, None, None, 0, 1, None, {})


def test_scores_of_channels_are_those_of_their_papers():
  kernel = np.array([[3.0, 0.0, 1.0], [4.0, 1.0, -1.0]], np.float32)
  gradient = np.array([[1.0, 2.0, 1.0], [-1.0, 2.0, 1.0]], np.float32)
  places = {'a/kernel': ((1, np.arange(3)[:, None]),), 'n/scale': ((0, np.arange(3)[:, None]),)}
  groups = {'a/kernel': coupling_lib.Group(places, ('a/kernel',))}
  given = evidence({'a/kernel': kernel}, {'a/kernel': gradient},
                   {'n/scale': np.array([-0.5, 0.2, 0.1])})

  def score(function):
    return np.asarray(function(given, groups)['a/kernel'])

  np.testing.assert_allclose(score(channel_scores.l2), [5 / 2**0.5, 0.5**0.5, 1])
  np.testing.assert_allclose(score(channel_scores.taylor), [0.25, 1, 0])  # of means: (sum / 2)^2
  np.testing.assert_allclose(score(channel_scores.norm_scale), [0.5, 0.2, 0.1])
  found = channels.units(groups, 'magnitude', given, None)['a/kernel']
  np.testing.assert_allclose(found.scores, [3.5, 0.5, 1])  # L1
  with pytest.raises(UserError, match='no norm scales'):
    channel_scores.norm_scale(given, {'a/kernel': coupling_lib.Group(
        {'a/kernel': places['a/kernel']}, ('a/kernel',))})


@pytest.mark.parametrize('options,words', [
    (dict(prune_structure='channels', quantize_weight_bits=2, quantize_weights='ternary'),
     'prune first'),
    (dict(prune_structure='channels', quantize_layers='.*=2/0', quantize_weights='ternary'),
     'prune first'),
    (dict(prune_round=8), 'prune_structure=channels'),
    (dict(prune_score='taylor'), 'ranks channels'),
    (dict(prune_structure='channels', model='linear'), 'leave no kernel to prune'),
    (dict(prune_structure='channels', prune_layers='head=0.5', prune_sparsity=0.0),
     'they are the answers')])
def test_what_does_not_go_together_is_said_before_training(small, options, words):
  config = small.replace(**dict(prune_sparsity=0.5) | options)
  with pytest.raises(UserError, match=words):
    assemble.build(config, assemble.load_data(config))


def test_an_excluded_channel_holds_those_it_is_tied_to(small, monkeypatch):
  assembly, _ = assembled(small, monkeypatch, 'resnet8', prune_structure='channels',
                          prune_sparsity=0.5, prune_exclude='stem')
  rows = {row['kernel']: row for row in assembly.network.compression.kernels(
      trees.kernels(assembly.state.params), assembly.config)}
  assert 'stem' in rows['stage1_block1/conv2/kernel']['prune_reason']
  assert rows['stage1_block1/conv1/kernel']['pruned'] == 'channels'


def test_a_model_that_ignores_widths_is_refused(small, monkeypatch):
  assembly, data = assembled(small, monkeypatch, 'resnet8', prune_structure='channels',
                             prune_sparsity=0.3)
  state, _ = masked(assembly.state, coupled(assembly, data), 0.5)
  real = build_network.make_network
  wide = lambda config, dataset, widths=None: dataclasses.replace(
      real(config, dataset), widths={})
  monkeypatch.setattr(build_network, 'make_network', wide)
  with pytest.raises(UserError, match='does not follow the widths'):
    removal.without_channels(assembly.network, data, state.evaluated)
