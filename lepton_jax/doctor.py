"""What a machine has for training, and the command that mends what it lacks.

A check looks at one thing and returns a Finding; it says so where a tool is absent or does not
answer.
"""

import glob
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import typing

from lepton_jax import cluster, machine

DOCTOR = './launch.sh doctor'
GIB = 2**30
LITTLE_MEMORY = GIB  # resnet8 on CIFAR-10 with batches of 128 takes 0.65 GiB
LITTLE_DISK = 10**9  # the data sets of the README's tables take 0.3 GB decoded; programs add to it
ANSWERS_WITHIN = 20  # seconds; gcloud takes up to five at its first call
GCLOUD = 'curl https://sdk.cloud.google.com | bash  # or https://cloud.google.com/sdk/docs/install'


class Finding(typing.NamedTuple):
  """What a check found.

  Attributes:
    item: what was looked at.
    found: what is there, or why it is not, in a few words.
    state: 'ok' or 'missing', of the self-test 'ok' or 'wrong'.
    mend: the command that mends it; '' where nothing is to mend.
  """
  item: str
  found: str
  state: str = 'ok'
  mend: str = ''


def examine(data_dir=''):
  """The Findings of all checks; `data_dir` is the folder of prepared TFDS data."""
  return [processor(), memory(), versions(), driver(), devices(), processes(), compiler(), onednn(),
          cache(), data(data_dir), gcloud()]


def self_test():
  """A Finding for each network that trains a few steps on each device; see self_test.py."""
  from lepton_jax import self_test as steps
  try:
    outcomes = steps.run()
  except RuntimeError as error:  # JAX has no device, or leaves out the CPU
    chosen = os.environ.get('JAX_PLATFORMS', '')
    without_cpu = chosen and 'cpu' not in chosen.split(',')
    mend = f'JAX_PLATFORMS={chosen},cpu {DOCTOR}' if without_cpu else on('cpu')
    return [Finding('self-test', first_line(error), 'wrong', mend)]
  return [_tested(outcome, steps.ALLOWED) for outcome in outcomes]


def _tested(outcome, allowed):
  item = f'{outcome.network} on {outcome.device}'
  if outcome.passed:
    return Finding(item, f'{outcome.difference:.1e} from plain XLA on the CPU, allowed '
                         f'{allowed:.0e}')
  told = outcome.error or (f'{outcome.difference:.1e} from plain XLA on the CPU, more than the '
                           f'allowed {allowed:.0e}')
  way = './launch.sh train --convolution=xla' if outcome.device.startswith('cpu') else on('cpu')
  return Finding(item, told, 'wrong', way)


def processor():
  cores, present = machine.cores(), os.cpu_count()
  some = '' if cores == present else f' of {present}'
  return Finding('processor', f'{cores}{some} cores; {machine.processor()}')


def memory():
  """Main memory; a container's limit counts where it is less."""
  whole = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  free = _available() or whole
  for name in ('memory.max', 'memory/memory.limit_in_bytes'):
    limit = _text(f'/sys/fs/cgroup/{name}').strip()
    if limit.isdecimal():
      whole, free = min(whole, int(limit)), min(free, int(limit))
  found = f'{whole / GIB:.1f} GiB, {free / GIB:.1f} GiB of it free'
  if free < LITTLE_MEMORY:
    return Finding('memory', f'{found}; training wants {LITTLE_MEMORY / GIB:.0f}', 'missing',
                   './launch.sh train --batch_size=16')
  return Finding('memory', found)


def _available():
  """Bytes that processes can still get, as Linux tells; None elsewhere."""
  for line in _text('/proc/meminfo').splitlines():
    if line.startswith('MemAvailable:'):
      return 1024 * int(line.split()[1])
  return None


def versions():
  found = [f'Python {platform.python_version()}']
  for name in ('jax', 'jaxlib', 'flax', 'optax'):
    try:
      found.append(f'{name} {importlib.metadata.version(name)}')
    except importlib.metadata.PackageNotFoundError:
      return Finding('versions', f'{", ".join(found)}; no {name}', 'missing', install())
  return Finding('versions', ', '.join(found))


def driver():
  """NVIDIA's driver and the GPUs that it sees."""
  return Finding('NVIDIA driver', '; '.join(nvidia_gpus()) or 'nvidia-smi names no GPU')


def nvidia_gpus():
  """'name, driver, memory' of each NVIDIA GPU."""
  told = answer('nvidia-smi', '--query-gpu=name,driver_version,memory.total',
                '--format=csv,noheader')
  return [line.strip() for line in (told or '').splitlines() if line.strip()]


def devices():
  """The devices of this process, and whether JAX reaches the accelerators of the machine."""
  import jax
  try:
    local = jax.local_devices()
  except RuntimeError as error:
    return Finding('JAX devices', first_line(error), 'missing', on('cpu'))
  names = [f'{device.platform}:{device.id} ({device.device_kind})' for device in local]
  found, reached = ', '.join(names), {device.platform for device in local}
  if (nvidia_gpus() or os.path.exists('/dev/nvidiactl')) and 'gpu' not in reached:
    return Finding('JAX devices', f'{found}; but this machine has an NVIDIA GPU', 'missing',
                   on('cuda'))
  if glob.glob('/dev/accel[0-9]*') and 'tpu' not in reached:
    return Finding('JAX devices', f'{found}; but this machine has a TPU', 'missing', on('tpu'))
  return Finding('JAX devices', found)


def processes():
  """Whether this process is one of several, and which."""
  found = cluster.found()
  names = {'SLURM': ('SLURM_PROCID', 'SLURM_NTASKS'),
           'Open MPI': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE')}
  if not found:
    return Finding('processes', 'one')
  if found in names:
    place, count = (os.environ.get(name, '?') for name in names[found])
  else:
    hosts = os.environ.get('TPU_WORKER_HOSTNAMES', '')
    place, count = os.environ.get('TPU_WORKER_ID', '?'), len(hosts.split(',')) if hosts else '?'
  return Finding('processes', f'{found}: process {place} of {count}')


def compiler():
  """The C++ compiler, for the layers of a CPU and the packed files."""
  name = os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++')
  told = answer(*name.split(), '--version') if name else None
  if told:
    return Finding('C++ compiler', first_line(told))
  what = f'{name} does not start' if name else 'neither g++ nor clang++'
  return Finding('C++ compiler', what, 'missing', install_compiler())


def onednn():
  """The library of CPU layers."""
  from lepton_jax.layers import platform as layers_platform
  from lepton_jax.layers.native import library
  found = library.status()
  if not isinstance(found, library.Missing):
    fast = 'with' if layers_platform.has_bfloat16() else 'without'
    return Finding('CPU layers', f'oneDNN {found.version}, {fast} bfloat16')
  if sys.platform != 'linux' or platform.machine() not in ('x86_64', 'AMD64'):
    return Finding('CPU layers', f"XLA's own; {found}")
  if not all(_installed(name) for name in (library.RUNTIME, library.HEADERS)):
    return Finding('CPU layers', f"XLA's own; {found}", 'missing', install())
  if not os.access(_existing(machine.cache_folder()), os.W_OK):
    return Finding('CPU layers', f"XLA's own; {found}", 'missing', elsewhere())
  return Finding('CPU layers', f"XLA's own; {found}", 'missing', install_compiler())


def cache():
  """The folder of compiled programs and decoded data, and the room there."""
  folder = machine.cache_folder()
  near = _existing(folder)
  free = shutil.disk_usage(near).free
  found = f'{folder}, {free / 1e9:.1f} GB free'
  if not os.access(near, os.W_OK):
    return Finding('cache', f'{found}; it cannot be written', 'missing', elsewhere())
  if free < LITTLE_DISK:
    return Finding('cache', f'{found}; {LITTLE_DISK / 1e9:.0f} is wanted', 'missing',
                   elsewhere())
  return Finding('cache', found)


def data(data_dir=''):
  """The TFDS sets that lie prepared, beside those that need no preparing."""
  from lepton_jax.data import tfds_sets
  from lepton_jax.registry import DATASETS
  root = data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  root = pathlib.Path(root).expanduser()
  ready = prepared_sets(root)
  if ready:
    return Finding('data', f'{", ".join(ready)} in {root}; with the program '
                           f'{", ".join(DATASETS.names())}')
  told = tfds_sets.missing('mnist', root).splitlines()
  command = next(line.strip() for line in told if 'download_and_prepare' in line)
  return Finding('data', f'no prepared TFDS set in {root}; with the program '
                         f'{", ".join(DATASETS.names())}', 'missing', command)


def prepared_sets(root):
  """Names of the sets below `root`, such as 'mnist' and 'glue/sst2'."""
  from lepton_jax.data import tfds_sets
  folders = {path.parents[1] for pattern in ('*/*', '*/*/*')
             for path in root.glob(f'{pattern}/features.json')}
  names = sorted(folder.relative_to(root).as_posix() for folder in folders)
  return [name for name in names if tfds_sets.prepared(name, root)]


def gcloud():
  """Whether Google's command line is there, for gs:// paths and TPUs, and whose account it has."""
  if not shutil.which('gcloud'):
    return Finding('gcloud', 'not installed', 'missing', GCLOUD)
  told = answer('gcloud', 'config', 'list', '--format=json')
  try:
    core = json.loads(told or '').get('core', {})
  except ValueError:
    return Finding('gcloud', 'it does not answer', 'missing', GCLOUD)
  if not core.get('account'):
    return Finding('gcloud', 'installed, no account', 'missing', 'gcloud auth login')
  if not core.get('project'):
    return Finding('gcloud', f'{core["account"]}, no project', 'missing',
                   'gcloud config set project PROJECT')
  return Finding('gcloud', f'{core["account"]}, project {core["project"]}')


def answer(*command):
  """What a command prints; None where it is absent, fails or takes too long."""
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWERS_WITHIN,
                          check=True, stdin=subprocess.DEVNULL)
  except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
    return None
  return done.stdout


def on(kind):
  """The command that starts the doctor with the JAX of 'cpu', 'cuda' or 'tpu'."""
  platforms = dict(cpu='cpu', cuda='cuda,cpu', tpu='')[kind]
  return f'LEPTON_PLATFORM={kind} JAX_PLATFORMS={platforms} {DOCTOR}'


def install():
  """The command that installs what requirements.txt names; environments of uv have no pip."""
  if shutil.which('uv'):
    return f'uv pip install --python {sys.executable} -r requirements.txt'
  return f'{sys.executable} -m pip install -r requirements.txt'


def install_compiler():
  if sys.platform == 'darwin':
    return 'xcode-select --install'
  if not shutil.which('apt-get') and shutil.which('dnf'):
    return 'sudo dnf install gcc-c++'
  return 'sudo apt-get install g++'


def elsewhere():
  """The command that keeps the caches in another place."""
  return f'XDG_CACHE_HOME=/FOLDER/WITH/ROOM {DOCTOR}'


def first_line(text):
  return next((line.strip() for line in str(text).splitlines() if line.strip()), '')


def _installed(name):
  try:
    return importlib.metadata.distribution(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def _existing(path):
  """The path, or the nearest folder above it that exists."""
  return next(folder for folder in (path, *path.parents) if folder.exists())


def _text(path):
  try:
    return pathlib.Path(path).read_text()
  except OSError:
    return ''
