"""jit, sharded and pmap give the same numbers, on virtual devices and from two processes."""

import os
import pathlib
import socket
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from lepton_jax import assemble, trees
from lepton_jax.config import Config
from lepton_jax.errors import UserError
from lepton_jax.layers import platform
from lepton_jax.train import parallel
from tests import LONG
from tests.test_models import FAMILIES, GOLDEN, SHALLOW, tiny_dataset

# Batch norm, dropout, augmentation with mixing, pruning and weight rounding, all at once. Left out
# is what picks between equals: pixels take few values, so entries of a max pool tie and activations
# lie on the border of two levels, where the order of a sum decides.
EVERYTHING = dict(model='resnet8', width=0.25, dataset='digits', dtype='float64', batch_size=16,
                  epochs=1, dropout=0.3, optimizer='momentum', learning_rate=0.05, augment_crop=1,
                  augment_mixup=0.5, weight_decay=1e-3, prune_sparsity=0.6, prune_begin=0.0,
                  prune_end=0.1, prune_updates=3, quantize_weight_bits=4, ema_decay=0.9)

MODES = ('sharded', *LONG * ('pmap',))  # of several processes
SHORT = dict(model='ds_cnn', depth=1)  # of two processes each compiles every program


def train(mode, steps=20, **options):
  """{name: array} of the state after some steps in a parallel mode, and its weights' logits."""
  config = Config().replace(**(EVERYTHING | options))
  data = assemble.load_data(config)
  assembly = assemble.build(config, data)
  layout = parallel.make_parallel(mode, config.data.batch_size)
  state, step = layout.put_state(assembly.state), layout.step(assembly.train_step(layout.axis))
  hooks = assembly.make_hooks(layout.put_examples, layout.rows, layout.predict)
  for i in range(steps):
    for hook in hooks:
      state = hook(state, i)
    state, _ = step(state, layout.put_batch(assembly.batches.at(i, layout.rows)))
  inputs = data.splits['test'][0][:16][layout.rows]
  examples = layout.put_examples(inputs)
  logits = layout.predict(assembly.network.predict)(state.evaluated, examples, state.hparams)
  arrays = {n: np.asarray(leaf) for n, leaf in trees.named(state).items()}
  return arrays | {'logits': np.asarray(logits)}


def compare(one, other):
  assert one.keys() == other.keys()
  for name in one:
    atol = 1e-9 if 'totals' not in name else 1e-4
    np.testing.assert_allclose(other[name], one[name], rtol=1e-8, atol=atol, err_msg=name)


@pytest.fixture(scope='module')
def reference():
  with jax.enable_x64(True):
    return train('jit')


@pytest.mark.parametrize('mode', ('sharded', 'pmap'))
def test_modes_agree_in_double_precision(mode, reference):
  assert jax.device_count() == 4
  with jax.enable_x64(True):
    compare(reference, train(mode))


@pytest.mark.skipif(not LONG, reason='long form')
def test_a_quantised_lstm_learns_the_same_ranges_however_its_batch_is_split():
  """By plain descent, which a gradient scaled by a device's share of the batch would change."""
  lstm = dict(model='lstm_classifier', hidden=8, width=None, quantize_activation_bits=8,
              optimizer='sgd', clip_norm=0.5, steps=8)
  with jax.enable_x64(True):
    one, many = train('jit', **lstm), train('pmap', **lstm)
  assert any('ranges' in name for name in one)
  compare(one, many)


@pytest.mark.parametrize('mode', ('sharded', *LONG * ('pmap',)))
def test_modes_agree_in_single_precision_by_the_library_of_a_cpu(mode):
  """Where oneDNN is there; without it XLA's forms are compared."""
  small = dict(dtype='float32', model='lenet5', norm='batch', image_size=20, width=0.3, steps=6,
               quantize_weight_bits=0, augment_crop=0, learning_rate=0.01)
  one, many = train('jit', **small), train(mode, **small)
  for name in one:
    if 'params' in name or name == 'logits':
      np.testing.assert_allclose(many[name], one[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize('count', (2, *LONG * (4,)))
def test_several_processes_agree_with_one(tmp_path, count):
  """Real processes of two devices each, connected by jax.distributed on the loopback."""
  with jax.enable_x64(True):
    reference = train('jit', **SHORT)
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  code = ('import jax, json, sys, numpy as np\n'
          "jax.config.update('jax_platforms', 'cpu')\n"
          "jax.config.update('jax_num_cpu_devices', 2)\n"
          "jax.config.update('jax_enable_x64', True)\n"
          f"jax.distributed.initialize('127.0.0.1:{port}', {count}, int(sys.argv[1]))\n"
          'from tests.test_parallel import SHORT, train\n'
          f'for mode in {MODES}:\n'
          "  arrays = {n.replace('/', '|'): a for n, a in train(mode, **SHORT).items()}\n"
          "  np.savez(f'{sys.argv[2]}/{mode}-{sys.argv[1]}.npz', **arrays)\n")
  environment = dict(os.environ, PYTHONPATH=str(pathlib.Path(__file__).parents[1]))
  workers = [subprocess.Popen([sys.executable, '-c', code, str(i), str(tmp_path)], env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
             for i in range(count)]
  output = [w.communicate(timeout=300)[0] for w in workers]
  assert [w.returncode for w in workers] == [0] * count, '\n'.join(output)
  for mode in MODES:
    for i in range(count):
      with np.load(tmp_path / f'{mode}-{i}.npz') as arrays:
        compare(reference, {n.replace('|', '/'): arrays[n] for n in arrays})


@pytest.mark.parametrize('batch, devices, sizes', [
    (30, 4, '28 or 32'), (3, 4, '4 or 8'), (9, 2, '8 or 10')])
def test_a_batch_that_does_not_divide_names_the_sizes_that_do(batch, devices, sizes):
  with pytest.raises(UserError, match=f'--batch_size={batch} .* {sizes}'):
    parallel.make_parallel('sharded', batch, devices)


def test_many_predictions_in_a_row_do_not_wait_for_each_other_for_ever():
  layout = parallel.make_parallel('pmap', 8)
  numbers = np.arange(32, dtype=np.float32).reshape(8, 4)
  weights, inputs = layout.put_state(np.ones((4, 3), np.float32)), layout.put_examples(numbers)
  answers = layout.predict(lambda w, x: x @ w)
  found = [answers(weights, inputs) for _ in range(500)]
  expected = np.arange(32).reshape(8, 4).sum(1, keepdims=True).repeat(3, 1)
  np.testing.assert_array_equal(found[-1], expected)


def test_too_many_devices_is_an_error():
  with pytest.raises(UserError, match='--devices=9: there are 4'):
    parallel.make_parallel('pmap', 18, 9)


@pytest.mark.parametrize('model', FAMILIES)
def test_every_train_step_lowers_for_gpus_and_tpus(model):
  shape, outputs, _ = GOLDEN[model]
  data = tiny_dataset(model, shape, max(outputs, 2) if model != 'lstm_lm' else 65, 4)
  config = Config().replace(model=model, batch_size=4, weight_decay=1e-4, prune_sparsity=0.5,
                            quantize_weight_bits=4, quantize_activation_bits=8,
                            augment_flip=len(shape) == 3, ema_decay=0.9, sequence_length=16,
                            buckets=1, **SHALLOW.get(model, {}))
  built = []

  def make_state():
    built.append(assemble.build(config, data))
    return built[0].state

  state = jax.eval_shape(make_state)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), built[0].batches.at(0))
  with platform.using('portable'):  # as there
    step = jax.jit(built[0].train_step(None))
    lowered = jax.export.export(step, platforms=['cuda', 'tpu'])(state, batch)
  assert lowered.platforms == ('cuda', 'tpu')
  leaves = jax.tree.leaves(state)
  assert [a.shape for a in lowered.out_avals[:len(leaves)]] == [leaf.shape for leaf in leaves]


@pytest.mark.parametrize('mode', ('jit', 'sharded', *LONG * ('pmap',)))
def test_many_steps_a_call_give_the_numbers_of_one_by_one(mode, tmp_path, small):
  """Calls of four and single steps, around epoch ends and mask updates, end in equal parameters."""
  from lepton_jax import run
  config = small.replace(parallel=mode, dropout=0.2, prune_sparsity=0.5, ema_decay=0.9, epochs=2,
                         batch_size=64)
  one, four = (run.train(config.replace(steps_per_call=count, runs_dir=str(tmp_path / count)),
                         quiet=True)
               for count in ('1', '4'))
  assert one['steps'] == four['steps']
  for name in ('test_loss', 'validation_loss'):
    assert four[name] == pytest.approx(one[name], rel=1e-5)


def test_calls_of_many_steps_stop_at_epochs_and_hooks():
  from lepton_jax.train import loop
  hooks = [loop.Hook(lambda step: step in (0, 13), None)]
  calls, step = [], 0
  while step < 30:
    calls.append(loop.steps_at_once(step, 4, 30, 10, hooks))
    step += calls[-1]
  assert calls == [4, 4, 1, 1] + [1, 1, 1, 1, 4, 1, 1] + [4, 4, 1, 1]
  # Resumed in the middle of an epoch, the calls fall where they would have.
  assert [loop.steps_at_once(s, 4, 30, 10, hooks) for s in (21, 22, 23, 24)] == [1, 1, 1, 4]


def test_devices_by_backend():
  from lepton_jax import speed

  def choose(batch, backend='cpu', mode='auto', asked=0):
    return speed.devices(mode, asked, batch, backend)
  assert jax.device_count() == 4
  assert choose(128) == ('jit', 0)  # whose libraries use all cores
  assert [choose(batch, 'tpu') for batch in (8, 6)] == [('sharded', 4), ('sharded', 3)]
  assert choose(8, asked=2) == ('pmap', 2) and choose(128, asked=1) == ('jit', 0)
  assert choose(128, mode='sharded') == ('sharded', 0)


def test_steps_a_call_by_backend_and_model():
  from lepton_jax import speed
  dense = {'head': {'kernel': np.zeros((2, 2))}}
  conv = {'conv1': {'kernel': np.zeros((3, 3, 1, 2))}}
  recurrent = {'forward1': {'recurrent': {'kernel': np.zeros((2, 8))}}}
  epoch = lambda steps, same=True: types.SimpleNamespace(same_shapes=same, steps_per_epoch=steps)
  choose = lambda params, epoch, backend='cpu': speed.steps_per_call('auto', params, epoch, backend)
  assert [choose(p, epoch(96)) for p in (dense, conv, recurrent)] == [32, 1, 1]
  assert speed.steps_per_call('auto', conv, epoch(96), 'cpu', by_library=True) == 32
  assert choose(conv, epoch(96), 'tpu') == 16 and choose(dense, epoch(96, False), 'tpu') == 1
  # No step is left over.
  assert [choose(dense, epoch(steps)) for steps in (54, 10, 31, 1)] == [27, 10, 31, 1]
  for asked in ('0', 'many', '-1'):
    with pytest.raises(UserError, match='allowed are auto'):
      speed.steps_per_call(asked, dense, epoch(96), 'cpu')
  with pytest.raises(UserError, match='several lengths'):
    speed.steps_per_call('2', dense, epoch(96, False), 'cpu')
