"""Runs that are stopped, killed or damaged end as if nothing had happened."""

import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import time

import pytest

from lepton_jax import folder as folder_lib
from lepton_jax import run
from lepton_jax.train import checkpoint, loop
from tests import LONG

# Everything a state can hold: moving average, best weights, early stopping, masks, ranges, dropout
# and augmentation keys.
FULL = dict(dropout=0.2, augment_crop=1, augment_mixup=0.3, ema_decay=0.9, patience=50,
            prune_sparsity=0.8, prune_begin=0.1, prune_end=0.5, quantize_weight_bits=4,
            quantize_activation_bits=6, optimizer='adam', weight_decay=1e-3)
SAME = ('parameters_sha256', 'test_accuracy', 'test_loss', 'validation_accuracy', 'validation_loss',
        'selected_step', 'sparsity')


class Stopped(loop.StopSignal):
  """A stop signal that arrives by itself at a given look at it."""

  after = None

  @property
  def arrived(self):
    if Stopped.after is not None:
      Stopped.after -= 1
      if Stopped.after < 0:
        return 'SIGTERM'
    return None

  @arrived.setter
  def arrived(self, value):
    del value


def rows_without_times(folder):
  rows = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
  return [{k: v for k, v in row.items() if k not in ('seconds', 'examples_per_second')}
          for row in rows]


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  from lepton_jax.config import Config
  config = Config().replace(model='mlp', dataset='digits', epochs=3, batch_size=32,
                            tensorboard=False, pictures=False, steps_per_call='1', **FULL)
  root = tmp_path_factory.mktemp('whole')
  result = run.train(config.replace(runs_dir=str(root)), quiet=True)
  return config, result, root / config.name()


@pytest.mark.parametrize('stops, calls', [
    ((3, 9), '8'), *LONG * [((40, 5), '1'), ((17,), '1'), ((1, 60, 30), '1')]])
def test_stopping_and_resuming_changes_nothing(uninterrupted, tmp_path, monkeypatch, stops, calls):
  """Stops in an epoch, at its end, right after a resume, and between calls of many steps."""
  config, whole, folder = uninterrupted
  config = config.replace(runs_dir=str(tmp_path), steps_per_call=calls)
  monkeypatch.setattr(loop, 'StopSignal', Stopped)
  for stop in stops:
    monkeypatch.setattr(Stopped, 'after', stop)
    with pytest.raises(loop.Interrupted):
      run.train(config, quiet=True)
    assert not (tmp_path / config.name() / 'result.json').exists()
  monkeypatch.setattr(Stopped, 'after', None)
  result = run.train(config, quiet=True)
  assert {k: result[k] for k in SAME} == {k: whole[k] for k in SAME}
  assert rows_without_times(tmp_path / config.name()) == rows_without_times(folder)


def test_running_text_resumes_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
  """The state carried from batch to batch is part of what is saved."""
  from lepton_jax.config import Config
  (tmp_path / 'text.txt').write_text('to be or not to be, that is the question ' * 60)
  config = Config().replace(model='lstm_lm', dataset=f'text:{tmp_path}/text.txt', hidden=8,
                            embedding=8, batch_size=8, sequence_length=16, epochs=3, dropout=0.2,
                            recurrent_dropout=0.2, prune_sparsity=0.5, quantize_weight_bits=4,
                            quantize_activation_bits=8, tensorboard=False, pictures=False)
  whole = run.train(config.replace(runs_dir=str(tmp_path / 'whole')), quiet=True)
  config = config.replace(runs_dir=str(tmp_path / 'stopped'))
  monkeypatch.setattr(loop, 'StopSignal', Stopped)
  for stop in (*LONG * (7,), 13):
    monkeypatch.setattr(Stopped, 'after', stop)
    with pytest.raises(loop.Interrupted):
      run.train(config, quiet=True)
  monkeypatch.setattr(Stopped, 'after', None)
  result = run.train(config, quiet=True)
  same = ('parameters_sha256', 'test_loss', 'validation_loss', 'selected_step')
  assert {k: result[k] for k in same} == {k: whole[k] for k in same}


def test_a_reloaded_run_gives_the_very_logits_of_its_end(uninterrupted, monkeypatch):
  config, whole, folder = uninterrupted
  trained = folder_lib.load(str(folder))
  evaluation = __import__('lepton_jax.evaluation', fromlist=['full_report'])
  report, _ = evaluation.full_report(trained, 'test')
  assert (report['accuracy'], report['loss']) == (whole['test_accuracy'], whole['test_loss'])


def test_a_finished_run_is_only_read(uninterrupted):
  config, whole, folder = uninterrupted
  before = {p: p.stat().st_mtime_ns for p in folder.rglob('*')}
  assert run.train(config.replace(runs_dir=str(folder.parent)), quiet=True) == whole
  assert before == {p: p.stat().st_mtime_ns for p in folder.rglob('*')}


def test_its_config_reproduces_a_run(uninterrupted, tmp_path):
  from lepton_jax.config import Config
  _, whole, folder = uninterrupted
  config = Config.from_json((folder / 'config.json').read_text()).replace(runs_dir=str(tmp_path))
  assert config.name() == folder.name
  assert run.train(config, quiet=True)['parameters_sha256'] == whole['parameters_sha256']


def copy_checkpoints(folder, to):
  shutil.copytree(folder / 'checkpoints', to)
  return checkpoint.Checkpoints(to)


def test_every_flipped_byte_is_found_named_and_the_one_before_used(uninterrupted, tmp_path):
  store = copy_checkpoints(uninterrupted[2], tmp_path / 'c')
  newest, before = store.steps()
  files = [p for p in (tmp_path / 'c' / str(newest)).rglob('*') if p.is_file()]
  assert len(files) > 8
  rng = random.Random(0)
  for file in files:
    content = file.read_bytes()
    if not content:
      continue
    for _ in range(3):
      place = rng.randrange(len(content))
      changed = bytes([content[place] ^ 1 << rng.randrange(8)])
      file.write_bytes(content[:place] + changed + content[place + 1:])
      told = []
      assert store.latest(told.append) == before
      assert len(told) == 1 and (file.name in told[0] or file.name == checkpoint.SEAL), told
      file.write_bytes(content)
  assert store.latest() == newest


def test_missing_and_added_files_are_found(uninterrupted, tmp_path):
  store = copy_checkpoints(uninterrupted[2], tmp_path / 'c')
  newest, before = store.steps()
  (tmp_path / 'c' / str(newest) / 'stranger').write_text('x')
  told = []
  assert store.latest(told.append) == before and 'stranger does not belong' in told[0]
  (tmp_path / 'c' / str(newest) / 'stranger').unlink()
  (tmp_path / 'c' / str(newest) / 'default' / '_METADATA').unlink()
  assert store.latest(told.append) == before and '_METADATA is missing' in told[1]


def test_a_damaged_checkpoint_costs_an_epoch_not_the_result(uninterrupted, tmp_path):
  config, whole, folder = uninterrupted
  copy = tmp_path / folder.name
  shutil.copytree(folder, copy)
  shutil.rmtree(copy / 'weights')
  (copy / 'result.json').unlink()
  file = max((copy / 'checkpoints' / '120').rglob('d/*'), key=lambda p: p.stat().st_size)
  file.write_bytes(b'\0' + file.read_bytes()[1:])
  result = run.train(config.replace(runs_dir=str(tmp_path)), quiet=True)
  assert result['parameters_sha256'] == whole['parameters_sha256']
  assert rows_without_times(copy) == rows_without_times(folder)


def test_final_weights_without_a_seal_are_written_again(uninterrupted, tmp_path):
  config, whole, folder = uninterrupted
  copy = tmp_path / folder.name
  shutil.copytree(folder, copy)
  (copy / 'result.json').unlink()
  next((copy / 'weights').rglob(checkpoint.SEAL)).unlink()
  again = run.train(config.replace(runs_dir=str(tmp_path)), quiet=True)
  assert again['test_loss'] == whole['test_loss']
  assert not checkpoint.Checkpoints(copy / 'weights').problem(120)


def test_damaged_final_weights_are_named(uninterrupted, tmp_path):
  from lepton_jax.errors import UserError
  copy = tmp_path / 'copy'
  shutil.copytree(uninterrupted[2], copy)
  file = next((copy / 'weights').rglob('_METADATA'))
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(UserError, match='_METADATA is damaged'):
    folder_lib.read_weights(str(copy))


KILLS = 20 if LONG else 2


def worker(config, cache):
  """What a killed process was doing: one run, with its programs from the shared cache."""
  os.environ['XDG_CACHE_HOME'] = cache
  run.train(config, quiet=True)


def test_kills_at_random_moments_end_in_the_same_parameters(uninterrupted, tmp_path):
  """kill -9 of real processes, a quarter at least in a save under way; each next one resumes."""
  config, whole, _ = uninterrupted
  config = config.replace(runs_dir=str(tmp_path))
  folder = tmp_path / config.name()
  # These are real processes that need not import JAX each time.
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['tests.conftest', 'lepton_jax.run', 'lepton_jax.train.loop',
                                  'orbax.checkpoint'])
  rng, in_save, kills = random.Random(7), 0, 0
  deadline = time.monotonic() + 240
  while kills < KILLS:
    assert time.monotonic() < deadline
    before = unsealed(folder)  # left by an earlier kill: no sign of a save of this process
    process = context.Process(target=worker, args=(config, os.environ['XDG_CACHE_HOME']))
    process.start()
    if kills % 2:  # in a save: as soon as one begins, or some milliseconds into it
      while process.is_alive() and not unsealed(folder) - before:
        time.sleep(0.0002)
      time.sleep(rng.uniform(0, 0.03))
    else:
      process.join(rng.uniform(0.2, 2.0))
    if process.is_alive():
      os.kill(process.pid, signal.SIGKILL)
      process.join()
      kills += 1
      in_save += bool(unsealed(folder) - before)
    elif (folder / 'result.json').exists():  # it was done before its kill: begin again
      assert process.exitcode == 0
      check_same(folder, whole)
      shutil.rmtree(folder)
    else:
      raise AssertionError(f'the run failed by itself: exit code {process.exitcode}')
  assert in_save >= max(1, KILLS // 4), in_save
  run.train(config, quiet=True)
  check_same(folder, whole)


def unsealed(folder):
  """Saves that were begun and not finished, of checkpoints or of final weights.

  They are temporary folders, or ones without a seal.
  """
  found = set()
  for part in ('checkpoints', 'weights'):
    if (folder / part).exists():
      for p in (folder / part).iterdir():
        with contextlib.suppress(FileNotFoundError):  # renamed since it was listed: it is finished
          if not p.name.isdigit() or not (p / checkpoint.SEAL).exists():
            found.add((p.name, p.stat().st_ino))
  return found


def check_same(folder, whole):
  result = json.loads(pathlib.Path(folder / 'result.json').read_text())
  assert {k: result[k] for k in SAME} == {k: whole[k] for k in SAME}
