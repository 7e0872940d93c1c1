"""Activations, gates and kernels of a network, read and changed by name."""

import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import trees
from lepton_jax.compress.quantize import inputs as inputs_lib
from lepton_jax.deploy import traced
from lepton_jax.errors import UserError
from lepton_jax.layers import recurrent
from lepton_jax.layers.activation import ACTIVATIONS
from tests.test_deploy import trained_of
from tests.test_models import FAMILIES

RECURRENT = [('lstm_classifier', {}), ('lstm_classifier', dict(norm='layer')),
             ('lstm_classifier', dict(quantize_activation_bits=8, quantize_weight_bits=4)),
             ('lstm_classifier', dict(factorize_rank=0.5)),
             ('lstm_classifier', dict(quantize_gate_bits=4)),
             ('lstm_classifier', dict(quantize_gate_bits=4, norm='layer')),
             ('gru_classifier', {}), ('gru_tagger', dict(depth=2, quantize_gate_bits=4)),
             ('elman_classifier', dict(activation='relu')), ('lstm_lm', {})]
RANGE = dict(input=(0, 1), forget=(0, 1), output=(0, 1), cell=(-1, 1), reset=(0, 1), update=(0, 1))


@pytest.mark.parametrize('model', FAMILIES)
def test_every_layer_answers_under_its_name_and_the_head_answers_last(small, model, monkeypatch):
  trained = trained_of(small, monkeypatch, model)
  inputs = traced.samples(trained, 3)
  found = trained.activations(inputs)
  assert all(array.shape[0] == 3 for array in found.values())
  kernels = {name.rpartition('/')[0] for name in trained.kernels}
  assert kernels - {name for name in kernels if name.endswith(('/input', '/recurrent'))
                    } <= found.keys()
  last = found['head' if 'head' in found else 'embed']  # of a tied language model
  if not trained.data.stream:
    np.testing.assert_allclose(last, trained.outputs(inputs), atol=1e-5)


@pytest.mark.parametrize('model, options', RECURRENT)
def test_gates_make_the_states_of_their_layer(small, model, options, monkeypatch):
  """The recurrence by hand from the gates alone gives what the layer answers.

  Gates are seen one step after the other, answers come from the fused cell: both round alike.
  """
  trained = trained_of(small, monkeypatch, model, **options)
  inputs = traced.samples(trained, 3)
  gates, found = trained.gates(inputs), trained.activations(inputs)
  assert list(gates) == [f'forward{i + 1}' for i in range(options.get('depth', 1))]
  activation = ACTIVATIONS[trained.config.architecture.activation or 'tanh']
  bits = options.get('quantize_gate_bits', 0)
  grid = inputs_lib.grid(jnp.float32(-1.5), jnp.float32(2.5), bits)  # as trained_of sets ranges
  on_levels = (lambda x: np.array(inputs_lib.rounded(x, *grid))) if bits else lambda x: x
  for layer, gate in gates.items():
    hidden = cell = np.zeros_like(found[layer][:, 0])
    for name, values in gate.items():
      low, high = RANGE.get(name, (-np.inf, np.inf))
      assert values.shape == found[layer].shape and np.ptp(values) > 0
      assert low <= values.min() and values.max() <= high or bits
      np.testing.assert_allclose(on_levels(values), values, atol=1e-6)
    for step in range(found[layer].shape[1]):
      now = {name: values[:, step] for name, values in gate.items()}
      if 'forget' in now:
        cell = on_levels(now['forget'] * cell + now['input'] * now['cell'])
        hidden = now['output'] * activation(cell)
      elif 'update' in now:
        hidden = (1 - now['update']) * now['new'] + now['update'] * hidden
      else:
        hidden = now['new']
      np.testing.assert_allclose(hidden, found[layer][:, step], atol=1e-5)


def test_a_rounded_reset_gate_is_the_one_that_counts():
  """The new value of a GRU sees the reset gate on its levels: here 0.5 becomes 1."""
  z = jnp.array([[0.0, 0.0, 0.3, 0.4]])  # reset, update, new, and what is reset
  read = lambda name, x: jnp.ceil(x) if name == 'reset' else x
  found = recurrent.KINDS['gru'].opened(z, jnp.tanh, read)
  np.testing.assert_allclose(found['new'], np.tanh([[0.3 + 0.4]]), rtol=1e-6)


def test_a_network_that_reads_both_ways_has_gates_of_both_and_a_cnn_has_none(small, monkeypatch):
  both = trained_of(small, monkeypatch, 'bilstm_classifier')
  assert list(both.gates(traced.samples(both, 2))) == ['backward1', 'forward1']
  cnn = trained_of(small, monkeypatch, 'resnet8')
  inputs = traced.samples(cnn, 2)
  assert cnn.gates(inputs) == {} and 'stage1_block1/conv1' in cnn.activations(inputs)


def test_kernels_are_those_that_count_and_a_copy_may_have_others(small, monkeypatch):
  trained = trained_of(small, monkeypatch, 'mlp', quantize_weight_bits=2)
  kernels = trained.kernels
  assert set(kernels) == set(trees.kernels(trained.weights['params']))
  assert all(len(np.unique(np.abs(kernel[:, 0]))) <= 2 for kernel in kernels.values())
  before = trees.digest(trained.weights)
  inputs = traced.samples(trained, 3)
  changed = trained.with_kernels({'head/kernel': 0 * kernels['head/kernel']})
  bias = trained.weights['params']['head']['bias']  # all that is left
  np.testing.assert_array_equal(changed.outputs(inputs), np.tile(bias, (3, 1)))
  assert trees.digest(trained.weights) == before and np.ptp(trained.outputs(inputs)) > 0
  same = trained.with_kernels(kernels)  # what is on levels stays on them
  np.testing.assert_allclose(same.outputs(inputs), trained.outputs(inputs), atol=1e-5)


def test_kernels_that_do_not_fit_are_refused(small, monkeypatch):
  trained = trained_of(small, monkeypatch, 'mlp')
  with pytest.raises(UserError, match="unknown kernel 'heat/kernel'; did you mean 'head/kernel'"):
    trained.with_kernels({'heat/kernel': np.zeros(1)})
  with pytest.raises(UserError, match=r'head/kernel has shape .*; what was given has \(1,\)'):
    trained.with_kernels({'head/kernel': np.zeros(1)})
