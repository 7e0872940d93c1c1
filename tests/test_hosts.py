"""Runs on other machines: a rented slice whose workers are processes here, SLURM, Kubernetes."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests import LONG

ROOT = pathlib.Path(__file__).parents[1]
TRAIN = ('train', '--model=mlp', '--dataset=digits', '--epochs=8', '--batch_size=32', '--width=0.5',
         '--dropout=0.2', *LONG * ('--prune_sparsity=0.5', '--quantize_weight_bits=4'),
         '--cpu_devices=1', '--notensorboard', '--nopictures')
SLICE = ('--name=mine', '--zone=here', '--type=v5litepod-16', '--spot', '--poll=0.2')
SAME = ('parameters_sha256', 'test_loss', 'validation_loss', 'selected_step')


@pytest.fixture
def cloud(tmp_path):
  """The environment of a machine that has tests/fake_gcloud.py as its gcloud."""
  if not (ROOT / '.git').exists():
    pytest.skip('other machines get a git revision, and this is a copy without its history')
  (tmp_path / 'bin').mkdir()
  for name, text in (('gcloud', f'exec {sys.executable} {ROOT}/tests/fake_gcloud.py "$@"'),
                     ('uv', 'exit 0')):
    (tmp_path / 'bin' / name).write_text(f'#!/bin/sh\n{text}\n')
    (tmp_path / 'bin' / name).chmod(0o755)
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  return dict(os.environ, PATH=f'{tmp_path}/bin:{os.environ["PATH"]}', FAKE_TPU=str(tmp_path),
              JAX_PLATFORMS='cpu', JAX_COORDINATOR_PORT=str(port), PYTHONPATH='')


def tpu(cloud, action, *arguments, dry=False):
  """The process of `./launch.sh tpu ACTION`."""
  rest = ('--', *arguments) if arguments else ()
  words = [sys.executable, '-m', 'experiments.tpu', action, *SLICE, *['--dry_run'] * dry,
           *['--retry=5'] * (action == 'run'), *rest]
  return subprocess.Popen(words, cwd=ROOT, env=cloud, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)


def done(process):
  said, _ = process.communicate(timeout=240)
  assert process.returncode == 0, said
  return said


def result(folder):
  path, = folder.glob('*/result.json')
  return json.loads(path.read_text())


def epochs(folder):
  return sum(path.read_text().count('\n') for path in folder.glob('*/metrics.jsonl'))


def wait(condition, process):
  while not condition():
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.02)


def send(number, home):
  """Sends a signal to the run of a worker."""
  leader = (home / 'lepton.pid').read_text().strip()
  found = subprocess.run(['pgrep', '-P', leader], capture_output=True, text=True).stdout
  os.kill(int(found), number)


def test_a_run_on_a_slice_survives_a_kill_and_a_preemption(cloud, tmp_path):
  """Two workers are killed as their slice is taken. In the end all is as if nothing was.

  In the long form one is killed first; later SIGTERM reaches one, and both save at the same step.
  """
  for action in ('create', 'setup'):
    done(tpu(cloud, action))
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  said = done(tpu(cloud, 'run', *TRAIN, f'--runs_dir={whole}'))
  assert 'sharded on 2 cpu device(s)' in said and said.count('test accuracy') == 1

  process = tpu(cloud, 'run', *TRAIN, f'--runs_dir={broken}')
  wait(lambda: epochs(broken) >= 2, process)
  if LONG:
    send(signal.SIGKILL, tmp_path / 'worker-1')
    before = epochs(broken)
    wait(lambda: epochs(broken) > max(before, 3), process)
  (tmp_path / 'state').write_text('SUSPENDED')
  if LONG:
    send(signal.SIGTERM, tmp_path / 'worker-1')
  else:
    for worker in range(2):
      send(signal.SIGKILL, tmp_path / f'worker-{worker}')
  said = done(process)  # what worker 0 says
  assert said.count('resuming') == 1 + LONG
  for words in ('SIGTERM: saved', 'To go on from the last checkpoint, start all processes again'):
    assert LONG == (words in said)
  assert {k: result(broken)[k] for k in SAME} == {k: result(whole)[k] for k in SAME}
  calls = [json.loads(line)[2:4] for line in (tmp_path / 'calls').read_text().splitlines()]
  assert calls.count(['queued-resources', 'create']) == 2  # the second after the preemption
  assert calls.count(['queued-resources', 'delete']) == 1


def test_a_dry_run_prints_what_would_be_done(cloud, tmp_path):
  commands = done(tpu(cloud, 'run', *TRAIN, dry=True)).splitlines()
  assert not (tmp_path / 'calls').exists()
  assert all(line.startswith(('$ gcloud compute tpus tpu-vm ', '$ git ')) for line in commands)
  assert commands[-1].endswith("'--command=echo lepton-exit=$(cat lepton.exit 2>/dev/null)'")
  create = done(tpu(cloud, 'create', dry=True)).splitlines()[0]
  assert create == ('$ gcloud compute tpus queued-resources create mine --zone=here '
                    '--node-id=mine --accelerator-type=v5litepod-16 '
                    '--runtime-version=v2-alpha-tpuv5-lite --spot')


@pytest.mark.parametrize('words, message', [
    (('paint',), 'allowed are create, setup, run'),
    (('run',), 'nothing to run'),
    (('create', '--type=v5'), '--type=v5: allowed is a type of slice'),
    (('stop', '--zone='), '--zone is missing')])
def test_mistakes_are_told_before_anything_is_asked_of_the_cloud(cloud, tmp_path, words, message):
  done = subprocess.run([sys.executable, '-m', 'experiments.tpu', *SLICE, *words], cwd=ROOT,
                        env=cloud, capture_output=True, text=True)
  assert done.returncode == 1 and message in done.stderr and not (tmp_path / 'calls').exists()


@pytest.mark.parametrize('status, state, queued', [
    (0, 'RUNNING', False), (1, 'RUNNING', False), (75, 'RUNNING', True), (143, 'RUNNING', True),
    (143, 'COMPLETING', False)])  # the last was cancelled
def test_a_job_of_slurm_queues_itself_again_unless_it_failed_by_mistake(tmp_path, status, state,
                                                                        queued):
  from lepton_jax.hosts import batch
  script = batch.sbatch(['train', '--l2=1 e'], name='a', nodes=2, gpus=4, cpus=3, time='1:00:00',
                        partition='p', account='')
  lines = script.splitlines()
  assert {'#SBATCH --nodes=2', '#SBATCH --ntasks-per-node=4', '#SBATCH --gpus-per-node=4',
          '#SBATCH --partition=p', '#SBATCH --signal=TERM@120'} <= set(lines)
  assert not any('account' in line for line in lines)
  (tmp_path / 'job.sh').write_text(script)
  for name, text in (('launch.sh', 'exit 0'), ('srun', f'echo "$@" >srun.log; exit {status}'),
                     ('scontrol', 'echo "$@" >scontrol.log'), ('squeue', f'echo {state}')):
    (tmp_path / name).write_text(f'#!/bin/sh\n{text}\n')
    (tmp_path / name).chmod(0o755)
  variables = dict(os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}', SLURM_JOB_ID='17')
  assert subprocess.call(['bash', 'job.sh'], cwd=tmp_path, env=variables) == status
  assert (tmp_path / 'srun.log').read_text().split()[2:] == ['./launch.sh', 'train', '--l2=1', 'e']
  requests = tmp_path / 'scontrol.log'
  assert (requests.read_text() if requests.exists() else '') == queued * 'requeue 17\n'


def test_a_manifest_has_a_pod_for_each_machine_of_the_slice():
  import yaml

  from lepton_jax.errors import UserError
  from lepton_jax.hosts import batch
  ask = dict(name='a', image='i', accelerator='tpu-v4-podslice', chips=4, retries=5)
  service, job = yaml.safe_load_all(batch.manifest(['train'], topology='2x2x4', **ask))
  assert service['spec']['selector'] == {'job-name': job['metadata']['name']}
  assert job['spec']['completions'] == job['spec']['parallelism'] == 4
  pod = job['spec']['template']['spec']
  assert pod['subdomain'] == service['metadata']['name']
  assert pod['containers'][0]['resources']['limits'] == {'google.com/tpu': 4}
  rule, = job['spec']['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob' and rule['onExitCodes']['values'] == [1, 2]
  for topology in ('4', '3x3', 'x4'):
    with pytest.raises(UserError, match=f'--topology={topology}'):
      batch.manifest(['train'], topology=topology, **ask)


def test_a_sweep_that_would_leave_gpus_idle_is_refused():
  from lepton_jax.errors import UserError
  from lepton_jax.hosts import batch
  ask = dict(name='a', nodes=1, gpus=4, cpus=1, time='1', partition='', account='')
  with pytest.raises(UserError, match='--executor=devices'):
    batch.sbatch(['regularization_sweep'], **ask)
  script = batch.sbatch(['regularization_sweep', '--executor=devices'], **ask)
  assert '#SBATCH --ntasks-per-node=1\n' in script and '--gpus-per-node=4\n' in script


class Told:
  """A shell that records commands and reads the given answers, the last one for ever."""

  dry_run = False

  def __init__(self, **answers):
    self.answers, self.run_ = {name: list(given) for name, given in answers.items()}, []

  def read(self, *words):
    kind = next(name for name in self.answers if name in ' '.join(words))
    return self.answers[kind].pop(0) if len(self.answers[kind]) > 1 else self.answers[kind][0]

  def status(self, *words):
    self.run_.append(' '.join(words))
    return 0

  run = status


def slice_of(shell):
  from lepton_jax.hosts import tpu
  one = tpu.Tpu(tpu.Slice('mine', 'here', 'v5litepod-16'), shell, poll=0)
  one.start = lambda arguments: shell.run_.append('start')
  return one


def test_a_run_that_is_no_longer_shown_is_followed_again_until_each_worker_is_done():
  shell = Told(exit=['lepton-exit=\nlepton-exit='] * 6 + ['lepton-exit=0\nlepton-exit='] * 2
               + ['lepton-exit=0\nlepton-exit=0'], describe=['ACTIVE'], stopped=['lepton-stopped='])
  assert slice_of(shell).run(['train'], 0) == 0
  assert sum('tail' in words for words in shell.run_) == 2 and shell.run_.count('start') == 1


def test_nothing_is_deleted_while_gcloud_does_not_answer():
  from lepton_jax.errors import UserError
  shell = Told(exit=['lepton-exit=75\nlepton-exit=137'], describe=[''], stopped=['lepton-stopped='])
  with pytest.raises(UserError, match='does not say how mine is'):
    slice_of(shell).run(['train'], 3)
  assert not any('delete' in words for words in shell.run_)


def test_what_was_stopped_is_not_begun_again():
  shell = Told(exit=['lepton-exit=143\nlepton-exit=143'], describe=['ACTIVE'],
               stopped=['lepton-stopped=1\nlepton-stopped=1'])
  assert slice_of(shell).run(['train'], 3) == 143
  assert shell.run_.count('start') == 1


def test_a_mistake_is_not_repeated_and_lost_processes_are_a_limited_number_of_times():
  for ends, status, starts in (('1\nlepton-exit=75', 1, 1), ('75\nlepton-exit=137', 137, 4)):
    shell = Told(exit=[f'lepton-exit={ends}'], describe=['ACTIVE'], stopped=['lepton-stopped='])
    assert slice_of(shell).run(['train'], 3) == status
    assert shell.run_.count('start') == starts
