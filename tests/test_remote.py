"""Run folders, claims and data in an object store, here one in memory behind gs://."""

import json
import pathlib
import shutil

import fsspec
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from lepton_jax import folder, outcomes, run
from lepton_jax.errors import UserError
from lepton_jax.sweep import claims, engine

SAME = ('parameters_sha256', 'test_loss', 'validation_loss')


class Store(MemoryFileSystem):
  """Objects that are written as a whole, and made only where there are none if asked so."""

  protocol = ('gs', 'gcs')
  store, pseudo_dirs = {}, ['']

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.removeprefix('gs://').removeprefix('gcs://'))

  def _open(self, path, mode='rb', **options):
    assert 'a' not in mode and '+' not in mode, 'objects do not grow'
    return super()._open(path, mode, **options)


@pytest.fixture
def bucket():
  for name in Store.protocol:
    fsspec.register_implementation(name, Store, clobber=True)
  Store.store.clear()
  return epath.Path('gs://bucket')


def test_a_run_in_a_bucket_leaves_what_one_on_a_disk_leaves(bucket, tmp_path, small):
  """But for checkpoints and weights, which orbax and TensorStore write by a client of their own."""
  config = small.replace(checkpoint_every=0, save_weights=False, pictures=True)
  here = run.train(config.replace(runs_dir=str(tmp_path)), quiet=True)
  there = run.train(config.replace(runs_dir='gs://bucket/runs', tensorboard=True), quiet=True)
  assert {k: there[k] for k in SAME} == {k: here[k] for k in SAME}
  place = bucket / 'runs' / config.name()
  names = sorted(path.name for path in (tmp_path / config.name()).iterdir() if path.is_file())
  assert sorted(path.name for path in place.iterdir() if path.is_file()) == names
  rows = (place / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(row)['epoch'] for row in rows] == [1, 2]
  assert folder.read_result(place) == there
  assert run.train(config.replace(runs_dir='gs://bucket/runs')) == there  # is only read


def test_a_sweep_in_a_bucket_trains_what_is_missing_and_reports(bucket, base):
  from lepton_jax.report import sweeps
  configs = [base.replace(runs_dir='gs://bucket/sweep', l2=l2) for l2 in (1e-4, 1e-3, 1e-2)]
  mine = claims.take(outcomes.folder_of(configs[0]))
  mine.release()
  assert engine.sweep(configs[:1]).trials == 1
  assert engine.sweep(configs).trials == 2
  assert not list(bucket.glob('sweep/*/.claim*'))
  found, others, failed = sweeps.read('gs://bucket/sweep')
  assert len(found) == 3 and not others and not failed
  (place, rows), = sweeps.write(found, 'gs://bucket/report')
  assert len(rows) == 3 and '| l2 |' in (place / 'report.md').read_text().replace('`', '')
  assert (place / 'settings.png').stat().length > 5000


def test_a_claim_in_a_bucket_holds_while_it_is_renewed(bucket, monkeypatch):
  trial = bucket / 'trial'
  mine = claims.take(trial)
  assert mine is not None and claims.take(trial) is None
  monkeypatch.setattr(claims, 'LEASE', 0.0)  # as if its owner were silent for longer
  other = claims.take(trial)
  assert other is not None
  monkeypatch.undo()
  assert claims.take(trial) is None
  mine.release()  # of one that was only slow: the other's stays
  assert claims.take(trial) is None
  other.release()
  claims.take(trial).release()
  assert not list(trial.iterdir())


def test_of_two_that_claim_at_once_one_succeeds(bucket, monkeypatch):
  """Both saw no claim."""
  trial, beside = bucket / 'trial', []
  real = Store.pipe_file

  def late(self, path, value, **options):
    if not beside:
      beside.append(None)
      beside.append(claims.take(trial))
    return real(self, path, value, **options)

  monkeypatch.setattr(Store, 'pipe_file', late)
  assert claims.take(trial) is None and beside[1] is not None
  beside[1].release()


def test_data_in_a_bucket_are_copied_to_the_machine_once(bucket, tmp_path, tfds_dir):
  from lepton_jax.data import tfds_sets
  store = fsspec.filesystem('gs')
  store.put(f'{tfds_dir}/tiny_shakespeare', 'gs://bucket/data/tiny_shakespeare', recursive=True)
  read = lambda where: tfds_sets.read('tiny_shakespeare', where, '', tmp_path, None)
  one = read('gs://bucket/data')
  store.rm('gs://bucket/data', recursive=True)
  assert read('gs://bucket/data').version == one.version == read(tfds_dir).version
  shutil.rmtree(tmp_path / 'remote')
  with pytest.raises(UserError, match='--data_dir=gs://bucket/data: there is no tiny_shakespeare'):
    read('gs://bucket/data')


def test_what_must_be_local_says_so(bucket, small):
  with pytest.raises(UserError, match='copy it first, as with: gcloud storage cp'):
    run.train(small.replace(dataset='csv:gs://bucket/table.csv'))
  assert not pathlib.Path('gs:').exists()
