"""Trains the trials of a sweep on workers of Ray: on this machine, or on those of a cluster.

A worker is an actor with a Session of one device, which does to a trial what it does in a sweep of
one process. The command that was started only hands out trials, one at a time, so that all workers
have work until the end and a worker that dies costs one trial's progress.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import logging
import os
import pathlib
import re
import socket
import sys
import time
import typing
import uuid

from lepton_jax import files, machine, outcomes
from lepton_jax.errors import UserError
from lepton_jax.sweep import trials
from lepton_jax.sweep.session import POLL, Costs, Session, by_preference, note_failure

DEATHS = 3  # of workers, while they train one trial, or while they start
PATIENCE = 30  # seconds without any worker after which a line says why
STORE = 100 * 2**20  # bytes for Ray's store of objects: only configurations go through it
# What is set for this process and changes what XLA and oneDNN compute, or how they round.
SETTINGS = ('JAX_PLATFORMS', 'XLA_FLAGS', 'OMP_NUM_THREADS')
# What Ray calls a device of each of JAX's platforms, as an option of an actor.
DEVICES = {'TPU': dict(num_cpus=0, resources={'TPU': 1}), 'GPU': dict(num_cpus=0, num_gpus=1),
           'CPU': dict(num_cpus=1)}


def check(executor, address):
  """Raises UserError for an --address that cannot be used, and where Ray is not installed."""
  if executor != 'ray':
    if address:
      raise UserError(f'--address={address} is that of a Ray cluster: pass --executor=ray as well, '
                      f'or leave it out with --executor={executor}')
    return
  if importlib.util.find_spec('ray') is None:
    raise UserError('--executor=ray: Ray is not installed: pip install -r requirements-ray.txt')
  if address not in ('', 'auto') and not re.fullmatch(r'[\w.-]+:\d+', address):
    raise UserError(f'--address={address}: allowed are auto, for the cluster that this machine is '
                    f'part of, and HOST:PORT as `ray start --head` prints it')


def sweep(configs, count, address, tell):
  """Trains on so many workers, but at most and for 0 one on each device; returns the Costs."""
  check('ray', address)
  left = [config for config in map(with_whole_path, configs) if outcomes.finished(config) is None]
  ray = connect(address, min(count or machine.cores(), len(left)))
  try:
    with marked({outcomes.folder_of(config).parent for config in left}) as marks:
      settings = {name: os.environ[name] for name in SETTINGS if name in os.environ}
      job = Job(list(map(with_whole_path, configs)), time.time(), os.getcwd(), marks, settings,
                versions())
      crew = Crew(ray, job, min(count or len(left), len(left)), tell)
      crew.train(left)
      return crew.costs._replace(programs=len(trials.programs(left)))
  finally:
    ray.shutdown()


def with_whole_path(config):
  """The configuration with the --runs_dir that is the same folder in every process."""
  place = outcomes.folder_of(config).parent
  return config.replace(runs_dir=str(place if files.remote(place) else os.path.abspath(place)))


def connect(address, count):
  """The `ray` package, connected to a cluster, or for '' to one started here with `count` CPUs.

  Raises UserError where no cluster answers.
  """
  os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
  if not address:
    # Ray would listen on the network; this name of a setting keeps it on the loopback device.
    os.environ.setdefault('RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER', '0')
  elif address != 'auto':
    answers(address)
  import ray
  options = dict(logging_level=logging.ERROR, log_to_driver=False)
  if not address:
    ray.init('local', num_cpus=count, include_dashboard=False, object_store_memory=STORE, **options)
    return ray
  package = str(pathlib.Path(__file__).parents[1])
  try:
    ray.init(address, runtime_env=dict(py_modules=[package]), **options)
  except (ConnectionError, RuntimeError, ValueError) as error:
    # Ray sends a token to an address only where its user says so.
    raise UserError(f'--address={address}: no Ray cluster to connect to: '
                    f'{str(error).splitlines()[0].rstrip(".")}; where it asks for a token, set '
                    f'RAY_AUTH_MODE=token as on its machines') from None
  return ray


def answers(address):
  """Raises UserError if nothing listens at HOST:PORT, for which Ray would wait long."""
  host, _, port = address.rpartition(':')
  try:
    socket.create_connection((host, int(port)), timeout=10).close()
  except (OSError, OverflowError) as error:
    raise UserError(f'--address={address}: nothing answers there ({error}); allowed are auto and '
                    f'HOST:PORT as `ray start --head` prints it') from None


@contextlib.contextmanager
def marked(folders):
  """Puts a file into each folder, by which workers find out whether they see the same folder."""
  marks = [folder / f'.seen-{uuid.uuid4().hex}' for folder in sorted(folders)]
  try:
    for mark in marks:
      mark.parent.mkdir(parents=True, exist_ok=True)
      mark.write_text('')
    yield marks
  finally:
    for mark in marks:
      mark.unlink(missing_ok=True)


def versions():
  """{package: version} of what the numbers of a trial depend on."""
  return {name: importlib.metadata.version(name) for name in machine.PACKAGES}


class Job(typing.NamedTuple):
  """What a worker has to know of the sweep.

  Attributes:
    configs: all trials, finished ones included.
    began: when the sweep did, in seconds since the epoch.
    place: the working directory, to which relative paths in flags refer.
    marks: files that a worker must see.
    settings: environment variables.
    versions: of packages.
  """
  configs: list
  began: float
  place: str
  marks: list
  settings: dict
  versions: dict


class Trainer:
  """A worker: lives in an actor, trains a trial at a time and keeps the programs."""

  def __init__(self):
    self._open, self._said = contextlib.ExitStack(), []

  def open(self, job):
    """Gets ready; raises UserError for what would give other results than on the first machine."""
    # Ray gives a worker as many OpenMP threads as it has CPUs of Ray.
    for name in SETTINGS:
      os.environ.pop(name, None)
    os.environ.update(job.settings)
    host = socket.gethostname()
    for name, version in versions().items():
      if version != job.versions[name]:
        raise UserError(f'the worker on {host} has {name} {version} and this machine '
                        f'{job.versions[name]}: results would differ; install the same on both')
    for mark in job.marks:
      if not mark.exists():
        raise UserError(f'--runs_dir={mark.parent}: the worker on {host} does not see this folder '
                        f'of the machine that started the sweep; name a folder that all machines '
                        f'of the cluster share')
    with contextlib.suppress(OSError):  # not there: relative paths then say what is missing
      os.chdir(job.place)
    session = Session(job.configs[0].run, False, self._said.append, began=job.began)
    self._session = self._open.enter_context(session)
    self._session.check(job.configs)

  def train(self, config):
    """Trains a trial to its end or to a `stop`; returns (lines to show, the Costs so far)."""
    from lepton_jax.train import loop
    self._said.clear()
    with contextlib.suppress(loop.Interrupted):
      self._session.train_unchecked([config])
    return list(self._said), self._session.costs

  def stop(self, signal):
    """Ends `train`, after it saved."""
    self._session.stop(signal)


@dataclasses.dataclass
class Worker:
  """The driver's side of a Trainer.

  Attributes:
    actor: the handle of it.
    answer: the reference to what it will return; None while it is idle.
    config: what it trains; None while it opens or is idle.
    known: the programs that it has trained by.
    costs: what it took so far.
  """
  actor: object
  answer: object
  config: object = None
  known: set = dataclasses.field(default_factory=set)
  costs: Costs = Costs()


class Crew:
  """The workers of a sweep, those that died replaced, and the trials that are left for them."""

  def __init__(self, ray, job, most, tell):
    self._ray, self._tell = ray, tell
    self._job = ray.put(job)
    device = device_kind(job.settings.get('JAX_PLATFORMS', ''), ray.cluster_resources())
    most = min(most, max(1, int(ray.cluster_resources().get(device, 0))))
    # Two calls at a time: `stop` comes while `train` is under way. Each worker of a CPU uses all
    # cores of its machine, so they are spread over machines.
    self._actor = ray.remote(Trainer).options(max_concurrency=2, scheduling_strategy='SPREAD',
                                              **DEVICES[device])
    self._device, self._began = device, time.monotonic()
    self._groups, self._deaths, self._failed_starts, self._opened = [], {}, 0, False
    self._gone = []  # the Costs of workers that died
    self._workers = [self._start() for _ in range(most)]

  def _start(self):
    actor = self._actor.remote()
    return Worker(actor, actor.open.remote(self._job))

  @property
  def costs(self):
    """The Costs so far, but for the seconds on the clock."""
    every = [*self._gone, *(worker.costs for worker in self._workers)]
    return Costs(*map(sum, zip(*every)))

  def train(self, configs):
    """Trains all of them.

    Raises loop.Interrupted, after the workers saved, where it was stopped, and UserError where
    workers cannot start.
    """
    from lepton_jax.train import loop
    self._groups = trials.programs(configs)
    # Entered after Ray was started, because Ray has a handler of SIGTERM of its own.
    with loop.StopSignal() as stop:
      while any(self._groups) or any(worker.config for worker in self._workers):
        self._hear([worker for worker in self._workers if worker.answer is not None])
        if stop.arrived:
          self._stop(stop.arrived)
          raise loop.Interrupted(stop.arrived)
        for worker in self._workers:
          if worker.answer is None:
            self._hand_out(worker)

  def _hand_out(self, worker):
    """Gives an idle worker a trial, if any is left."""
    for group in by_preference(self._groups, worker.known)[:1]:
      worker.config = group.pop(0)
      worker.known.add(worker.config.program())
      worker.answer = worker.actor.train.remote(worker.config)

  def _hear(self, workers):
    """Waits a moment for what workers answer; those that died are replaced."""
    done, _ = self._ray.wait([worker.answer for worker in workers], timeout=POLL)
    if not done and not self._opened and time.monotonic() - self._began > PATIENCE:
      self._opened = True
      free = self._ray.available_resources().get(self._device, 0)
      notice(f'no worker has started yet; free in the cluster: {free:g} {self._device}')
    for worker in workers:
      if worker.answer in done:
        try:
          self._take(worker)
        except self._ray.exceptions.RayError as error:
          self._replace(worker, error)

  def _take(self, worker):
    """Takes the answer of a worker; raises RayError if the worker died."""
    try:
      answer = self._ray.get(worker.answer)
    except self._ray.exceptions.RayTaskError as error:
      if isinstance(error.cause, UserError):
        raise error.cause from None
      raise RuntimeError(f'a worker failed: {error}') from None
    worker.answer, self._opened = None, True
    if worker.config is not None:
      lines, worker.costs = answer
      worker.config = None
      for line in lines:
        self._tell(line)

  def _replace(self, worker, error):
    """Starts another worker for one that died, whose trial goes back to those that are left."""
    with contextlib.suppress(Exception):
      self._ray.kill(worker.actor)  # it may be out of reach only, and would go on
    self._workers.remove(worker)
    self._gone.append(worker.costs)
    reason = ' '.join(str(error).split())[:400]
    if worker.config is None:
      self._failed_starts += 1
      if self._failed_starts == DEATHS:
        raise UserError(f'{DEATHS} workers of Ray ended before they could train ({reason}); '
                        f'their logs are in logs/ of the session in Ray\'s folder, /tmp/ray')
    else:
      self._give_back(worker.config, reason)
    self._workers.append(self._start())

  def _give_back(self, config, reason):
    name = config.name()
    self._deaths[name] = self._deaths.get(name, 0) + 1
    if self._deaths[name] < DEATHS:
      notice(f'the worker that trained {name} died; another one trains it')
      self._groups.insert(0, [config])
      return
    from lepton_jax.sweep import cohort
    failed = cohort.Failed(f'{DEATHS} workers died while they trained it: {reason}', '')
    self._tell(note_failure(config, failed))

  def _stop(self, signal):
    """Lets the workers that train save what they have."""
    training = [worker for worker in self._workers if worker.config is not None]
    for worker in training:
      worker.actor.stop.remote(signal)
    for worker in training:
      with contextlib.suppress(self._ray.exceptions.RayError):
        self._take(worker)


def notice(text):
  """Says what is no line of a trial, which the caller may count."""
  print(text, file=sys.stderr, flush=True)


def device_kind(platforms, resources):
  """What a worker trains on: 'TPU', 'GPU' or 'CPU'.

  It follows from JAX's list of platforms, where it is set, else from the resources of Ray.
  """
  first = platforms.partition(',')[0]
  if first:
    return {'cpu': 'CPU', 'tpu': 'TPU'}.get(first, 'GPU')
  return next((kind for kind in DEVICES if resources.get(kind)), 'CPU')
