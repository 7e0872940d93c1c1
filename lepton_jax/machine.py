"""The machine a run executes on: settings that precede the first use of a device, and facts for result.json."""

import contextlib
import datetime
import importlib.metadata
import os
import pathlib
import subprocess

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def start(options):
  """Settings that must precede the first use of a device: virtual devices, the cache of compiled programs."""
  import jax
  if options.cpu_devices:
    with contextlib.suppress(RuntimeError):  # devices are in use already; --devices complains if they are too few
      jax.config.update('jax_num_cpu_devices', options.cpu_devices)
  where = options.compilation_cache
  if where != 'off':
    home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update('jax_compilation_cache_dir', str(pathlib.Path(where).expanduser() if where else pathlib.Path(home) / 'lepton_jax' / 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def facts():
  """Versions, device, git revision and time, for result.json."""
  import jax
  return dict(versions={p: importlib.metadata.version(p) for p in PACKAGES}, device=jax.devices()[0].device_kind,
              git_revision=_git_revision(), finished=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'))


def _git_revision():
  """The commit of this source, with '-dirty' if files differ from it; None outside git."""
  here = pathlib.Path(__file__).parent
  try:
    command = ['git', '-C', str(here), 'describe', '--always', '--dirty', '--abbrev=12']
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None
