"""Several processes that train as one: how they meet, what the first decides, what ends them.

A process that fails or falls silent would leave the others waiting in a sum over all devices, on
most backends for ever. Here each process shows a sign of life every few seconds, and those that
miss one of another say so and end.
"""

import atexit
import contextlib
import faulthandler
import glob
import importlib.util
import itertools
import json
import os
import re
import sys
import threading
import time
import traceback

from lepton_jax.errors import UserError

MEETING = 300  # seconds that processes wait for each other at the start
SILENCE = 30  # seconds without a sign of life after which a process counts as lost
LOST = 75  # exit status of those that lost another one: trying again may help (sysexits.h)
# What a sum or a meeting says when the connection to another process is gone.
SEVERED = r'Gloo|[Cc]onnection|UNAVAILABLE|DEADLINE_EXCEEDED|[Cc]oordination service|heartbeat'

_turns = itertools.count()
_client = None


def join(options):
  """Connects this process with the others of its run, before the first use of a device.

  `options` has `processes`, `process_index` and `coordinator`. If none is given, what Cloud TPU
  VMs, SLURM, Open MPI and GKE tell their processes is used. Does nothing for a process on its own,
  or the second time. Raises UserError for half of the three, and where the others do not come.
  """
  global _client
  given = asked_for(options)
  if _client is not None or options.processes == 1 or not given and not found():
    return
  import jax
  # JAX would abort with the stack of its own code; it waits a little longer than this.
  late = threading.Timer(MEETING, _end, [f'the processes of this run did not meet within {MEETING} '
                                         f's ({_expected(given)})'])
  late.daemon = True
  late.start()
  try:
    jax.distributed.initialize(**given, initialization_timeout=MEETING + 60,
                               heartbeat_timeout_seconds=4 * SILENCE)
  except RuntimeError as error:
    raise UserError(f'the processes of this run cannot be connected: '
                    f'{str(error).splitlines()[0]} ({_expected(given)})') from None
  finally:
    late.cancel()
  if jax.process_count() > 1:
    # If process 0 ends, JAX aborts the others and says so; absl would add a stack of each thread.
    faulthandler.disable()
    from jax._src import distributed  # its client has no public name; orbax takes it from here too
    _client = distributed.global_state.client
    threading.Thread(target=_watch, args=(_client, jax.process_index(), jax.process_count()),
                     daemon=True).start()
    atexit.register(_client.key_value_set, f'lepton/left/{jax.process_index()}', 'at its end')


def asked_for(options):
  """The arguments of jax.distributed.initialize that the flags ask for; {} without any.

  Raises UserError where only some of the flags are given, or they contradict each other.
  """
  present = {'--processes=N': options.processes > 0,
             '--process_index=I': options.process_index >= 0,
             '--coordinator=HOST:PORT': options.coordinator != ''}
  if options.processes == 1 or not any(present.values()):  # 1: alone, whatever SLURM says
    return {}
  if not all(present.values()):
    missing = ' and '.join(flag for flag, there in present.items() if not there)
    raise UserError(f'{missing} missing: each of several processes is given all of '
                    f'{" ".join(present)}, and on Cloud TPU VMs, SLURM, Open MPI and GKE none')
  host, _, port = options.coordinator.rpartition(':')
  if not host or not port.isdecimal():
    raise UserError(f'--coordinator={options.coordinator}: allowed is HOST:PORT, a port of the '
                    f'machine of process 0 that the others reach')
  if not options.process_index < options.processes:
    raise UserError(f'--process_index={options.process_index}: with --processes='
                    f'{options.processes} allowed are 0 to {options.processes - 1}')
  return dict(coordinator_address=options.coordinator, num_processes=options.processes,
              process_id=options.process_index)


def found():
  """What starts several processes here and tells each of them its place, by name; '' if nothing.

  jax.distributed reads the same variables.
  """
  number = lambda name: int(os.environ[name]) if os.environ.get(name, '').isdecimal() else 0
  if number('SLURM_NTASKS') > 1 and {'SLURM_PROCID', 'SLURM_STEP_NODELIST'} <= os.environ.keys():
    return 'SLURM'
  if number('OMPI_COMM_WORLD_SIZE') > 1 and 'OMPI_MCA_orte_hnp_uri' in os.environ:
    return 'Open MPI'
  if ',' in os.environ.get('TPU_WORKER_HOSTNAMES', ''):
    return 'GKE'
  chips = glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')
  if chips and importlib.util.find_spec('libtpu') and 'TPU_SKIP_MDS_QUERY' not in os.environ:
    return 'a Cloud TPU VM'
  return ''


def place(options):
  """This process's number among those that were started together, which need not be connected."""
  if options.process_index >= 0:
    return options.process_index
  told = dict(SLURM='SLURM_PROCID', GKE='TPU_WORKER_ID') | {'Open MPI': 'OMPI_COMM_WORLD_RANK'}
  return int(os.environ.get(told.get(found(), ''), 0)) if options.processes != 1 else 0


def first():
  """Whether this process writes what one process writes: tables, results, what people read."""
  if _client is None:
    return True
  import jax
  return jax.process_index() == 0


def from_first(make):
  """What `make()` returns in the first process, as JSON carries it, in each of them.

  Several processes that look at one folder at different times would decide differently.
  """
  if _client is None:
    return make()
  key = f'lepton/said/{next(_turns)}'
  if first():
    value = make()
    _client.key_value_set(key, json.dumps(value))
    return value
  return json.loads(_client.blocking_key_value_get(key, 1000 * MEETING))


def meet():
  """Waits until every process is here."""
  if _client is not None:
    _client.wait_at_barrier(f'lepton/met/{next(_turns)}', 1000 * MEETING)


def leave(status):
  """Ends this process with a status, after an error that perhaps the others do not have.

  An orderly end would wait for them, while they wait for this process's part of a sum. Returns the
  status where nobody waits.
  """
  if _client is None:
    return status
  with contextlib.suppress(Exception):  # an error that all have, such as a wrong flag, ends all
    _client.wait_at_barrier('lepton/failed', 5000)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def fail(error):
  """Ends this process after an unexpected error: in a sentence where it came from another one."""
  if isinstance(error, (ValueError, RuntimeError)) and re.search(SEVERED, str(error)):
    _end(f'another process of this run ended ({str(error).splitlines()[0][:160]})')
  traceback.print_exception(error)
  leave(1)


def connected():
  """Whether this process is one of several that train as one."""
  return _client is not None


def _watch(client, index, count):
  """Shows signs of life and looks for those of the others, until the end of the process."""
  seen = {other: (None, time.monotonic()) for other in range(count) if other != index}
  for turn in itertools.count():
    try:
      client.key_value_set(f'lepton/alive/{index}', str(turn), True)
      signs = dict(client.key_value_dir_get('lepton/alive/'))
      left = {int(key.rpartition('/')[2]) for key, _ in client.key_value_dir_get('lepton/left/')}
    except Exception as error:
      _end(f'process 0, which the others meet at, ended ({str(error).splitlines()[0][:200]})')
    now = time.monotonic()
    for other in seen.keys() - left:
      sign = signs.get(f'lepton/alive/{other}')
      if sign != seen[other][0]:
        seen[other] = sign, now
      elif now - seen[other][1] > SILENCE:
        _end(f'process {other} of {count} has shown no sign of life for {SILENCE} s')
    time.sleep(SILENCE / 10)


def _end(why):
  print(f'error: {why}; this process ends too. To go on from the last checkpoint, start all '
        f'processes again with the same command', file=sys.stderr, flush=True)
  os._exit(LOST)


def _expected(given):
  if not given:
    return f'{found()} says that there are several; --processes=1 trains with this one alone'
  return (f'this is process {given["process_id"]} of {given["num_processes"]}, '
          f'--coordinator={given["coordinator_address"]}')
