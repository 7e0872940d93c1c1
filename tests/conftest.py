"""Four virtual devices, strict promotion, and a home for the caches of every test session."""

import gc
import os
import pathlib
import tempfile

# Tests compile thousands of programs and run each for milliseconds.
os.environ['XLA_FLAGS'] = ' '.join((
    os.environ.get('XLA_FLAGS', ''), '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true', '--xla_cpu_use_fusion_emitters=false',
    '--xla_cpu_parallel_codegen_split_count=1'))

# Each worker has one core. NumPy's threads would wait in loops for those of the other.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_traceback_in_locations_limit', 0)  # a place in the source for each operation

# Tracing makes millions of objects that stay; looking through them again and again takes minutes.
gc.set_threshold(100_000, 20, 20)

# A first example compiles; explaining a failure would compile hundreds of times more.
phases = set(hypothesis.Phase) - {hypothesis.Phase.explain}
hypothesis.settings.register_profile('compiled', deadline=None, phases=phases)
hypothesis.settings.load_profile('compiled')

# Shared by all workers of a session, so that data are decoded and programs compiled once.
os.environ.setdefault('LEPTON_TEST_CACHE', tempfile.mkdtemp(prefix='lepton-test-'))
os.environ['XDG_CACHE_HOME'] = os.environ['LEPTON_TEST_CACHE']
jax.config.update('jax_compilation_cache_dir', os.environ['LEPTON_TEST_CACHE'] + '/xla')
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


@pytest.fixture(scope='session', autouse=True)
def virtual_devices():
  """Makes the devices before the first run, which would make as many as there are cores.

  They are not made on import, because some tests fork.
  """
  assert jax.device_count() == 4


@pytest.fixture(scope='session')
def tfds_dir():
  """Prepared TFDS data beside the checkout; tests that read it are skipped elsewhere."""
  folder = pathlib.Path(__file__).parents[2] / 'shared' / 'tfds'
  if not (folder / 'mnist').is_dir():
    pytest.skip(f'no prepared TFDS data in {folder}')
  return str(folder)


@pytest.fixture
def small():
  """A configuration whose run takes seconds: an MLP on 8x8 digits."""
  from lepton_jax.config import Config
  return Config().replace(model='mlp', dataset='digits', epochs=2, batch_size=32, tensorboard=False,
                          pictures=False)


@pytest.fixture
def base(small, tmp_path):
  """What trials of sweeps have in common: `small`, smaller still, with no files but the results."""
  return small.replace(runs_dir=str(tmp_path), save_weights=False, checkpoint_every=0, epochs=1,
                       width=0.25)
