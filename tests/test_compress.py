"""The contract of compression: every registered model, by flags alone."""

import dataclasses

import jax
import numpy as np
import pytest

from lepton_jax import assemble, build_network, layer_facts, trees
from lepton_jax.compress import report
from lepton_jax.compress.method import part
from lepton_jax.compress.quantize import sites
from tests import LONG
from tests.test_models import FAMILIES, SHALLOW, SMALL, has_cells, random_like, tiny_dataset
from tests.test_train import assert_same, run_steps

SPARSE = dict(prune_begin=0.0, prune_schedule='one_shot')
METHODS = {
    'unstructured': dict(SPARSE, prune_sparsity=0.8),
    '2:4': dict(SPARSE, prune_sparsity=0.5, prune_structure='2:4'),
    'channels': dict(SPARSE, prune_sparsity=0.3, prune_structure='channels'),
    'W8A8': dict(quantize_weight_bits=8, quantize_activation_bits=8),
    'W4A4': dict(quantize_weight_bits=4, quantize_activation_bits=4),
    'ternary': dict(quantize_weight_bits=2, quantize_weights='ternary'),
    'binary': dict(quantize_weight_bits=1, quantize_weights='binary'),
    'LSQ': dict(quantize_weight_bits=3, quantize_weights='lsq', quantize_activation_bits=3)}
# Levels that a channel of weights can have.
LEVELS = {'W8A8': 255, 'W4A4': 15, 'ternary': 3, 'binary': 2, 'LSQ': 8}


def with_gates(model, method, options):
  """With rounded gates in one method of the models that have some."""
  rounds = method == 'W8A8' and has_cells(model)
  return options | dict(quantize_gate_bits=6) if rounds else options


def drawn(monkeypatch):
  """Makes initial weights by numpy; initialisers would be compiled for each model."""
  real = build_network.make_init
  monkeypatch.setattr(build_network, 'make_init', lambda *arguments: (
      lambda key: random_like(jax.eval_shape(lambda: real(*arguments)(key)))))


@pytest.mark.parametrize('model', FAMILIES)
def test_every_method_reaches_every_model_by_flags(small, model, monkeypatch):
  """Masks, levels and reports of each registered model without a line of it in the model."""
  side = SMALL.get(model, 8)
  data = tiny_dataset(model, (side, side, 1), 2)
  drawn(monkeypatch)
  for method, options in METHODS.items():
    if (model, method) == ('linear', 'channels'):
      continue  # its only layer gives the answers
    config = small.replace(model=model, batch_size=8, sequence_length=8,
                           **with_gates(model, method, options), **SHALLOW.get(model, {}))
    assembly = assemble.build(config, data)
    compression, state = assembly.network.compression, assembly.state
    if 'prune_sparsity' in options:
      hooks = assembly.make_hooks(lambda b: b, slice(None), jax.jit)
      for hook in hooks[-1:]:  # before it, running text only begins anew
        state = hook(state, 0)
    macs = layer_facts.macs(assembly.network, state.evaluated, data)
    found = report.facts(compression, state.evaluated, state.hparams, config, macs)
    kernels = trees.kernels(state.params)
    assert [row['kernel'] for row in found['kernels']] == kernels
    counted = trees.named(jax.jit(compression.counted)(state.evaluated, state.hparams)['params'])
    if method in LEVELS:
      check_levels(method, found, counted, compression, kernels)
    else:
      check_sparsity(method, options, found, state)


def check_levels(method, found, counted, compression, kernels):
  assert found['quantized_kernels'] == len(kernels)
  if 'A' in method or method == 'LSQ':
    inputs = {sites.owner(n) for n in kernels if not n.endswith('embedding')}
    gates = compression.sites - inputs
    assert compression.sites >= inputs
    assert {row['kernel'] for row in found['kernels'] if 'gate_bits' in row} == {
        f'{sites.owner(site)}/kernel' for site in gates}
    assert bool(gates) == (method == 'W8A8' and any('/recurrent/' in name for name in kernels))
  for name in kernels:
    channels = np.asarray(counted[name]).reshape(-1, counted[name].shape[-1]).T
    assert all(len(np.unique(channel)) <= LEVELS[method] for channel in channels), name


def check_sparsity(method, options, found, state):
  masks = part(state.held['prune'], 'masks')
  reached = {row['kernel'] for row in found['kernels'] if row.get('pruned')}
  assert reached and all(row.get('prune_reason') for row in found['kernels']
                         if row['kernel'] not in reached)
  zeros = {name: int((~np.asarray(mask)).sum()) for name, mask in masks.items()}
  if method == 'unstructured':
    sizes = sum(masks[name].size for name in reached)
    assert sum(zeros.values()) == round(options['prune_sparsity'] * sizes)
  elif method == '2:4':
    for name in reached:
      inputs, rest = masks[name].shape[-2], masks[name].size // masks[name].shape[-2]
      assert zeros[name] == rest * (inputs - inputs // 4 * 2 - min(inputs % 4, 2)), name
  else:
    lost = 0
    for name in reached:  # of outputs of a layer all gates or none
      kept = np.asarray(masks[name]).reshape(-1, masks[name].shape[-1]).any(0)
      lost += int((~kept).sum())
    assert lost


SMALLEST = {'dense': dict(model='mlp', width=0.1), 'lstm': dict(model='lstm_classifier', hidden=6)}


# What a method does to kernels is the same for both; of masks, of levels and of steps that are
# learned one is enough for the second.
@pytest.mark.parametrize('method,model', [
    (method, model) for method in METHODS for model in SMALLEST
    if LONG or model == 'dense' or method in ('unstructured', 'channels', 'W8A8', 'LSQ')])
def test_every_method_trains_goes_on_exactly_and_compiles_once(small, method, model):
  """Finite gradients; a state that is saved and restored; one program for all strengths."""
  options = with_gates(SMALLEST[model]['model'], method, METHODS[method]) | SMALLEST[model]
  config = small.replace(**options)
  state, step, measured = run_steps(config, 3)
  assert all(np.isfinite(value) for value in measured.values())
  data = assemble.load_data(config)
  stronger = {name: value * 0.5 if name == 'prune_sparsity' else value + 1
              for name, value in options.items() if name in (
                  'prune_sparsity', 'quantize_weight_bits', 'quantize_activation_bits',
                  'quantize_gate_bits')
              and method not in ('ternary', 'binary')}
  other = assemble.build(config.replace(**stronger), data)
  batch = other.batches.at(3)
  step(other.state, batch)
  assert step._cache_size() == 1
  # Where a run goes on from is all in the state: copied to the host and back, it is the same run.
  restored = jax.tree.map(lambda leaf: jax.numpy.asarray(np.asarray(leaf)), state)
  assert_same(step(state, batch)[0], step(restored, batch)[0])


OPTIONS = [dict(prune_sparsity=0.5), dict(quantize_weight_bits=4), dict(quantize_activation_bits=4)]


@pytest.mark.parametrize('option', OPTIONS)
def test_zero_is_bit_identical_to_absent_and_on_is_not(small, option):
  plain, _, _ = run_steps(small.replace(prune_begin=0.0, quantize_begin=0.0), 4)
  none = {k: type(v)(0) for k, v in option.items()}
  zero, _, _ = run_steps(small.replace(prune_begin=0.0, quantize_begin=0.0, **none), 4)
  on, _, _ = run_steps(small.replace(prune_begin=0.0, quantize_begin=0.0, **option), 4)
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
  network = build_network.make_network(small.replace(model=model), data)
  variables = jax.eval_shape(build_network.make_init(network, data), jax.random.key(0))
  weights = dict(params=variables.pop('params'), model_state=variables)
  assert sum(layer_facts.macs(network, weights, data).values()) == expected
