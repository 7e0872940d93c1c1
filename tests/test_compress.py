"""The contract of compression: every registered model, by flags alone."""

import dataclasses

import jax
import numpy as np
import pytest

from lepton_jax import assemble, trees
from lepton_jax import network as network_lib
from lepton_jax.compress import report, size
from lepton_jax.compress.method import part
from lepton_jax.compress.quantize import sites
from tests.test_models import DISTINCT, SHALLOW, SMALL, random_like, tiny_dataset
from tests.test_train import assert_same, run_steps


@pytest.mark.parametrize('model', DISTINCT)
def test_every_model_is_pruned_and_quantised_by_flags(small, model, monkeypatch):
  """Masks, levels and reports of each registered model without a line of it in the model."""
  side = SMALL.get(model, 8)
  config = small.replace(model=model, prune_sparsity=0.75, quantize_weight_bits=4,
                         quantize_activation_bits=6, **SHALLOW.get(model, {}))
  data = tiny_dataset(model, (side, side, 1), 2)
  real = network_lib.make_init

  def make_init(*arguments):
    return lambda key: random_like(jax.eval_shape(lambda: real(*arguments)(key)))

  monkeypatch.setattr(network_lib, 'make_init', make_init)
  assembly = assemble.build(config.replace(batch_size=8, sequence_length=8), data)
  compression, state = assembly.network.compression, assembly.state
  kernels = trees.kernels(state.params)
  assert set(part(state.held['prune'], 'masks')) == set(kernels)
  layers_with_inputs = {sites.owner(n) for n in kernels if not n.endswith('embedding')}
  assert layers_with_inputs == compression.sites
  found = report.facts(compression, state.evaluated, state.hparams, config,
                       network_lib.macs(assembly.network, state.evaluated, data))
  assert found['quantized_kernels'] == len(kernels) == len(found['kernels'])
  for row in found['kernels']:
    assert row['weight_bits'] == 4 and row['pruned'] == 'none'
    assert row.get('activation_bits') == 6 or 'floating-point' in row['activation_reason']
  counted = trees.named(compression.counted(state.evaluated, state.hparams)['params'])
  for name in kernels:
    channels = np.asarray(counted[name]).reshape(-1, counted[name].shape[-1]).T
    assert all(len(np.unique(channel)) <= 15 for channel in channels), name


OPTIONS = [dict(prune_sparsity=0.5), dict(quantize_weight_bits=4), dict(quantize_activation_bits=4)]


@pytest.mark.parametrize('option', OPTIONS)
def test_zero_is_bit_identical_to_absent_and_on_is_not(small, option):
  plain, _, _ = run_steps(small.replace(prune_begin=0.0), 4)
  none = {k: type(v)(0) for k, v in option.items()}
  zero, _, _ = run_steps(small.replace(prune_begin=0.0, **none), 4)
  on, _, _ = run_steps(small.replace(prune_begin=0.0, **option), 4)
  assert_same(plain, zero)
  assert trees.digest(on.params) != trees.digest(plain.params)


def test_zero_strength_program_is_the_plain_program(small):
  def text(config):
    assembly = assemble.build(config, assemble.load_data(config))
    step = jax.jit(assembly.train_step(None))
    return step.lower(assembly.state, assembly.batches.at(0)).as_text()

  off = small.replace(prune_sparsity=0.0, quantize_weight_bits=0, prune_updates=3)
  assert text(small) == text(off)
  assert dataclasses.asdict(small.prune)['prune_sparsity'] == 0


def test_estimated_size_counts_bits_positions_and_scales():
  kernel = np.zeros((10, 8))
  kernel[:4] = 1
  # 32 entries of 80, and a bit for each place.
  assert size.estimate(dict(k=kernel), {}, 3, 0) == (32 * 32 + 80 + 3 * 32) // 8
  assert size.estimate(dict(k=kernel), dict(k=4), 0, 2) == (32 * 4 + 80 + 8 * 32 + 4 * 32) // 8
  dense = np.ones((10, 8))  # smaller as it is
  assert size.estimate(dict(k=dense), dict(k=4), 0, 0) == (80 * 4 + 8 * 32) // 8


# Multiply-accumulates of one example, as published, or counted by hand.
MACS = {'lenet5': ((28, 28, 1), 10, 2_293_000), 'resnet8': ((32, 32, 3), 10, 12_501_632),
        'resnet20': ((32, 32, 3), 10, 40_551_040), 'lenet_300_100': ((28, 28, 1), 10, 266_200),
        'mobilenet_v1': ((224, 224, 3), 1000, 568_740_352),
        # 28 steps of 4 gates, each of 28 inputs and 128 states; then the head.
        'lstm_classifier': ((28, 28, 1), 10, 28 * 4 * 128 * (28 + 128) + 1280)}


@pytest.mark.parametrize('model', MACS)
def test_multiplications_are_those_that_were_published(small, model):
  shape, outputs, expected = MACS[model]
  data = tiny_dataset(model, shape, outputs)
  network = network_lib.make_network(small.replace(model=model), data)
  variables = jax.eval_shape(network_lib.make_init(network, data), jax.random.key(0))
  weights = dict(params=variables.pop('params'), model_state=variables)
  assert sum(network_lib.macs(network, weights, data).values()) == expected
