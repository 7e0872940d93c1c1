"""Whole runs, as a user starts them."""

import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from lepton_jax import folder as folder_lib
from lepton_jax import run, transplant
from lepton_jax.errors import UserError
from lepton_jax.train import loop

ROOT = pathlib.Path(__file__).parents[1]


def script(name, *arguments, cwd):
  environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu')
  return subprocess.Popen([sys.executable, '-m', f'experiments.{name}', *arguments], cwd=cwd,
                          env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)


def test_a_folder_that_cannot_be_made_is_told(small, tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='cannot make the folder'):
    run.train(small.replace(runs_dir=str(tmp_path / 'file')).check(), quiet=True)


def test_train_then_evaluate_from_any_folder(tmp_path):
  done = script('train', '--model=mlp', '--dataset=digits', '--epochs=8', cwd=tmp_path)
  output, errors = done.communicate()
  assert done.returncode == 0, errors
  folder, = (tmp_path / 'runs').iterdir()
  result = json.loads((folder / 'result.json').read_text())
  assert result['test_accuracy'] > 0.93 and f'{result["test_accuracy"]:.2%}' in output
  assert f'runs/{folder.name}' in output.splitlines()  # whole, to be copied
  for key in ('validation_accuracy', 'num_parameters', 'steps', 'train_seconds',
              'examples_per_second', 'versions', 'device', 'git_revision', 'seed'):
    assert key in result
  assert result['steps'] == 8 * (1294 // 64) and result['num_parameters'] == 26_122
  assert result['sparsity'] == 0 and result['quantized_kernels'] == 0
  rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  assert [row['epoch'] for row in rows] == list(range(1, 9))
  best = max(rows, key=lambda r: (r['validation_accuracy'], -r['validation_loss']))
  assert result['selected_step'] == best['step']
  assert result['validation_accuracy'] == best['validation_accuracy']
  assert PIL.Image.open(folder / 'learning_curves.png').size[0] > 500
  assert list((folder / 'tensorboard').iterdir())

  done = script('evaluate', f'--run={folder}', '--json', cwd=tmp_path)
  output, errors = done.communicate()
  assert done.returncode == 0, errors
  report = json.loads(output.splitlines()[-1])
  assert report['accuracy'] == result['test_accuracy'] and report['top5'] >= report['accuracy']
  assert report['loss'] == pytest.approx(result['test_loss'], rel=1e-6)
  assert np.trace(report['confusion']) / 359 == pytest.approx(report['accuracy'])
  assert PIL.Image.open(folder / 'confusion-test.png').size[0] > 300


def test_sigterm_saves_says_how_to_resume_and_resumes(tmp_path):
  arguments = ('--model=mlp', '--dataset=digits', '--epochs=400', '--checkpoint_every=1000',
               '--patience=400')
  process = script('train', *arguments, cwd=tmp_path)
  for line in process.stdout:
    if line.startswith('epoch   2'):
      break
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate()
  assert process.returncode == 128 + signal.SIGTERM and '--config=runs/mlp-digits-' in errors
  folder, = (tmp_path / 'runs').iterdir()
  step, = (int(p.name) for p in (folder / 'checkpoints').iterdir())
  process = script('train', f'--config={folder}/config.json', cwd=tmp_path)
  for line in process.stdout:
    if line.startswith('resuming'):
      assert line.split()[-1] == str(step)
    if line.startswith('epoch'):
      assert int(line.split()[1]) == step // 20 + 1
      break
  process.kill()
  process.communicate()


def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_last_checkpoint(tmp_path, small):
  config = small.replace(runs_dir=str(tmp_path), epochs=3, optimizer='sgd', learning_rate=0.1)
  original = run.assemble.build

  def poisoned(config, data, initial=None):
    import dataclasses
    assembly = original(config, data, initial)

    class Poison(type(assembly.batches)):
      def at(self, step, rows=slice(None)):
        batch = super().at(step, rows)
        if step == 55:
          batch['inputs'] = np.full(batch['inputs'].shape, np.nan, np.float32)
        return batch
    batches = Poison(*data.splits['train'], config.data.batch_size, config.training.seed)
    return dataclasses.replace(assembly, batches=batches)

  run.assemble.build = poisoned
  try:
    words = r'loss = nan at step 55 \(epoch 2\).*last good checkpoint is step 40'
    with pytest.raises(loop.NotFinite, match=words):
      run.train(config, quiet=True)
  finally:
    run.assemble.build = original
  assert not (tmp_path / config.name() / 'result.json').exists()
  assert (tmp_path / config.name() / 'checkpoints' / '40').is_dir()


def test_divergence_exits_with_an_error(tmp_path):
  process = script('train', '--model=mlp', '--dataset=digits', '--optimizer=sgd',
                   '--learning_rate=1e30', cwd=tmp_path)
  _, errors = process.communicate()
  assert process.returncode == 2 and 'Traceback' not in errors
  assert 'at step' in errors and 'no checkpoint had been written' in errors


def test_patience_stops_and_the_best_weights_are_kept(tmp_path, small):
  config = small.replace(runs_dir=str(tmp_path), epochs=60, patience=2, learning_rate=0.03,
                         schedule='constant')
  result = run.train(config, quiet=True)
  lines = (tmp_path / config.name() / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert len(rows) < 60 and result['selected_step'] == rows[-3]['step']
  best = max(r['validation_accuracy'] for r in rows)
  assert result['validation_accuracy'] == rows[-3]['validation_accuracy'] >= best
  last = run.train(config.replace(select='last', patience=0, epochs=len(rows)), quiet=True)
  assert last['selected_step'] == last['steps']


def test_cross_validation(tmp_path, small):
  config = small.replace(runs_dir=str(tmp_path), folds=3, train_limit=300)
  result = run.train(config, quiet=True)
  folders = [json.loads((tmp_path / config.name() / f'fold-{i}' / 'result.json').read_text())
             for i in range(3)]
  values = [r['validation_accuracy'] for r in folders]
  assert result['validation_accuracy'] == pytest.approx(np.mean(values))
  assert result['validation_accuracy_sd'] == pytest.approx(np.std(values, ddof=1))
  assert len({r['dataset_sha256'] for r in folders}) == 3


def test_fine_tuning_replaces_a_head_of_another_size_and_freezes(tmp_path, small):
  run.train(small.replace(runs_dir=str(tmp_path), epochs=1), quiet=True)
  source, = tmp_path.iterdir()
  pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 8, 8), np.uint8)
  for c, name in enumerate(('even', 'odd')):
    (tmp_path / 'set' / name).mkdir(parents=True)
    for i in range(20):
      PIL.Image.fromarray(pixels[c, i]).save(tmp_path / 'set' / name / f'{i}.png')
  three_channels = small.replace(runs_dir=str(tmp_path), dataset=f'folder:{tmp_path}/set',
                                 image_size=8, init_from=str(source), batch_size=8, epochs=1)
  with pytest.raises(UserError, match='dense1/kernel'):
    run.train(three_channels, quiet=True)
  same = small.replace(runs_dir=str(tmp_path), init_from=str(source), freeze='dense', epochs=1,
                       seed=5, select='last')
  run.train(same, quiet=True)
  old, new = (folder_lib.read_weights(str(tmp_path / n))[0]['params']
              for n in (source.name, same.name()))
  assert np.array_equal(old['dense1']['kernel'], new['dense1']['kernel'])
  assert not np.array_equal(old['head']['kernel'], new['head']['kernel'])
  with pytest.raises(UserError, match='not a run folder'):
    run.train(same.replace(init_from=str(tmp_path)), quiet=True)


def test_head_is_replaced_whole():
  zeros, ones = (functools.partial(make, dtype=np.float32) for make in (np.zeros, np.ones))
  mine = dict(body=dict(kernel=zeros((2, 2))), head=dict(kernel=zeros((2, 3)), bias=zeros(3)))
  theirs = dict(body=dict(kernel=ones((2, 2))), head=dict(kernel=ones((2, 5)), bias=ones(5)))
  params, _ = transplant.into(mine, {}, dict(params=theirs, model_state={}))
  assert np.all(params['body']['kernel'] == 1) and np.all(params['head']['kernel'] == 0)
  assert params['head']['bias'].shape == (3,)


def test_compression_from_a_dense_run(tmp_path, small):
  run.train(small.replace(runs_dir=str(tmp_path), epochs=6), quiet=True)
  source, = tmp_path.iterdir()
  config = small.replace(runs_dir=str(tmp_path), init_from=str(source), epochs=4,
                         learning_rate=0.01, prune_sparsity=0.9, quantize_weight_bits=4,
                         quantize_activation_bits=8)
  result = run.train(config, quiet=True)
  weights, _ = folder_lib.read_weights(str(tmp_path / config.name()))
  kernels = [weights['params'][n]['kernel'] for n in ('dense1', 'dense2', 'head')]
  total = sum(k.size for k in kernels)
  assert sum((k == 0).sum() for k in kernels) == round(0.9 * total)
  assert result['sparsity'] == pytest.approx(0.9, abs=1 / total)
  assert result['rounded_sparsity'] >= result['sparsity']
  assert result['quantized_kernels'] == 3
  assert {row['weight_bits'] for row in result['kernels']} == {4}
  assert result['test_accuracy'] > 0.8
  # The network is never one from before the target was reached.
  assert result['selected_step'] > 0.6 * result['steps']
  trained = folder_lib.load(str(tmp_path / config.name()))
  inputs, label = trained.data.splits['test']
  assert np.mean(trained.predict(inputs) == label) == result['test_accuracy']


def test_two_classes_train_one_sigmoid_logit(tmp_path, small):
  rng = np.random.default_rng(0)
  for c, name in enumerate(('dark', 'light')):
    (tmp_path / 'set' / name).mkdir(parents=True)
    for i in range(40):
      pixels = rng.integers(100 * c, 100 * c + 100, (30, 30, 3), np.uint8)
      PIL.Image.fromarray(pixels).save(tmp_path / 'set' / name / f'{i}.png')
  config = small.replace(runs_dir=str(tmp_path / 'runs'), model='cnn_binary', width=0.1,
                         dataset=f'folder:{tmp_path}/set', image_size=24, batch_size=8, epochs=6,
                         augment_flip=True)
  result = run.train(config, quiet=True)
  assert result['test_accuracy'] == 1.0
  trained = folder_lib.load(str(tmp_path / 'runs' / config.name()))
  assert trained.outputs(trained.data.splits['test'][0]).shape == (16, 1)


def test_launcher_lists_experiments_and_refuses_unknown_ones():
  done = subprocess.run([ROOT / 'launch.sh', 'tarin'], capture_output=True, text=True)
  assert done.returncode == 1 and "no experiment 'tarin'" in done.stderr
  assert all(n in done.stderr for n in ('evaluate', 'train', 'test'))
  done = subprocess.run([ROOT / 'launch.sh'], capture_output=True, text=True,
                        env=dict(os.environ, LEPTON_PLATFORM='abacus'))
  assert done.returncode == 1 and 'cpu, cuda, tpu' in done.stderr


@pytest.mark.parametrize('installer', ['pip', 'uv'])
@pytest.mark.parametrize('platform, reached, wanted', [
    ('cpu', True, ['torch', 'all']), ('cpu', False, ['torch', 'all']), ('cuda', True, ['all'])])
def test_benchmark_on_a_cpu_takes_pytorch_without_cuda_where_it_can(
    tmp_path, installer, platform, reached, wanted):
  subprocess.run(['bash', '-n', ROOT / 'launch.sh'], check=True)
  log, venv = tmp_path / 'log', tmp_path / 'venv'
  record = (f'#!/bin/bash\necho "${{0##*/}} $*" >>{log}\n'
            f'case $* in *download.pytorch.org*) exit {0 if reached else 1} ;; esac\n')
  for place in (venv / 'bin/python', tmp_path / 'path/uv')[:1 + (installer == 'uv')]:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(record)
    place.chmod(0o755)
  (tmp_path / 'path').mkdir(exist_ok=True)
  for name in ('bash', 'cat', 'dirname', 'grep'):
    (tmp_path / 'path' / name).symlink_to(shutil.which(name))
  environment = dict(PATH=str(tmp_path / 'path'), LEPTON_PLATFORM=platform, LEPTON_VENV=str(venv))
  done = subprocess.run([ROOT / 'launch.sh', 'benchmark', '--quick'], env=environment,
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  *installs, started = log.read_text().splitlines()
  assert started == 'python -m experiments.benchmark --quick'
  command = f'uv pip install --quiet --python {venv}/bin/python' if installer == 'uv' else (
      'python -m pip install --quiet --disable-pip-version-check')
  extra = {'cpu': '', 'cuda': 'jax[cuda13] '}[platform]
  expected = dict(torch=f'{command} --no-deps --index-url https://download.pytorch.org/whl/cpu '
                        'torch>=2.9,<3',
                  all=f'{command} -r {ROOT}/requirements-bench.txt {extra}-e {ROOT}')
  assert installs == [expected[name] for name in wanted]
  assert ('no PyTorch from' in done.stderr) == (not reached)


def test_zeros_of_a_pruned_network_stay_when_it_is_quantised_or_pruned_further(tmp_path, small):
  common = dict(runs_dir=str(tmp_path), prune_begin=0.0, prune_end=0.3, select='last',
                learning_rate=0.01)
  first = small.replace(**common, prune_sparsity=0.8)
  run.train(first, quiet=True)
  source = str(tmp_path / first.name())
  quantised = small.replace(**common, init_from=source, quantize_weight_bits=4)
  assert run.train(quantised, quiet=True)['sparsity'] == pytest.approx(0.8, abs=1e-4)
  further = small.replace(**common, init_from=source, prune_sparsity=0.9)
  assert run.train(further, quiet=True)['sparsity'] == pytest.approx(0.9, abs=1e-4)
  old, new = (folder_lib.read_weights(str(tmp_path / c.name()))[0]['params']['dense1']['kernel']
              for c in (first, further))
  assert np.all(new[old == 0] == 0)
  dense = small.replace(**common, init_from=source, keep_zeros=False)
  # Pixels that are always black teach their weights nothing.
  assert run.train(dense, quiet=True)['sparsity'] < 0.3


def test_frozen_kernels_are_not_pruned(tmp_path, small):
  config = small.replace(runs_dir=str(tmp_path), freeze='dense1', prune_sparsity=0.8,
                         prune_begin=0.0, prune_end=0.3)
  result = run.train(config, quiet=True)
  weights = folder_lib.read_weights(str(tmp_path / config.name()))[0]['params']
  assert np.all(weights['dense1']['kernel'] != 0)
  assert result['sparsity'] == pytest.approx(0.8, abs=1e-4)


def test_an_interrupted_rerun_goes_on_where_it_stopped(tmp_path, small, monkeypatch):
  from tests.test_resume import Stopped
  config = small.replace(runs_dir=str(tmp_path), rerun=True, steps_per_call='1')
  run.train(config, quiet=True)
  monkeypatch.setattr(loop, 'StopSignal', Stopped)
  monkeypatch.setattr(Stopped, 'after', 50)
  with pytest.raises(loop.Interrupted):
    run.train(config, quiet=True)
  saved = [int(p.name) for p in (tmp_path / config.name() / 'checkpoints').iterdir()]
  assert max(saved) == 49  # it is asked before each of 40 steps, after the epoch, and so on
  assert not json.loads((tmp_path / config.name() / 'config.json').read_text())['run']['rerun']
  monkeypatch.setattr(Stopped, 'after', 5)
  with pytest.raises(loop.Interrupted):
    run.train(config, quiet=True)
  assert max(int(p.name) for p in (tmp_path / config.name() / 'checkpoints').iterdir()) == 54


def test_one_fold_alone_and_its_config(tmp_path, small):
  config = small.replace(runs_dir=str(tmp_path), folds=3, fold=0, train_limit=300)
  alone = run.train(config, quiet=True)
  whole = run.train(config.replace(fold=None), quiet=True)
  inside = tmp_path / whole['name'] / 'fold-0'
  from lepton_jax.config import Config
  again = Config.from_json((inside / 'config.json').read_text())
  assert again.data.fold == 0 and again.name() == alone['name']
  result = json.loads((inside / 'result.json').read_text())
  assert result['parameters_sha256'] == alone['parameters_sha256']
  with pytest.raises(UserError, match='name one of its folds'):
    folder_lib.read_weights(str(tmp_path / whole['name']))


def test_a_damaged_result_is_named_not_a_traceback(tmp_path):
  (tmp_path / 'result.json').write_text('{"name": ')
  with pytest.raises(UserError, match='result.json is damaged'):
    folder_lib.read_result(tmp_path)


def test_a_network_predicts_without_its_data_set(tmp_path, small, monkeypatch):
  config = small.replace(runs_dir=str(tmp_path), epochs=1, prune_sparsity=0.5,
                         quantize_weight_bits=4, quantize_activation_bits=8)
  run.train(config, quiet=True)
  whole = folder_lib.load(str(tmp_path / config.name()))
  inputs = whole.data.splits['test'][0][:9]

  def refuse(_):
    raise AssertionError('the data set was read')

  monkeypatch.setattr(folder_lib.assemble, 'load_data', refuse)
  alone = folder_lib.load(str(tmp_path / config.name()), examples=False)
  np.testing.assert_array_equal(alone.outputs(inputs), whole.outputs(inputs))
  assert alone.data.classes == whole.data.classes and alone.data.size('test') == 0
