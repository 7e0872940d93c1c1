"""Networks in other runtimes answer as they do here."""

import dataclasses

import jax
import numpy as np
import onnx
import pytest

from lepton_jax.deploy import runtime, traced
from lepton_jax.deploy.onnx import export
from lepton_jax.registry import MODELS
from tests.test_deploy import trained_of


def shaken(trained):
  """The network with biases and statistics that are not those of the start."""
  rng = np.random.default_rng(1)

  def shake(leaf):
    return leaf + rng.uniform(0.05, 0.3, leaf.shape).astype(leaf.dtype)

  weights = trained.weights | {part: jax.tree.map(shake, trained.weights[part])
                               for part in ('params', 'model_state')}
  return dataclasses.replace(trained, weights=weights)


@pytest.mark.parametrize('model', MODELS.names())
def test_every_model_answers_alike_in_onnx_runtime(small, model, monkeypatch):
  trained = shaken(trained_of(small, monkeypatch, model))
  content, _ = export.export(trained)
  session = runtime.session(content)
  for count in (1, 7):
    inputs = traced.samples(trained, count)
    answers = traced.reference(trained, inputs)
    np.testing.assert_allclose(runtime.predict(session, inputs), answers, rtol=1e-4,
                               atol=1e-4 * max(1, np.abs(answers).max()))
  operators = {node.op_type for node in onnx.load_from_string(content).graph.node}
  kinds = dict(lstm='LSTM', bilstm='LSTM', gru='GRU', elman='RNN')
  wanted = kinds.get(model.partition('_')[0])
  assert wanted is None or wanted in operators
