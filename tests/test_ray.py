"""Sweeps on workers of Ray: the bits of one process, workers that die, and what is refused."""

import contextlib
import glob
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from lepton_jax import outcomes
from lepton_jax.errors import UserError
from lepton_jax.sweep import engine, grid, ray_executor, search
from tests import LONG

needs_ray = pytest.mark.skipif(importlib.util.find_spec('ray') is None, reason='without Ray')
long = pytest.mark.skipif(not LONG, reason='of the long form: starts Ray once more')
TIMES = ('train_seconds', 'examples_per_second', 'finished')


@pytest.fixture
def on_cpu(monkeypatch):
  """Workers do not inherit what conftest sets in JAX itself."""
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')


def results(configs):
  """What each trial came to, times apart."""
  found = {c.name(): outcomes.finished(c) for c in configs}
  return {name: {k: v for k, v in result.items() if k not in TIMES}
          for name, result in found.items()}


def holder(path):
  """The number of the process that has a file open, None without one."""
  for descriptor in glob.glob('/proc/[0-9]*/fd/*'):
    with contextlib.suppress(OSError):
      if os.readlink(descriptor) == str(path):
        return int(descriptor.split('/')[2])
  return None


class Killer(threading.Thread):
  """Kills, the given number of times, the process that trains a trial, each time a new one."""

  def __init__(self, config, times):
    super().__init__(daemon=True)
    self._folder, self._times, self.killed = outcomes.folder_of(config), times, []

  def run(self):
    while len(self.killed) < self._times:
      process = holder(self._folder / '.claim')
      rows = self._folder / 'metrics.jsonl'
      if process not in (None, *self.killed) and rows.exists() and rows.read_text():
        os.kill(process, signal.SIGKILL)
        self.killed.append(process)
      time.sleep(0.01)


@needs_ray
@long
def test_trials_have_the_bits_of_one_process_though_a_worker_is_killed(base, tmp_path, on_cpu,
                                                                        capfd):
  found, lines = {}, []
  for executor in ('inline', 'ray'):
    start = base.replace(runs_dir=str(tmp_path / executor), dropout=0.2)
    configs = grid.product(start, dict(l2=[0.0, 1e-3], seed=[0, 1]))
    configs.append(start.replace(epochs=100))
    if executor == 'ray':
      killer = Killer(configs[-1], 1)
      killer.start()
    costs = engine.sweep(configs, executor, workers=2, tell=lines.append)
    assert costs[:2] == (5, 3)
    found[executor] = results(configs)
  assert len(killer.killed) == 1 and capfd.readouterr().err.count('another one trains it') == 1
  assert sum('validation accuracy' in line for line in lines) == 2 * 5
  assert found['inline'] == found['ray'] and len(found['ray']) == 5
  assert not list((tmp_path / 'ray').glob('.seen*'))


@needs_ray
@long
def test_a_trial_that_kills_its_workers_is_noted_as_failed(base, on_cpu):
  deadly, other = base.replace(epochs=2000), base.replace(seed=1)
  killer = Killer(deadly, ray_executor.DEATHS)
  killer.start()
  costs = engine.sweep([deadly, other], 'ray', workers=2, tell=lambda text: None)
  assert costs.trials == 1 and outcomes.finished(other) and len(killer.killed) == 3
  assert '3 workers died' in outcomes.failure(deadly)['error']


@needs_ray
@long
@pytest.mark.parametrize('sent', [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_saves_what_its_workers_train(tmp_path, sent):
  arguments = [sys.executable, '-m', 'experiments.regularization_sweep', '--model=mlp',
               '--dataset=digits', '--epochs=3000', '--l2=1e-4,1e-3', f'--runs_dir={tmp_path}',
               '--executor=ray', '--workers=2']
  process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             cwd=pathlib.Path(__file__).parents[1])
  while sum(path.read_text().count('\n') >= 3 for path in tmp_path.glob('*/metrics.jsonl')) < 2:
    assert process.poll() is None
    time.sleep(0.05)
  process.send_signal(sent)
  _, errors = process.communicate()
  assert process.returncode == 128 + sent and 'repeat the same command' in errors
  steps = [int(p.name) for p in tmp_path.glob('*/checkpoints/[0-9]*')]
  assert len(steps) == 2 and min(steps) > 0 and not list(tmp_path.glob('*/result.json'))


@needs_ray
@long
def test_what_a_worker_does_not_accept_ends_the_sweep(base, tmp_path, on_cpu):
  table = tmp_path / 'missing.csv'
  with pytest.raises(UserError, match='missing.csv'):
    config = base.replace(model='linear', width=None, dataset=f'csv:{table}', target='price',
                          task='regression')
    engine.sweep([config], 'ray', tell=lambda text: None)


def test_a_worker_says_what_differs_from_the_first_machine(base, tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'chdir', lambda path: None)
  monkeypatch.setattr(os, 'environ', dict(os.environ))
  same = ray_executor.versions()
  job = lambda mark, versions: ray_executor.Job([base], 0.0, '.', [mark], {}, versions)
  with pytest.raises(UserError, match='does not see this folder'):
    ray_executor.Trainer().open(job(tmp_path / 'elsewhere' / '.seen', same))
  with pytest.raises(UserError, match='this machine 0.1'):
    ray_executor.Trainer().open(job(tmp_path, same | dict(jax='0.1')))


def test_ray_s_flags_are_checked_before_anything_starts(base, monkeypatch):
  with pytest.raises(UserError, match='pass --executor=ray'):
    engine.sweep([base], 'inline', address='auto')
  with pytest.raises(UserError, match='inline or devices'):
    search.check_executor('tpe', 'ray')
  found = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name == 'ray' or found(name))
  with pytest.raises(UserError, match='allowed are auto'):
    engine.sweep([base], 'ray', address='http://head')
  with pytest.raises(UserError, match='nothing answers there'):
    engine.sweep([base], 'ray', address='127.0.0.1:1')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match='pip install -r requirements-ray.txt'):
    engine.sweep([base], 'ray')


def test_a_worker_s_device_follows_jax_s_platform_then_the_cluster():
  both = dict(CPU=8.0, GPU=2.0)
  assert ray_executor.device_kind('', both) == 'GPU'
  assert ray_executor.device_kind('', dict(CPU=8.0)) == 'CPU'
  assert ray_executor.device_kind('cpu', both) == 'CPU'
  assert ray_executor.device_kind('cuda,cpu', both) == 'GPU'
  assert ray_executor.device_kind('tpu', dict(TPU=4.0)) == 'TPU'
