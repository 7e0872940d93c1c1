"""The machine of a run: settings before the first use of a device, and facts for result.json."""

import contextlib
import datetime
import functools
import importlib.metadata
import os
import pathlib
import platform
import subprocess

from lepton_jax import cluster

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def start(options):
  """Applies settings that must precede the first use of a device.

  They are memory, virtual devices, the cache of compiled programs and the other processes of a run.
  """
  keep_freed_memory()
  wait_for_stopped_devices()
  import jax
  count = options.cpu_devices or (1 if options.parallel == 'jit' else cores())
  # A RuntimeError says that devices are in use already; --devices complains if they are too few.
  with contextlib.suppress(RuntimeError):
    jax.config.update('jax_num_cpu_devices', count)
  where = options.compilation_cache
  if where != 'off':
    path = pathlib.Path(where).expanduser() if where else cache_folder() / 'xla'
    jax.config.update('jax_compilation_cache_dir', str(path))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  cluster.join(options)


def cache_folder():
  """Where what was compiled for this machine is kept."""
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(home) / 'lepton_jax'


def cores():
  """How many processor cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def wait_for_stopped_devices():
  """Gives virtual devices ten minutes to meet; XLA would end the process after 40 s.

  They take longer where a laptop is closed or a core is busy elsewhere.
  """
  flag = '--xla_cpu_collective_call_terminate_timeout_seconds'
  if flag not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}=600'.strip()


def keep_freed_memory():
  """Lets the C library keep what a training step frees, for the next step, which asks for the same.

  By default glibc returns large blocks to the kernel at once, and the kernel clears every page anew
  when it is touched: 20 to 40 % of the time of a step on a CPU. Elsewhere than on Linux nothing is
  changed.
  """
  import ctypes
  with contextlib.suppress(OSError, AttributeError):
    mallopt = ctypes.CDLL('libc.so.6').mallopt
    mallopt(-8, 1)  # M_ARENA_MAX: one heap, whichever thread asks
    mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from it as well
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: its end is never given back


def facts():
  """Versions, device, git revision and time, for result.json."""
  import jax
  return dict(versions={p: importlib.metadata.version(p) for p in PACKAGES},
              device=jax.devices()[0].device_kind, processor=processor(),
              git_revision=git_revision(),
              finished=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'))


def processor():
  """The processor and the widest of the instructions that libraries use on it."""
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  facts = dict(line.split(':', 1) for line in lines if ':' in line)
  facts = {name.strip(): value.strip() for name, value in facts.items()}
  present = facts.get('flags', '').split()
  widest = [kind for kind in ('amx_bf16', 'avx512_bf16', 'avx512f', 'avx2') if kind in present]
  name = facts.get('model name') or platform.processor() or platform.machine()
  return ', '.join([name, *widest[:1]])


@functools.cache
def git_revision():
  """The commit of this source, with '-dirty' if files differ from it; None outside git.

  LEPTON_REVISION names it where the source was brought without its history.
  """
  if told := os.environ.get('LEPTON_REVISION'):
    return told
  here = pathlib.Path(__file__).parent
  try:
    command = ['git', '-C', str(here), 'describe', '--always', '--dirty', '--abbrev=12']
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None
