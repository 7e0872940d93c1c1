"""Packed files: the coder, the container, whole networks, and files that lie."""

import dataclasses
import lzma
import os
import pathlib
import re
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import smallest_files
from lepton_jax import folder, registry, run, strengths, trees
from lepton_jax.compress.method import Compression
from lepton_jax.deploy import coder, container, levels, measure, native, pack
from lepton_jax.errors import UserError
from lepton_jax.report import markdown
from lepton_jax.report.settings import sign
from tests import LONG
from tests.test_channels import assembled, logits
from tests.test_models import FAMILIES, has_cells

RESULTS = pathlib.Path(__file__).parents[1] / 'experiments' / 'results' / 'files'


def sparse(seed, shape, share, size):
  """Levels whose rows and columns are of unlike density."""
  rng = np.random.default_rng(seed)
  density = rng.gamma(0.5, 1, (shape[0], 1)) * rng.gamma(0.5, 1, (1, shape[1]))
  there = rng.random(shape) < share * density
  return (there * rng.choice([-1, 1], shape) * rng.integers(1, size + 1, shape)).astype(np.int32)


# the coder

MATRICES = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(0, 12),
                     st.sampled_from([0.0, 0.1, 0.5, 2.0]),
                     st.sampled_from([1, 3, 127, coder.LARGEST]))


@settings(max_examples=40)
@given(st.lists(MATRICES, max_size=4))
def test_levels_come_back_and_both_coders_write_the_same_bytes(drawn):
  matrices = [sparse(seed, (rows, columns), share, size)
              for seed, rows, columns, share, size in drawn]
  shapes = [matrix.shape for matrix in matrices]
  data = coder.encode(matrices, use_native=False)
  for use_native in (False, native.library() is not None):
    assert coder.encode(matrices, use_native) == data
    for one, other in zip(coder.decode(data, shapes, use_native), matrices, strict=True):
      np.testing.assert_array_equal(one, other)


def run_lengths(there):
  """Bits of the gaps between entries by the best Golomb-Rice code, along the better axis."""
  def best(flat):
    gaps = np.diff(np.flatnonzero(np.append(flat, True)), prepend=-1) - 1
    return min(int(np.sum((gaps >> k) + 1 + k)) for k in range(16))
  return min(best(there.ravel()), best(there.T.ravel()))


@pytest.mark.parametrize('name', sorted(path.name for path in RESULTS.glob('*.lepton')))
def test_places_take_less_than_by_the_cheaper_of_bitmask_and_run_lengths(name):
  """Of committed files, each array by its own cheaper one: so the format has neither."""
  data = (RESULTS / name).read_bytes()
  places = [(found != 0).reshape(-1, found.shape[-1]) for found in pack.coded_levels(data)]
  others = sum(min(there.size, run_lengths(there)) for there in places)
  assert 8 * len(coder.encode([there.astype(np.int32) for there in places])) < others


def test_tables_do_not_depend_on_the_last_digit_of_a_machine():
  """No entry lies near the border between two whole numbers, so every libm gives these tables."""
  exact = [65536 / (1 + np.exp(-d / 256)) for d in range(-2048, 2048)]
  exact += [256 * np.log((i + 0.5) / (4095.5 - i)) for i in range(4096)]
  exact += [65536 / (n + 1.5) for n in range(256) if 65536 % (n + 1.5)]
  distance = np.abs(np.array(exact) % 1 - 0.5)
  assert distance[distance > 0].min() > 1e-9


def test_dense_levels_cost_their_entropy_and_sparse_ones_far_less_than_xz():
  rng = np.random.default_rng(0)
  dense = np.round(rng.laplace(0, 3, (256, 256))).astype(np.int32)
  _, counts = np.unique(dense, return_counts=True)
  share = counts / dense.size
  entropy = -np.sum(share * np.log2(share)) * dense.size / 8
  assert len(coder.encode([dense])) < 1.01 * entropy
  thin = sparse(0, (400, 300), 0.02, 4)
  best = min(len(lzma.compress(thin.astype(np.int8).tobytes(), preset=9)),
             len(zlib.compress(thin.astype(np.int8).tobytes(), 9)))
  assert len(coder.encode([thin])) < 0.8 * best


def test_a_level_that_is_too_large_is_refused():
  with pytest.raises(ValueError, match='65535'):
    coder.encode([np.array([[coder.LARGEST + 1]])])


# levels

def test_kernels_keep_the_levels_that_they_are_on():
  rng = np.random.default_rng(0)
  on = rng.integers(-7, 8, (50, 6))
  one, each = np.float32(0.037), rng.uniform(0.01, 0.1, 6).astype(np.float32)
  found = levels.of_kernel((on * one).astype(np.float32), 8)
  assert found.kind == container.LEVELS
  np.testing.assert_array_equal(found.levels, on)
  found = levels.of_kernel((on * each).astype(np.float32), 8)
  assert found.kind == container.CHANNELS
  np.testing.assert_array_equal(found.levels, on)
  values = np.array([-0.5, -0.1137, 0, 0.0711, 0.31317], np.float32)
  kernel = values[rng.integers(0, 5, (50, 6))]
  found = levels.of_kernel(kernel, 8)
  assert found.kind == container.CODEBOOK
  np.testing.assert_allclose(container.value(found, kernel.shape), kernel, rtol=1e-3)
  found = levels.of_kernel((kernel * each).astype(np.float32), 8)
  assert found.kind == container.CHANNEL_CODEBOOK
  np.testing.assert_allclose(container.value(found, kernel.shape), kernel * each, rtol=3e-3)


def test_two_scales_of_an_output_take_a_sign_an_entry():
  rng = np.random.default_rng(0)
  signs = rng.integers(-1, 2, (3, 3, 8, 6))
  negative, positive = rng.uniform(0.01, 2, (2, 6)).astype(np.float32)
  signs[..., 0], signs[..., 1] = 0, np.abs(signs[..., 1])  # an output of zeros, one of a sign
  kernel = np.where(signs < 0, -negative, positive) * np.abs(signs).astype(np.float32)
  found = levels.of_kernel(kernel, 8)
  assert found.kind == container.SIGNS
  np.testing.assert_array_equal(found.levels, signs)
  data = container.write({}, [found])
  _, rest = container.read_header(data)
  again, = container.read_arrays(rest, [kernel.shape])
  np.testing.assert_allclose(again, kernel, rtol=1e-3)
  np.testing.assert_array_equal(again, container.value(found, kernel.shape))
  same = levels.of_kernel(np.where(signs < 0, -positive, positive) * np.abs(signs), 8)
  assert same.kind == container.CHANNELS
  two = np.where(signs < 0, np.float32(-0.1137), np.float32(0.31317)) * np.abs(signs)
  two = levels.of_kernel(two, 8)
  assert two.kind == container.CODEBOOK  # which says them once


@pytest.mark.parametrize('name', registry.WEIGHT_QUANTIZERS.names())
def test_a_rate_never_makes_a_file_larger(small, monkeypatch, name):
  """Levels of some quantizers are not the nearest ones; then a lower one may cost more."""
  trained = trained_of(small, monkeypatch, 'mlp', width=0.5, quantize_weights=name,
                       quantize_weight_bits=registry.WEIGHT_QUANTIZERS.get(name)().bits or 3)
  sizes = [len(pack.pack(trained, rate=rate)) for rate in (0.0, 1e-6, 0.05)]
  assert sizes[1] <= sizes[0] + 8 and sizes[2] <= sizes[0] + 8


@pytest.mark.parametrize('name', ['max', 'mse', 'lsq', 'dorefa'])
@pytest.mark.parametrize('bits', [2, 4, 8, 12])
@pytest.mark.parametrize('axes', [(0,), (1,), (0, 1)])
def test_trained_levels_are_stored_as_they_are(name, bits, axes):
  """One distance, one of each output, or of each row of a table, however few entries each has."""
  quantizer = registry.WEIGHT_QUANTIZERS.get(name)()
  kernel = jax.random.normal(jax.random.key(bits), (30, 500))
  learned = quantizer.init(kernel, jnp.float32(bits), axes)
  counted = np.asarray(quantizer.apply(kernel, jnp.float32(bits), axes, learned))
  step = np.asarray(quantizer.step(kernel, jnp.float32(bits), axes, learned))
  found = levels.of_steps(counted, step)
  assert found.kind == {1: container.LEVELS, 500: container.CHANNELS,
                        30: container.ROWS}[step.size]
  most = 2 ** bits - 1 if name == 'dorefa' else 2 ** (bits - 1) - 1
  assert -most - (name == 'lsq') <= found.levels.min() and found.levels.max() <= most
  np.testing.assert_allclose(container.value(found, kernel.shape), counted, rtol=1e-3)


@pytest.mark.parametrize('size', [1e-7, 1e-5, 1.0, 1e6])
@pytest.mark.parametrize('shape', [(5, 5, 1, 6), (60, 20), (300, 100)])
def test_without_bits_nothing_is_rounded(size, shape):
  kernel = (np.random.default_rng(0).normal(size=shape) * size).astype(np.float32)
  kernel[..., 0] = 0
  np.testing.assert_array_equal(container.value(levels.of_kernel(kernel, 0), shape), kernel)
  rounded = container.value(levels.of_kernel(kernel, 8), shape)
  assert np.abs(rounded - kernel).max() < 0.005 * np.abs(kernel).max()


def test_other_kernels_are_rounded_to_half_a_step():
  kernel = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
  found = levels.of_kernel(kernel, 6)
  step = np.abs(kernel).max(0) / 31
  error = np.abs(container.value(found, kernel.shape) - kernel)
  assert (error <= step * 0.52).all() and np.abs(found.levels).max() == 31


# whole networks

def trained_of(small, monkeypatch, model, **options):
  assembly, data = assembled(small, monkeypatch, model, **options)
  hparams = strengths.strengths(assembly.config, assembly.network.compression)
  weights = trees.map_named(with_range, assembly.state.evaluated)
  return folder.Trained(assembly.config, data, assembly.network, weights, hparams)


def with_range(name, leaf):
  """A range of inputs as training might have set it."""
  of_range = name.startswith('held/quantize/ranges/')
  return jnp.full_like(leaf, -1.5 if name.endswith('low') else 2.5) if of_range else leaf


def arrays_of(trained):
  params = trained.network.compression.counted(trained.weights, trained.hparams)['params']
  return {name: np.asarray(leaf) for name, leaf in trees.named(params).items()}


@pytest.mark.parametrize('model', FAMILIES)
def test_every_model_is_packed_and_unpacked(small, model, monkeypatch):
  """Levels as they were trained; a second packing is the same bytes, so nothing is lost twice."""
  gates = dict(quantize_gate_bits=6) if has_cells(model) else {}
  trained = trained_of(small, monkeypatch, model, quantize_weight_bits=4,
                       quantize_granularity='tensor', quantize_activation_bits=8, **gates)
  data = pack.pack(trained)
  again = pack.unpack(data)
  assert pack.pack(again) == data
  assert again.config.architecture == trained.config.architecture
  assert again.data.input_shape == trained.data.input_shape
  assert again.network.compression.sites == trained.network.compression.sites
  before, after = arrays_of(trained), arrays_of(again)
  assert before.keys() == after.keys()
  for name in trees.kernels(trained.weights['params']):
    kept = np.where(after[name] == 0, 0, before[name])  # what nothing reads is not stored
    np.testing.assert_allclose(after[name], kept, rtol=1e-5, err_msg=name)
  whole = dataclasses.replace(trained.network, compression=Compression())
  bare = dataclasses.replace(again.network, compression=Compression())
  one, other = (logits(network, data_of, dict(weights, params=trees.map_named(
      lambda name, leaf, of=of: jnp.asarray(of[name]), weights['params'])))
      for network, data_of, weights, of in ((whole, trained.data, trained.weights, before),
                                            (bare, trained.data, again.weights, after)))
  np.testing.assert_allclose(other, one, rtol=0.05, atol=0.05 * np.abs(one).max())
  assert len(data) < 0.25 * 4 * trees.count(trained.weights['params']) + 2000


def test_running_text_is_read_in_as_many_places_as_it_was_measured_in(small, monkeypatch):
  for size in (8, 64):  # 64 is what a file without it says
    trained = trained_of(small, monkeypatch, 'lstm_lm')
    config = trained.config.replace(batch_size=size)
    data = pack.pack(dataclasses.replace(trained, config=config))
    assert pack.unpack(data).config.data.batch_size == size
    assert (b'batch_size' in str(container.read_header(data)[0]).encode()) == (size != 64)
  with pytest.raises(UserError, match='batch_size'):
    pack.read_config(dict(batch_size=10 ** 6))


def test_a_fresh_process_gives_the_very_logits_that_were_measured(small, tmp_path):
  config = small.replace(runs_dir=str(tmp_path), prune_sparsity=0.5, quantize_weight_bits=4,
                         epochs=1)
  run.train(config.check(), quiet=True)
  trained = folder.load(str(tmp_path / config.name()))
  path = tmp_path / 'network.lepton'
  path.write_bytes(pack.pack(trained))
  inputs = trained.data.splits['test'][0][:50]
  np.save(tmp_path / 'inputs.npy', inputs)
  here = pack.unpack(path.read_bytes()).outputs(inputs)
  code = ('import numpy, pathlib, sys; from lepton_jax.deploy import pack; d = sys.argv[1];'
          'found = pack.unpack(pathlib.Path(d, "network.lepton").read_bytes());'
          'numpy.save(d + "/logits.npy", found.outputs(numpy.load(d + "/inputs.npy")))')
  environment = dict(os.environ, JAX_NUM_CPU_DEVICES='4')
  subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=True, env=environment,
                 cwd=pathlib.Path(__file__).parents[1])
  np.testing.assert_array_equal(np.load(tmp_path / 'logits.npy'), here)


@pytest.mark.parametrize('dataset,options', [
    *LONG * [('csv:{}/v.csv', dict(model='mlp', target='x', task='regression')),
             ('csv:{}/t.csv', dict(model='mlp', target='y'))],
    ('series:{}/s.csv', dict(model='gru_regressor', hidden=8, target='x,z', window=8, horizon=3)),
    ('csv:{}/w.csv', dict(model='text_cnn', width=0.05, text_column='text', target='y'))])
def test_files_of_tables_series_and_text_are_those_that_were_measured(small, tmp_path, dataset,
                                                                      options):
  rng = np.random.default_rng(0)
  rows = [f'{rng.normal():.3f},{i % 5 / 7:.3f},{"ab"[i % 2]}' for i in range(120)]
  (tmp_path / 't.csv').write_text('x,z,y\n' + '\n'.join(rows) + '\n')
  days = [f'2026-{1 + i // 28:02}-{1 + i % 28:02}' for i in range(120)]
  (tmp_path / 's.csv').write_text('date,x,z\n' + '\n'.join(
      f'{day},{row.rpartition(",")[0]}' for day, row in zip(days, rows)) + '\n')
  (tmp_path / 'v.csv').write_text('x,z\n' + '\n'.join(r.rpartition(',')[0] for r in rows) + '\n')
  words = [f'word{rng.integers(30)} word{i % 7} \u00e4h,{"ab"[i % 2]}' for i in range(120)]
  (tmp_path / 'w.csv').write_text('text,y\n' + '\n'.join(words) + '\n')
  config = small.replace(**dict(dataset=dataset.format(tmp_path), runs_dir=str(tmp_path / 'runs'),
                                epochs=1, batch_size=16, split_seed=20_261_125) | options)
  run.train(config.check(), quiet=True)
  trained = folder.load(f'{config.run.runs_dir}/{config.name()}')
  facts = measure.packed(f'{config.run.runs_dir}/{config.name()}', bits=0, number_bits=0)
  path = f'{config.run.runs_dir}/{config.name()}/{measure.FILE}'
  again = measure.open_file(path)
  inputs = trained.data.splits['test'][0]
  # In batches of another size, whose sums may end in another digit.
  np.testing.assert_allclose(again.outputs(inputs), trained.outputs(inputs), rtol=1e-5, atol=1e-5)
  kind = facts['measure']
  assert again.measure('test')[kind] == facts[f'test_{kind}']


def test_batch_norms_are_folded_and_the_rest_takes_few_bytes(small, monkeypatch):
  trained = trained_of(small, monkeypatch, 'resnet8')
  weights = dict(trained.weights, model_state=jax.tree.map(
      lambda leaf: leaf + np.float32(0.3), trained.weights['model_state']))
  trained = dataclasses.replace(trained, weights=weights)
  again = pack.unpack(pack.pack(trained, bits=16, number_bits=16))
  inputs = trained.data.splits['train'][0]
  one, other = trained.outputs(inputs), again.outputs(inputs)
  np.testing.assert_allclose(other, one, rtol=0.02, atol=0.02 * np.abs(one).max())
  state = trees.named(again.weights['model_state'])
  assert all(np.ptp(np.asarray(leaf)) == 0 for leaf in state.values())


def test_beside_its_weights_an_image_model_takes_less_than_200_bytes(small, monkeypatch):
  trained = trained_of(small, monkeypatch, 'lenet5', quantize_weight_bits=4,
                       quantize_granularity='tensor')
  data = pack.pack(trained)
  _, (_, coded) = container.read_header(data)
  assert len(data) - len(coded) < 200


def test_committed_files_stay_readable_and_are_as_large_as_their_table_says():
  results = RESULTS.parent
  lines = markdown.rows(results / 'smallest_files.csv')
  for line in lines:
    assert line['recipe'] == smallest_files.ROWS[line['row'].partition(' on ')[0]][2]
  for path in (results / 'files').glob('*.lepton'):
    best = max((line for line in lines if line['row'] == path.stem),
               key=lambda line: sign(line['measure']) * float(line['validation']))
    data = path.read_bytes()
    assert len(data) == int(best['file_bytes'])
    found = pack.unpack(data)
    assert re.search(rf'--model={found.config.architecture.model}\b', best['flags'])
    assert 4 * measure.dense_parameters(found) == int(best['dense_bytes'])


# files that lie

@pytest.fixture(scope='module')
def good(request):
  """The bytes of a small packed network with every kind of array."""
  del request
  rng = np.random.default_rng(0)
  header = dict(o=dict(model='mlp', width=0.05), f=dict(i=['float32', 7], c=3, m=[0.0], s=[1.0]))
  kernel = rng.integers(-3, 4, (7, 6)).astype(np.float32)
  arrays = [levels.of_numbers(np.linspace(0, 1, 6, dtype=np.float32), 8),
            levels.of_kernel(kernel, 8),
            levels.of_numbers(np.zeros(6, np.float32), 8),
            levels.of_kernel(kernel[:6] * np.arange(1, 7, dtype=np.float32), 8),
            levels.of_numbers(rng.normal(size=3).astype(np.float32), 8),
            levels.of_kernel(np.float32([-1.5, 0, 0.7])[rng.integers(0, 3, (6, 3))], 8)]
  return container.write(header, arrays)


def sealed(content):
  """Bytes with the checksum that belongs to them."""
  return content + zlib.crc32(content).to_bytes(4, 'little')


def read(data):
  """What a user gets: a network that answers, or a UserError."""
  try:
    found = pack.unpack(data, most=1 << 22)
  except UserError as error:
    return str(error)
  return found


def test_a_good_file_is_read(good):
  found = read(good)
  assert found.outputs(np.zeros((2, 7), np.float32)).shape == (2, 3)


def test_cut_and_flipped_files_are_told_by_their_checksum(good):
  rng = np.random.default_rng(0)
  for size in range(len(good)):
    assert isinstance(read(good[:size]), str)
  for at in range(len(good)):
    flipped = bytearray(good)
    flipped[at] ^= 1 << rng.integers(8)
    assert isinstance(read(bytes(flipped)), str), at


@pytest.mark.parametrize('seed', range(20 if LONG else 1))
def test_files_with_a_right_checksum_and_wrong_bytes_end_in_a_sentence(good, seed):
  """Bytes changed, cut, repeated; heads inflated, changed and deflated again."""
  rng = np.random.default_rng(seed)
  answers = 0
  for _ in range(500 if LONG else 150):
    content = bytearray(good[:-4])
    if rng.random() < 0.5:
      content = bytearray(with_head(good, mutated(rng, bytearray(head_of(good)))))
    else:
      content = mutated(rng, content)
    found = read(sealed(bytes(content)))
    if not isinstance(found, str):
      answers += 1
      assert trees.count(found.weights['params']) <= 1 << 20
  assert answers < 500


def head_of(data):
  size, at = container._read_varint(data, 4)
  return zlib.decompress(data[at:at + size], -15)


def with_head(data, head):
  size, at = container._read_varint(data, 4)
  squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
  new = squeeze.compress(bytes(head)) + squeeze.flush()
  return data[:4] + container._varint(len(new)) + new + data[at + size:-4]


def mutated(rng, content):
  for _ in range(rng.integers(1, 4)):
    at, kind = int(rng.integers(len(content))), rng.integers(4)
    if kind == 0:
      content[at] = rng.integers(256)
    elif kind == 1:
      del content[at:at + int(rng.integers(1, 9))]
    elif kind == 2:
      content[at:at] = rng.bytes(int(rng.integers(1, 9)))
    else:
      content[at] = ord('9')  # of a number in the head
    if not content:
      content = bytearray(b'0')
  return content


@pytest.mark.parametrize('header,words', [
    (dict(o=dict(model='mlp', width=100), f=dict(i=['float32', 7], c=3, m=[0], s=[1])), 'MiB'),
    (dict(o=dict(model='mlp', depth=10**6), f=dict(i=['float32', 7], c=3, m=[0], s=[1])), 'depth'),
    (dict(o=dict(model='mlp', width=1e9)), 'width'),
    (dict(o=dict(model='mlp', runs_dir='/')), 'runs_dir'),
    (dict(o=dict(model='nonsense')), 'unknown model'),
    (dict(o=dict(model='mlp'), f=dict(i=['float32', -7], c=3)), 'describes no data'),
    (dict(o=dict(model='mlp'), f=dict(i=['float32', 7], c=10**9)), 'describes no data'),
    (dict(o=dict(model='mlp'), f=dict(i=['object', 7], c=3, m=[0], s=[1])), 'damaged'),
    (dict(o=dict(model='mlp'), f=dict(i=['float32', 7], c=3, m=[0, 0], s=[1, 1])), 'no data'),
    (dict(o=dict(model='mlp'), f=dict(i=['float32', 7], c=3, m=[0], s=[0])), 'no data'),
    (dict(o=dict(model='mlp'), f=dict(i=['float32', 7], c=3, m=[0], s=[1]), w=dict(head=2)),
     'not of this network'),
    (dict(o=dict(model='mlp', cache_dir='/etc'), f=dict(i=['float32', 7], c=3)), 'cache_dir'),
    (dict(o=dict(model='mlp'), f=dict(i=['float32', 7], c=3, m=[0], s=[1], x=[[]] * 600_000)),
     'describes itself'),
    (dict(o=dict(model='mlp'), f=dict(i=['float32', 7], c=3, m=[0], s=[1]), w=dict(dense1=-1)),
     'widths'),
    ([], 'no JSON object'), (dict(o=[1]), 'options'), (dict(f=[1]), 'describes no data')])
def test_lies_in_the_head_are_named(header, words):
  answer = read(container.write(header, []))
  assert isinstance(answer, str) and words in answer


def test_a_bomb_is_refused_before_its_memory_is_asked_for():
  bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
  head = bomb.compress(bytes(64 << 20)) + bomb.flush()
  data = sealed(b'LPT\x01' + container._varint(len(head)) + head)
  assert len(data) < 100_000 and 'larger than 4 MiB' in read(data)


def test_of_another_version_or_kind_it_says_so(good):
  assert 'version 9' in read(sealed(good[:3] + b'\x09' + good[4:-4]))
  assert 'does not begin with LPT' in read(b'PK\x03\x04' + bytes(20))
