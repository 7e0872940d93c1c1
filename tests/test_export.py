"""Networks in other runtimes answer as they do here."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lepton_jax import layers, registry, trees
from lepton_jax.compress.quantize import inputs as read
from lepton_jax.compress.straight_through import straight_through
from lepton_jax.deploy import exports, runtime, stablehlo, traced
from lepton_jax.deploy.onnx import export
from lepton_jax.errors import UserError
from lepton_jax.registry import MODELS
from tests import LONG, test_models
from tests.test_deploy import trained_of
from tests.test_models import FAMILIES

KINDS = dict(lstm='LSTM', bilstm='LSTM', gru='GRU', elman='RNN')
EXTRA = [('lstm_classifier', dict(norm='layer')), ('bilstm_classifier', dict(depth=2)),
         ('gru_classifier', dict(pooling='mean')), ('lstm_tagger', dict(depth=2)),
         ('elman_classifier', dict(activation='relu', pooling='max')),
         ('lstm_lm', dict(tied=True, embedding=8, hidden=8, depth=2)),
         ('resnet8', dict(norm='group')), ('cnn_cifar', dict(norm='layer', activation='gelu')),
         ('lenet5', dict(activation='silu')), ('cnn_mnist', dict(activation='elu'))]


def shaken(trained):
  """The network with biases and statistics that are not those of the start."""
  rng = np.random.default_rng(1)

  def shake(leaf):
    return leaf + rng.uniform(0.05, 0.3, leaf.shape).astype(leaf.dtype)

  weights = trained.weights | {part: jax.tree.map(shake, trained.weights[part])
                               for part in ('params', 'model_state')}
  return dataclasses.replace(trained, weights=weights)


def close(found, wanted):
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * max(1, np.abs(wanted).max()))


def operators(content):
  """{operator: how often}, bodies of loops included."""
  counts = {}
  nodes = list(onnx.load_from_string(content).graph.node)
  while nodes:
    node = nodes.pop()
    counts[node.op_type] = counts.get(node.op_type, 0) + 1
    nodes += [inner for attribute in node.attribute for inner in attribute.g.node]
  return counts


EVERY = MODELS.names() if LONG else FAMILIES


@pytest.mark.parametrize('model,options', [(name, {}) for name in EVERY] + EXTRA)
def test_every_model_answers_alike_in_onnx_runtime(small, model, options, monkeypatch):
  trained = shaken(trained_of(small, monkeypatch, model, **options))
  content, _ = export.export(trained)
  session = runtime.session(content)
  for count in (1, 7):
    inputs = traced.samples(trained, count)
    close(runtime.predict(session, inputs), traced.reference(trained, inputs))
  found, kind = operators(content), KINDS.get(model.partition('_')[0])
  if kind and options.get('norm') != 'layer':
    layers_of_it = options.get('depth', 1) * (2 if model.startswith('bi') else 1)
    assert found[kind] == layers_of_it and not {'Scan', 'ReverseSequence'} & set(found)


@pytest.mark.parametrize('model', EVERY)
def test_every_model_answers_alike_as_stablehlo(small, model, monkeypatch):
  trained = shaken(trained_of(small, monkeypatch, model))
  program = jax.export.deserialize(stablehlo.export(trained))
  assert program.platforms == ('cpu', 'cuda', 'tpu')
  states = [np.zeros((7, *one.shape[1:]), one.dtype) for one in program.in_avals[1:]]
  for count in (1, 7):
    inputs = traced.samples(trained, count)
    found = program.call(inputs, *(state[:count] for state in states))[0]
    close(found, traced.reference(trained, inputs))


def test_batch_norms_and_biases_are_folded(small, monkeypatch):
  content, _ = export.export(shaken(trained_of(small, monkeypatch, 'resnet8')))
  found = operators(content)
  assert found['Conv'] == 9 and found['Gemm'] == 1
  assert 'Mul' not in found and found['Add'] == 3  # the sums of the residual blocks


@pytest.mark.parametrize('model,options', [
    ('text_cnn', {}), ('bilstm_classifier', {}), ('gru_classifier', dict(pooling='mean')),
    ('elman_classifier', dict(pooling='max')), ('bilstm_classifier', dict(depth=2))])
def test_sequences_of_any_length_and_number(small, model, options, monkeypatch):
  """Padding changes nothing, and unequal lengths in a batch are each their own."""
  monkeypatch.setitem(test_models.VOCABULARY, model, 20)
  trained = shaken(trained_of(small, monkeypatch, model, embedding=8, **options))
  content, _ = export.export(trained)
  found = operators(content)
  assert 'ReverseSequence' not in found  # backward layers are operators of their own
  session = runtime.session(content)
  rng = np.random.default_rng(0)
  texts = [rng.integers(1, 20, length).astype(np.int32) for length in (1, 5, 9)]
  padded = np.stack([np.pad(text, (0, 12 - len(text))) for text in texts])
  answers = runtime.predict(session, padded)
  close(answers, traced.reference(trained, padded))
  for text, answer in zip(texts, answers):
    alone = runtime.predict(session, text[None])[0]
    close(answer[:len(text)] if answer.ndim == 2 else answer, alone)


def test_running_text_carries_its_state(small, monkeypatch):
  trained = shaken(trained_of(small, monkeypatch, 'lstm_lm'))
  session = runtime.session(export.export(trained)[0])
  text = traced.samples(trained, 2)
  whole = runtime.predict(session, text)
  names = [one.name for one in session.get_inputs()]
  states = [np.zeros((2, *one.shape[1:]), np.float32) for one in session.get_inputs()[1:]]
  parts = []
  for start in range(0, text.shape[1], 3):
    logits, *states = session.run(None, dict(zip(names, [text[:, start:start + 3], *states])))
    parts.append(logits)
  close(np.concatenate(parts, 1), whole)


@pytest.mark.parametrize('quantizer,bits,dtype', [('lsq', 8, np.int8), ('max', 4, np.int8),
                                                  ('max', 12, np.int16)])
def test_levels_and_ranges_are_those_that_were_trained(small, quantizer, bits, dtype, monkeypatch):
  trained = trained_of(small, monkeypatch, 'lenet5', quantize_weights=quantizer,
                       quantize_weight_bits=bits, quantize_activation_bits=8)
  content, _ = export.export(trained)
  graph = onnx.load_from_string(content).graph
  arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
  made = {output: node for node in graph.node for output in node.output}
  kernels = trees.named(trained.network.compression.counted(
      trained.weights, trained.hparams)['params'])
  order = dict(conv1=(3, 2, 0, 1), conv2=(3, 2, 0, 1), dense1=(1, 0), head=(1, 0))
  layers_of_it = [node for node in graph.node if node.op_type in ('Conv', 'Gemm')]
  assert len(layers_of_it) == len(order)
  for node, (name, axes) in zip(layers_of_it, order.items()):
    whole, scale = (arrays[part] for part in made[node.input[1]].input[:2])
    assert whole.dtype == dtype
    value = whole * scale.reshape(-1, *[1] * (whole.ndim - 1))
    np.testing.assert_allclose(value, np.asarray(kernels[f'{name}/kernel']).transpose(axes),
                               rtol=1e-5, atol=1e-7)
  assert sum(node.op_type == 'QuantizeLinear' for node in graph.node) == len(order)
  inputs = traced.samples(trained, 8)
  np.testing.assert_array_equal(
      runtime.predict(runtime.session(content), inputs).argmax(-1),
      traced.reference(trained, inputs).argmax(-1))


@pytest.mark.parametrize('options', [
    dict(quantize_weights='dorefa', quantize_weight_bits=16),
    dict(dtype='bfloat16', prune_gradient='straight_through')])
def test_what_counts_is_exported_whatever_its_width(small, monkeypatch, options):
  """Levels beyond 16 bits, and dead weights beside those that count."""
  trained = trained_of(small, monkeypatch, 'lenet_300_100', prune_sparsity=0.5, **options)
  held = trained.weights['held']
  dead = {name: jnp.arange(mask.size).reshape(mask.shape) % 2 == 0
          for name, mask in held['prune'].items()}
  trained = dataclasses.replace(trained, weights=trained.weights | dict(
      held=held | dict(prune=dead)))
  inputs = traced.samples(trained, 7)
  wanted = np.float32(traced.reference(trained, inputs))
  found = runtime.predict(runtime.session(export.export(trained)[0]), inputs)
  np.testing.assert_allclose(found, wanted, atol=0.03 * np.abs(wanted).max())


def test_inputs_rounded_in_a_way_of_ones_own_leave_that_way(small, monkeypatch):
  """By a quantizer that is no grid: what is nearer to zero has more levels."""
  def warped(x, low, high, bits, entries):
    root = jnp.sign(x) * jnp.sqrt(jnp.abs(x) / high)
    near = jnp.clip(jnp.round(root * 3.0), -3, 3) / 3.0
    return straight_through(x, high * jnp.sign(near) * jnp.square(near))

  def roots():
    return read.InputQuantizer(read.mean_extremes, warped)

  monkeypatch.setitem(registry.INPUT_QUANTIZERS._functions, 'roots', roots)
  trained = shaken(trained_of(small, monkeypatch, 'lenet5', quantize_activation_bits=3,
                              quantize_inputs='roots'))
  inputs = traced.samples(trained, 7)
  close(runtime.predict(runtime.session(export.export(trained)[0]), inputs),
        traced.reference(trained, inputs))


def test_weights_of_four_bits_take_four_bits(small, monkeypatch):
  options = dict(quantize_weights='lsq', quantize_weight_bits=4)
  sizes = {}
  for name, more, int4 in (('alone', {}, False), ('both', dict(quantize_activation_bits=8), False),
                           ('small', dict(quantize_activation_bits=8), True)):
    trained = trained_of(small, monkeypatch, 'lenet_300_100', **options | more)
    sizes[name] = len(export.export(trained, int4)[0])
    count = trees.count(trained.weights['params'])
  assert sizes['alone'] < 0.6 * count and sizes['small'] < 0.6 * count
  # A unit of whole numbers has two scales, a bias and a zero beside its weights, 4 bytes each.
  assert count < sizes['both'] < count + 16 * 402 + 2000


def test_removed_channels_are_gone_from_the_file(small, tmp_path):
  from lepton_jax import folder, run
  config = small.replace(model='cnn_mnist', epochs=1, prune_structure='channels',
                         prune_sparsity=0.5, runs_dir=str(tmp_path))
  result = run.train(config.check(), quiet=True)
  found = exports.write(folder.load(f'{tmp_path}/{config.name()}'), 'onnx', tmp_path / 'a.onnx')
  assert found['num_parameters'] == result['num_parameters']
  assert 4 * result['num_parameters'] < found['bytes'] < 4 * result['num_parameters'] + 4000
  assert found['macs'] == result['macs']


class Gated(nn.Module):
  """A model that no exporter here has heard of."""
  outputs: int

  @nn.compact
  def __call__(self, x, training):
    x = layers.Conv(4, (3, 3), strides=2, name='conv')(x)
    gate = jax.nn.softmax(jnp.einsum('bhwc,bhwd->bcd', x, x) / 4.0)
    x = jnp.concatenate([jnp.mean(x, (1, 2)), jnp.max(gate, 1), jnp.abs(jnp.flip(gate, 1))[:, 0]],
                        -1)
    x = jnp.where(x > 0, jnp.sqrt(jnp.clip(x, 0, 4)), jnp.expm1(x)) + jnp.cumsum(x, -1)
    return layers.Dense(self.outputs, name='head')(x)


class Sorted(nn.Module):
  outputs: int

  @nn.compact
  def __call__(self, x, training):
    return layers.Dense(self.outputs, name='head')(jnp.sort(x.reshape(x.shape[0], -1)))


def test_a_new_model_of_our_layers_and_common_functions_is_exported(small, monkeypatch):
  trained = shaken(trained_of(small, monkeypatch, 'lenet_300_100'))
  module = Gated(2)
  params = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), None)['params']
  network = dataclasses.replace(trained.network, module=module)
  trained = dataclasses.replace(trained, network=network,
                                weights=trained.weights | dict(params=params, model_state={}))
  inputs = traced.samples(trained, 7)
  close(runtime.predict(runtime.session(export.export(trained)[0]), inputs),
        traced.reference(trained, inputs))


ROWS = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
FLAT = dict(
    thin_sum=lambda x: (x[:, :1] + jnp.zeros((x.shape[0], 6))).sum(1),
    thin_relu=lambda x: jnp.maximum(x[:, :1], jnp.zeros((x.shape[0], 6))),
    literal=lambda x: x + jax.lax.scan(lambda c, y: (c + y, c), 0., np.arange(5, dtype='f4'))[0],
    loop=lambda x: jax.lax.fori_loop(0, 4, lambda i, c: c * 0.5 + 1, x),
    twice=lambda x: jax.lax.scan(lambda c, y: (c * 0.5 + y,) * 2, x[:, 0] * 0,
                                 jnp.stack([x[:, 0]] * 3))[1],
    read_in_a_loop=lambda x: (lambda u: (u + 1).sum() + jax.lax.scan(
        lambda c, y: (c + u * y, c), u * 0, np.arange(3, dtype='f4'))[0])(x @ ROWS),
    stack=lambda x: jnp.stack([x, x + 1], 1), tile=lambda x: jnp.tile(x, (1, 2)),
    gelu=lambda x: jax.nn.gelu(x, approximate=False), some=lambda x: x[:, np.array([3, 0, 5])],
    logsumexp=lambda x: jax.nn.logsumexp(x, -1), truth=lambda x: jnp.where(x > 0, x > 1, x < -1),
    whole=lambda x: x // 0.3, last=lambda x: x[:, -1], flip=lambda x: x[:, ::-1] - x[:, ::2].sum())
SEQUENCES = dict(rest=lambda x: x[:, 1:] - x[:, :-1], last=lambda x: x[:, -1],
                 places=lambda x: x + jnp.arange(x.shape[1])[:, None] * 0.1)


@pytest.mark.parametrize('name,function,shape', [
    *((name, function, (6,)) for name, function in FLAT.items()),
    *((name, function, ('time', 6)) for name, function in SEQUENCES.items())])
def test_common_functions_mean_the_same_in_onnx(name, function, shape):
  inputs = dict(inputs=(np.dtype('float32'), ('batch', *shape)))
  run = lambda _, x: (function(x),)
  with jax.numpy_dtype_promotion('standard'):
    content = export.build(run, dict(params={}), inputs, ('out',), {}, name, {})
  session = runtime.session(content)
  for count, time in ((1, 3), (7, 5)):
    sizes = [time if size == 'time' else size for size in shape]
    x = np.random.default_rng(count).normal(size=(count, *sizes)).astype(np.float32)
    with jax.numpy_dtype_promotion('standard'):
      wanted = np.asarray(function(jnp.asarray(x)))
    found = runtime.predict(session, x)
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    close(found.astype(float), wanted.astype(float))


def test_half_precision_leaves_as_single(small, monkeypatch, tmp_path):
  trained = shaken(trained_of(small, monkeypatch, 'lenet5', dtype='bfloat16'))
  for format in exports.FORMATS:
    found = exports.write(trained, format, tmp_path / f'a.{format}')
    assert found['same_decisions'] >= 0.99
  assert 'float32' in json.loads((tmp_path / 'a.onnx.json').read_text())['notes'][0]


def test_outputs_that_cannot_be_are_told(small, monkeypatch, tmp_path):
  trained = trained_of(small, monkeypatch, 'lenet_300_100')
  (tmp_path / 'file').touch()
  for path, format, int4, words in (('a.bin', 'onnx', False, 'ends in .onnx'),
                                    ('file/a.onnx', 'onnx', False, 'cannot be written'),
                                    ('a.lepton', 'lepton', True, '--int4')):
    with pytest.raises(UserError, match=words):
      exports.write(trained, format, tmp_path / path, int4)
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_what_has_no_form_in_onnx_is_told_with_its_line(small, monkeypatch, tmp_path):
  trained = trained_of(small, monkeypatch, 'lenet_300_100')
  module = Sorted(2)
  params = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), None)['params']
  network = dataclasses.replace(trained.network, module=module)
  trained = dataclasses.replace(trained, network=network,
                                weights=trained.weights | dict(params=params, model_state={}))
  with pytest.raises(UserError, match=r"'sort' at .*test_export.py:\d+"):
    exports.write(trained, 'onnx', tmp_path / 'a.onnx')
  assert not list(tmp_path.iterdir())


def test_a_file_that_answers_otherwise_is_not_written(small, monkeypatch, tmp_path):
  trained = trained_of(small, monkeypatch, 'lenet5')
  other = shaken(trained)
  monkeypatch.setattr(exports, 'made', lambda *_: export.export(other))
  with pytest.raises(UserError, match='answers otherwise.*no file was written'):
    exports.write(trained, 'onnx', tmp_path / 'a.onnx')
  assert not list(tmp_path.iterdir())


def test_stablehlo_runs_in_a_process_without_this_project(small, monkeypatch, tmp_path):
  trained = shaken(trained_of(small, monkeypatch, 'bilstm_classifier'))
  found = exports.write(trained, 'stablehlo', tmp_path / 'a.stablehlo')
  assert found['largest_error'] <= 1e-4
  assert json.loads((tmp_path / 'a.stablehlo.json').read_text())['bytes'] == found['bytes']
  assert sorted(path.name for path in tmp_path.iterdir()) == ['a.stablehlo', 'a.stablehlo.json']


@pytest.mark.parametrize('name', ['a.txt', 'a.onnx', 'a.stablehlo', 'a.lepton', 'none.onnx'])
def test_files_that_are_none_are_told(tmp_path, name):
  if name != 'none.onnx':
    (tmp_path / name).write_bytes(b'nothing of the kind')
  with pytest.raises(UserError, match=name):
    runtime.open_file(tmp_path / name)
