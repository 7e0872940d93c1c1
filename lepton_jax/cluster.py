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
import socket
import sys
import threading
import time
import traceback

from lepton_jax.errors import UserError

MEETING = 600  # seconds that processes wait for each other at the start
SILENCE = 20  # seconds without a sign of life after which a process counts as lost
LOOKS = 3  # seconds between looks for those signs
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
  if _client is not None or not expected(options):
    return
  import jax
  given = asked_for(options)
  # JAX would abort with the stack of its own code; it waits a little longer than this.
  late = threading.Timer(MEETING, _end, [
      f'the processes of this run did not meet within {MEETING} s ({_who(given)})', 1])
  late.daemon = True
  late.start()
  try:
    jax.distributed.initialize(**given, initialization_timeout=MEETING + 60,
                               heartbeat_timeout_seconds=4 * SILENCE)
  except RuntimeError as error:
    raise UserError(f'the processes of this run cannot be connected: '
                    f'{str(error).splitlines()[0]} ({_who(given)})') from None
  finally:
    late.cancel()
  if jax.process_count() > 1:
    # If process 0 ends, JAX aborts the others and says so; absl would add a stack of each thread.
    faulthandler.disable()
    from jax._src import distributed  # its client has no public name; orbax takes it from here too
    _client = distributed.global_state.client
    ending = threading.Event()
    watch = threading.Thread(target=_watch, daemon=True, args=(
        _client, jax.process_index(), jax.process_count(), ending))
    watch.start()
    atexit.register(_depart, _client, jax.process_index(), ending, watch)


def expected(options):
  """Whether this process is to train with others, by its flags or by what started it."""
  if options.processes == 1:
    return False
  mpi, known = os.environ.get('OMPI_COMM_WORLD_SIZE', '1'), bool(asked_for(options) or found())
  if not known and mpi != '1':
    raise UserError(f'Open MPI started {mpi} processes and does not say where they meet, as its '
                    f'version 4 did: pass --processes=$OMPI_COMM_WORLD_SIZE --process_index='
                    f'$OMPI_COMM_WORLD_RANK --coordinator=HOST:PORT, or --processes=1')
  return known


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
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise UserError(f'--coordinator={options.coordinator}: allowed is HOST:PORT, a port of the '
                    f'machine of process 0 that the others reach')
  if not options.process_index < options.processes:
    raise UserError(f'--process_index={options.process_index}: with --processes='
                    f'{options.processes} allowed are 0 to {options.processes - 1}')
  try:
    socket.getaddrinfo(host.strip('[]'), int(port))
  except OSError as error:
    raise UserError(f'--coordinator={options.coordinator}: there is no such machine '
                    f'({error.strerror})') from None
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
  if found() == 'a Cloud TPU VM':
    import jax
    return jax.process_index()  # told by a metadata server, and libtpu knows it
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


def check_same(values):
  """Raises UserError, which names them, for {name: value} that the first process has otherwise."""
  theirs = from_first(lambda: values)
  if differing := [name for name, value in values.items() if theirs.get(name) != value]:
    told = ', '.join(f'--{name}={values[name]} and {theirs.get(name)}' for name in differing[:5])
    raise UserError(f'the processes of this run were started with different options: {told}')


def meet():
  """Waits until every process is here."""
  if _client is not None:
    _client.wait_at_barrier(f'lepton/met/{next(_turns)}', 1000 * MEETING)


def leave(status, why='it ended'):
  """Ends this process with a status, after an error that perhaps the others do not have.

  They are told `why`. An orderly end would wait for them, while they wait for this process's part
  of a sum. Returns the status where nobody waits.
  """
  if _client is None:
    return status
  with contextlib.suppress(Exception):
    import jax
    _client.key_value_set(f'lepton/failed/{jax.process_index()}', f'{status} {why}')
    # Where all have the same error, such as a wrong flag, all are here soon. Else they read why,
    # which the first process keeps for them.
    _client.wait_at_barrier('lepton/failed', 2000 * LOOKS)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def fail(error):
  """Ends this process after an unexpected error: in a sentence where it came from another one."""
  if isinstance(error, (ValueError, RuntimeError)) and re.search(SEVERED, str(error)):
    _end(f'another process of this run ended ({str(error).splitlines()[0][:160]})')
  traceback.print_exception(error)
  leave(1, f'{type(error).__name__}: {str(error)[:200]}')


def connected():
  """Whether this process is one of several that train as one."""
  return _client is not None


def _depart(client, index, ending, watch):
  """Tells the others that this process ends in order, and ends its watch."""
  try:
    client.key_value_set(f'lepton/left/{index}', 'at its end')
  finally:  # a thread that comes back from C++ while Python ends would abort the process
    ending.set()
    watch.join(SILENCE)


def _watch(client, index, count, ending):
  """Shows signs of life and looks for those of the others, until `ending` is set."""
  seen = {other: (None, time.monotonic()) for other in range(count) if other != index}
  for turn in itertools.count():
    try:
      client.key_value_set(f'lepton/alive/{index}', str(turn), True)
      signs = dict(client.key_value_dir_get('lepton/alive/'))
      number = lambda key: int(key.rpartition('/')[2])
      left = {number(key) for key, _ in client.key_value_dir_get('lepton/left/')}
      failed = {number(key): why for key, why in client.key_value_dir_get('lepton/failed/')}
    except Exception as error:
      _end(f'process 0, which the others meet at, ended ({str(error).splitlines()[0][:200]})')
    for other in failed.keys() - {index}:
      if index not in failed:  # else this process is ending with an error of its own
        time.sleep(LOOKS)  # in which it may find the same
        status, _, why = failed[other].partition(' ')
        _end(f'process {other} of {count} stopped: {why}', int(status))
    now = time.monotonic()
    for other in seen.keys() - left:
      sign = signs.get(f'lepton/alive/{other}')
      if sign != seen[other][0]:
        seen[other] = sign, now
      elif now - seen[other][1] > SILENCE:
        _end(f'process {other} of {count} has shown no sign of life for {SILENCE} s')
    if ending.wait(LOOKS):
      return


def _end(why, status=LOST):
  again = ('; this process ends too. To go on from the last checkpoint, start all processes again '
           'with the same command')
  print(f'error: {why}{again if status == LOST else ""}', file=sys.stderr, flush=True)
  if _client is not None and first():  # the others learn of it before they lose this one as well
    with contextlib.suppress(Exception):
      _client.key_value_set('lepton/failed/0', f'{status} {why}')
      time.sleep(2 * LOOKS + 1)
  os._exit(status)


def _who(given):
  if not given:
    return f'{found()} says that there are several; --processes=1 trains with this one alone'
  return (f'this is process {given["process_id"]} of {given["num_processes"]}, '
          f'--coordinator={given["coordinator_address"]}')
