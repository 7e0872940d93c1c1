"""Run folders, claims and data in a bucket: Google's own clients, at a server of this machine."""

import json
import os
import pathlib
import shutil

import pytest
from etils import epath

from lepton_jax import folder, outcomes, run
from lepton_jax.errors import UserError
from lepton_jax.sweep import claims, engine
from lepton_jax.train import loop
from tests import fake_gcs
from tests.test_resume import Stopped

# It would ask a gRPC service, which the server is not, for the kind of bucket.
os.environ['GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT'] = 'false'
pytest.importorskip('gcsfs')
SAME = ('parameters_sha256', 'test_loss', 'validation_loss')


@pytest.fixture(scope='module')
def server():
  """The server, where gcsfs, google-cloud-storage and TensorStore look for Google's."""
  found = fake_gcs.start()
  url = f'http://127.0.0.1:{found.server_port}'
  with pytest.MonkeyPatch.context() as patch:
    for name, value in dict(STORAGE_EMULATOR_HOST=url, TENSORSTORE_GCS_HTTP_URL=url,
                            GOOGLE_AUTH_TOKEN_FOR_TESTING='x',
                            GOOGLE_CLOUD_PROJECT='project').items():
      patch.setitem(os.environ, name, value)
    import fsspec
    patch.setitem(fsspec.config.conf['gcs'], 'token', 'anon')
    yield found
  found.shutdown()


@pytest.fixture
def bucket(server):
  server.objects.clear()
  return epath.Path('gs://bucket')


def test_a_run_in_a_bucket_is_the_run_on_a_disk(bucket, tmp_path, small, monkeypatch):
  """Stopped, resumed from its checkpoint, finished, read again; TensorBoard's events are local."""
  config = small.replace(width=0.25, dropout=0.2, steps_per_call='1')
  here = run.train(config.replace(runs_dir=str(tmp_path)), quiet=True)
  config = config.replace(runs_dir='gs://bucket/runs', tensorboard=True)
  monkeypatch.setattr(loop, 'StopSignal', Stopped)
  monkeypatch.setattr(Stopped, 'after', 15)
  with pytest.raises(loop.Interrupted):
    run.train(config, quiet=True)
  monkeypatch.setattr(Stopped, 'after', None)
  there = run.train(config, quiet=True)
  assert {k: there[k] for k in SAME} == {k: here[k] for k in SAME}
  place = bucket / 'runs' / config.name()
  names = sorted(path.name for path in (tmp_path / config.name()).iterdir())
  assert sorted(path.name for path in place.iterdir()) == names
  rows = (place / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(row)['epoch'] for row in rows] == [1, 2]
  assert run.train(config) == there  # is only read
  assert folder.load(str(place)).measure('test')['loss'] == there['test_loss']


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
  assert not trial.exists()  # a folder that holds nothing


def test_of_two_that_claim_at_once_one_succeeds(bucket, monkeypatch):
  """Both saw no claim."""
  import fsspec
  trial, beside, real = bucket / 'trial', [], fsspec.core.url_to_fs

  def late(url):
    if not beside:
      beside.append(None)
      beside.append(claims.take(trial))
    return real(url)

  monkeypatch.setattr(fsspec.core, 'url_to_fs', late)
  assert claims.take(trial) is None and beside[1] is not None
  beside[1].release()


def test_data_in_a_bucket_are_copied_to_the_machine_once(bucket, tmp_path, tfds_dir):
  import fsspec

  from lepton_jax.data import tfds_sets
  store = fsspec.filesystem('gcs')
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
