"""What the doctor finds on this machine and on made-up ones, and its self-test."""

import os
import shutil

import jax
import pytest

from lepton_jax import cluster, doctor, machine, self_test
from lepton_jax.layers import dense, platform


def script(folder, name, text):
  """An executable of that name that prints a text."""
  path = folder / name
  path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
  path.chmod(0o755)


@pytest.fixture
def path(tmp_path, monkeypatch):
  """A folder that is the whole PATH, but for `cat`."""
  os.symlink(shutil.which('cat'), tmp_path / 'cat')
  monkeypatch.setenv('PATH', str(tmp_path))
  return tmp_path


def test_numbers_are_those_of_this_machine():
  assert doctor.processor().found.startswith(f'{machine.cores()} ')
  whole = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  told = doctor.memory().found
  assert told.startswith(f'{whole / 2**30:.1f} GiB') or 0 < float(told.split()[0]) < whole / 2**30
  assert f'jax {jax.__version__}' in doctor.versions().found
  assert 'cpu:3' in doctor.devices().found
  assert str(machine.cache_folder()) in doctor.cache().found


def test_little_memory_and_disk_are_missing(monkeypatch):
  monkeypatch.setattr(doctor, 'LITTLE_MEMORY', 2**60)
  monkeypatch.setattr(doctor, 'LITTLE_DISK', 2**60)
  assert doctor.memory().mend == './launch.sh train --batch_size=16'
  assert doctor.cache().mend.startswith('XDG_CACHE_HOME=')


def test_a_limit_of_a_container_is_the_memory(monkeypatch):
  text = doctor._text
  monkeypatch.setattr(doctor, '_text', lambda name: f'{3 * 2**30}\n' if 'cgroup' in name
                      else text(name))
  assert doctor.memory().found.startswith('3.0 GiB')


def test_a_machine_without_any_tool_is_examined(path, monkeypatch):
  monkeypatch.delenv('CXX', raising=False)
  monkeypatch.setenv('TFDS_DATA_DIR', str(path))
  found = {one.item: one for one in doctor.examine()}
  missing = {item for item, one in found.items() if one.state == 'missing'}
  assert {'C++ compiler', 'data', 'gcloud'} <= missing <= {'C++ compiler', 'data', 'gcloud',
                                                           'CPU layers'}
  assert found['gcloud'].mend.startswith('curl https://sdk.cloud.google.com')
  assert f"builder('mnist', data_dir='{path}'" in found['data'].mend
  assert all(bool(one.mend) == (one.state == 'missing') for one in found.values())


def test_a_gpu_that_jax_does_not_reach(path):
  script(path, 'nvidia-smi', 'NVIDIA H100 80GB HBM3, 580.65.06, 81559 MiB')
  assert doctor.driver().found == 'NVIDIA H100 80GB HBM3, 580.65.06, 81559 MiB'
  told = doctor.devices()
  assert told.state == 'missing' and 'NVIDIA GPU' in told.found
  assert told.mend == 'LEPTON_PLATFORM=cuda JAX_PLATFORMS=cuda,cpu ./launch.sh doctor'


def test_the_self_test_wants_the_cpu_beside_a_gpu(monkeypatch):
  def fail(**_):
    raise RuntimeError("Unknown backend cpu. Available backends are ['cuda']")
  monkeypatch.setattr(jax, 'local_devices', fail)
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  assert [told.mend for told in doctor.self_test()] == [
      'JAX_PLATFORMS=cuda,cpu ./launch.sh doctor']


def test_devices_that_cannot_be_opened(monkeypatch):
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  def fail(*_, **__):
    raise RuntimeError("Unable to initialize backend 'cuda': no driver\nmore")
  monkeypatch.setattr(jax, 'local_devices', fail)
  for told in (doctor.devices(), *doctor.self_test()):
    assert told.found == "Unable to initialize backend 'cuda': no driver"
    assert told.mend == 'LEPTON_PLATFORM=cpu JAX_PLATFORMS=cpu ./launch.sh doctor'


@pytest.mark.parametrize('says, found, mend', [
    ('{"core": {"account": "me@example.org", "project": "nets"}}', 'me@example.org, project nets',
     ''),
    ('{"core": {"account": "me@example.org"}}', 'me@example.org, no project',
     'gcloud config set project PROJECT'),
    ('{}', 'installed, no account', 'gcloud auth login'),
    ('Traceback', 'it does not answer', doctor.GCLOUD)])
def test_the_account_of_gcloud(path, says, found, mend):
  script(path, 'gcloud', says)
  told = doctor.gcloud()
  assert (told.found, told.mend) == (found, mend)
  assert told.state == ('missing' if mend else 'ok')


def test_a_tool_that_hangs_or_fails_says_nothing(path, monkeypatch):
  monkeypatch.setattr(doctor, 'ANSWERS_WITHIN', 0.2)
  os.symlink('/bin/sleep', path / 'sleep')
  assert doctor.answer('sleep', '5') is None
  assert doctor.answer('cat', '/nowhere') is None
  assert doctor.answer('not-there') is None


def test_prepared_data_are_named(tmp_path):
  for name in ('mnist/3.0.1', 'glue/sst2/2.0.0', 'glue/cola/unfinished'):
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / 'features.json').write_text('{}')
  told = doctor.data(str(tmp_path))
  assert told.state == 'ok' and told.found.startswith(f'glue/sst2, mnist in {tmp_path}')


def test_processes_are_those_that_the_cluster_names(monkeypatch):
  monkeypatch.setattr(cluster, 'found', lambda: '')
  assert doctor.processes().found == 'one'
  monkeypatch.setattr(cluster, 'found', lambda: 'SLURM')
  monkeypatch.setenv('SLURM_PROCID', '3')
  monkeypatch.setenv('SLURM_NTASKS', '16')
  assert doctor.processes().found == 'SLURM: process 3 of 16'
  monkeypatch.setattr(cluster, 'found', lambda: 'GKE')
  monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'a,b,c')
  monkeypatch.delenv('TPU_WORKER_ID', raising=False)
  assert doctor.processes().found == 'GKE: process ? of 3'


def test_the_self_test_passes_here_and_finds_a_wrong_layer(monkeypatch):
  first = jax.local_devices()[0]
  devices = jax.local_devices
  monkeypatch.setattr(jax, 'local_devices',
                      lambda *_, **options: devices(**options) if options else [first])
  told = doctor.self_test()
  assert [(one.item, one.state) for one in told] == [('CNN on cpu:0', 'ok'),
                                                     ('LSTM on cpu:0', 'ok')]
  # One part in a thousand of a bias: what the CPU's own forms alone get wrong.
  right = dense.add_bias
  monkeypatch.setattr(dense, 'add_bias', lambda y, bias: right(
      y, bias * 1.001 if platform.own_forms() else bias))
  monkeypatch.setattr(self_test, 'NETWORKS', dict(LSTM=self_test.NETWORKS['LSTM']))
  wrong, = doctor.self_test()
  assert wrong.state == 'wrong' and wrong.mend == './launch.sh train --convolution=xla'
  assert 'more than the allowed 1e-05' in wrong.found


def test_a_network_that_fails_is_an_outcome():
  def train(device):
    raise MemoryError(f'{device.platform} is full\nstack')
  told = self_test.compared('CNN', jax.local_devices()[1], train, {})
  assert not told.passed and (told.device, told.error) == ('cpu:1', 'MemoryError: cpu is full')
