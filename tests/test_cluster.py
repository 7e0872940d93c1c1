"""Several processes as one: which flags they need, what they share, how they stop and end."""

import contextlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from lepton_jax import cluster, folder
from lepton_jax.config import Config
from lepton_jax.errors import UserError
from tests import LONG

ROOT = pathlib.Path(__file__).parents[1]
TRAIN = ('--model=mlp', '--dataset=digits', '--epochs=40', '--batch_size=32', '--width=0.5',
         '--dropout=0.2', '--prune_sparsity=0.5', '--quantize_weight_bits=4', '--cpu_devices=1',
         '--notensorboard', '--nopictures')
SAME = ('parameters_sha256', 'test_loss', 'validation_loss', 'selected_step')


def start(folder, count, *arguments, own=lambda index: (), train=TRAIN):
  """The processes of one run; `own` gives arguments of each."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  words = [sys.executable, '-m', 'experiments.train', *train, f'--runs_dir={folder}',
           f'--processes={count}', f'--coordinator=127.0.0.1:{port}', *arguments]
  return [subprocess.Popen([*words, f'--process_index={i}', *own(i)], cwd=ROOT, text=True,
                           env=dict(os.environ, JAX_PLATFORMS='cpu'), stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE) for i in range(count)]


def ends(processes):
  """[(exit status, output, errors)] of processes at their end."""
  said = [process.communicate(timeout=240) for process in processes]
  return [(process.returncode, *texts) for process, texts in zip(processes, said)]


def rows(folder):
  return [json.loads(line) for path in folder.glob('*/metrics.jsonl')
          for line in path.read_text().splitlines()]


def wait_for_epoch(folder, epoch, processes):
  while len(rows(folder)) < epoch:
    assert all(process.poll() is None for process in processes), ends(processes)
    time.sleep(0.02)


def result(folder):
  path, = folder.glob('*/result.json')
  found = json.loads(path.read_text())
  return {name: found[name] for name in SAME}


@pytest.mark.skipif(not LONG, reason='long form; test_hosts.py kills and stops one of two')
@pytest.mark.parametrize('count, kills', [(2, 1), (4, 5)])
def test_kills_and_stops_of_one_process_change_nothing(tmp_path, count, kills):
  """SIGTERM stops all at one step with one checkpoint; kill -9 of one ends all in a sentence."""
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  finished = ends(start(whole, count))
  assert [status for status, *_ in finished] == [0] * count, finished
  assert ['test accuracy' in output for _, output, _ in finished] == [True] + [False] * (count - 1)

  rng = random.Random(3)
  for _ in range(kills):
    processes = start(broken, count)
    wait_for_epoch(broken, len(rows(broken)) + 1, processes)
    time.sleep(rng.uniform(0, 0.5))
    victim = rng.randrange(count)
    processes[victim].kill()
    for i, (status, _, errors) in enumerate(ends(processes)):
      if i != victim:  # where all met at it, JAX is faster, with a message of its own
        assert status in (cluster.LOST, -signal.SIGABRT), errors
        assert 'this process ends too' in errors or victim == 0 and 'another task died' in errors

  processes = start(broken, count)
  wait_for_epoch(broken, len(rows(broken)) + 1, processes)
  asked = time.monotonic()
  processes[-1].send_signal(signal.SIGTERM)
  finished = ends(processes)
  assert time.monotonic() - asked < 30
  assert [status for status, *_ in finished] == [128 + signal.SIGTERM] * count, finished
  saved = [path for path in broken.glob('*/checkpoints/*') if path.name.isdigit()]
  assert all((path / 'sha256.json').exists() for path in saved) and len(saved) in (1, 2)

  finished = ends(start(broken, count))
  assert [status for status, *_ in finished] == [0] * count, finished
  assert result(broken) == result(whole)
  place, = broken.iterdir()  # is read by one process like any other
  assert folder.load(str(place)).measure('test')['loss'] == pytest.approx(
      result(broken)['test_loss'], rel=1e-5)


@pytest.mark.skipif(not LONG, reason='long form: starts two processes again and again')
@pytest.mark.parametrize('folder, own, status, said', [
    ('runs', lambda i: [f'--epochs={i + 1}'], 1, 'different options: --epochs=2 and 1'),
    ('/proc/none', lambda i: (), 1, 'cannot make the folder'),
    ('runs', lambda i: ('--optimizer=sgd', '--learning_rate=1e30'), 2, 'training stopped')])
def test_what_one_process_finds_ends_both_in_its_words(tmp_path, folder, own, status, said):
  for end, _, errors in ends(start(tmp_path / folder, 2, own=own)):
    assert end == status and said in errors, errors


@pytest.mark.skipif(not LONG, reason='long form: starts two processes')
def test_two_processes_cross_validate_and_profile(tmp_path):
  for end, _, errors in ends(start(tmp_path, 2, '--folds=3', '--epochs=1', '--profile=3-7')):
    assert end == 0, errors
  whole, *parts = sorted(tmp_path.rglob('result.json'), key=lambda path: len(path.parts))
  assert len(parts) == 3 and json.loads(whole.read_text())['folds'] == 3
  assert len(list(tmp_path.rglob('perfetto_trace.json.gz'))) == 3 and not (ROOT / 'None').exists()


@pytest.mark.skipif(not LONG, reason='long form: starts processes three times')
@pytest.mark.parametrize('model', ('mlp', 'lstm_lm'))
def test_two_processes_round_a_finished_run_as_one_does(tmp_path, model):
  (tmp_path / 'text.txt').write_text('to be or not to be, that is the question ' * 60)
  of_model = dict(mlp=('--dataset=digits', '--width=0.5'), lstm_lm=(
      f'--dataset=text:{tmp_path}/text.txt', '--hidden=8', '--sequence_length=16'))
  train = (f'--model={model}', '--epochs=1', '--cpu_devices=1', '--notensorboard', '--nopictures',
           *of_model[model])
  first = ends(start(tmp_path / 'dense', 2, train=train))
  assert [status for status, *_ in first] == [0, 0], first
  place, = (tmp_path / 'dense').iterdir()
  after = (f'--init_from={place}', '--quantize_after', '--quantize_weights=lsq',
           '--quantize_weight_bits=4', '--quantize_activation_bits=8')
  for count in (1, 2):
    ended = ends(start(tmp_path / str(count), count, *after, train=train))
    assert [status for status, *_ in ended] == [0] * count, ended
  one, two, dense = (result(tmp_path / name) for name in ('1', '2', 'dense'))
  assert two['parameters_sha256'] == one['parameters_sha256'] != dense['parameters_sha256']
  assert two['test_loss'] == pytest.approx(one['test_loss'], rel=1e-5)


@pytest.mark.parametrize('flags, message', [
    (dict(processes=2), '--process_index=I and --coordinator=HOST:PORT missing'),
    (dict(process_index=0), '--processes=N and --coordinator=HOST:PORT missing'),
    (dict(coordinator='a:1'), '--processes=N and --process_index=I missing'),
    (dict(processes=2, process_index=2, coordinator='a:1'), 'allowed are 0 to 1'),
    (dict(processes=2, process_index=0, coordinator='a'), 'allowed is HOST:PORT'),
    (dict(processes=2, process_index=0, coordinator=':80'), 'allowed is HOST:PORT')])
def test_half_of_the_flags_are_refused(flags, message):
  with pytest.raises(UserError, match=message):
    cluster.asked_for(Config().replace(**flags).run)


def test_a_process_on_its_own_asks_for_none():
  assert cluster.asked_for(Config().run) == {}
  assert cluster.asked_for(Config().replace(processes=1).run) == {}
  given = dict(processes=3, process_index=0, coordinator='localhost:1')
  assert cluster.asked_for(Config().replace(**given).run) == dict(
      coordinator_address='localhost:1', num_processes=3, process_id=0)


@pytest.mark.parametrize('variables, who', [
    ({}, ''),
    (dict(SLURM_NTASKS='4', SLURM_PROCID='1', SLURM_STEP_NODELIST='a'), 'SLURM'),
    (dict(SLURM_NTASKS='1', SLURM_PROCID='0', SLURM_STEP_NODELIST='a'), ''),
    (dict(SLURM_NTASKS='4'), ''),  # in the script of a job, outside srun
    (dict(OMPI_COMM_WORLD_SIZE='2', OMPI_MCA_orte_hnp_uri='x'), 'Open MPI'),
    (dict(TPU_WORKER_HOSTNAMES='a,b'), 'GKE'), (dict(TPU_WORKER_HOSTNAMES='a'), '')])
def test_what_starts_several_processes_is_known_by_its_variables(monkeypatch, variables, who):
  for name in list(os.environ):
    if name.startswith(('SLURM_', 'OMPI_', 'TPU_')):
      monkeypatch.delenv(name)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  assert cluster.found() == who


@pytest.mark.parametrize('mode', ('sharded', *LONG * ('pmap',)))
def test_a_run_goes_on_with_another_number_of_devices(tmp_path, small, monkeypatch, mode):
  """4, then 2, then 4 devices give the weights of 4 all along, to rounding."""
  from lepton_jax import run, trees
  from lepton_jax.train import loop
  from tests.test_resume import Stopped
  config = small.replace(epochs=3, parallel=mode, steps_per_call='1', dropout=0.2, ema_decay=0.9,
                         prune_sparsity=0.5, select='last')
  run.train(config.replace(runs_dir=str(tmp_path / 'whole')), quiet=True)
  config = config.replace(runs_dir=str(tmp_path / 'changing'))
  monkeypatch.setattr(loop, 'StopSignal', Stopped)
  for devices, stop in ((4, 15), (2, 35)):
    monkeypatch.setattr(Stopped, 'after', stop)
    with pytest.raises(loop.Interrupted):
      run.train(config.replace(devices=devices), quiet=True)
  monkeypatch.setattr(Stopped, 'after', None)
  run.train(config.replace(devices=4), quiet=True)
  one, other = (trees.named(folder.read_weights(tmp_path / part / config.name())[0])
                for part in ('whole', 'changing'))
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_allclose(other[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_trace_of_some_steps_is_in_the_run_folder(tmp_path, small):
  from lepton_jax import run
  from lepton_jax.report import trace
  config = small.replace(runs_dir=str(tmp_path), epochs=1, profile='5-9')
  traced = run.train(config, quiet=True)
  files = [path.name for path in (tmp_path / config.name() / 'profile').rglob('*.gz')]
  assert 'perfetto_trace.json.gz' in files
  spans = trace.read(tmp_path / config.name())
  assert min(span.begin for span in spans) == 0
  rows = trace.rows(spans, most=10**6)
  assert sum(row['times'] for row in rows) == len(spans)
  assert sum(row['ms'] for row in rows) == pytest.approx(sum(s.length for s in spans), abs=0.1)
  with pytest.raises(UserError, match='--profile=20-22'):
    trace.read(tmp_path)
  whole = run.train(config.replace(profile='', runs_dir=str(tmp_path / 'without')), quiet=True)
  assert traced['parameters_sha256'] == whole['parameters_sha256']
  for steps in ('9-5', 'a', '5-'):
    with pytest.raises(UserError, match=f'--profile={steps}'), contextlib.suppress(OSError):
      run.train(config.replace(profile=steps, seed=1), quiet=True)
