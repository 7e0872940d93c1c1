"""Runs the trials of a sweep: programs shared, finished trials skipped, failures noted while the others go on."""

import contextlib
import dataclasses
import functools
import itertools
import json
import multiprocessing
import pathlib
import queue
import threading
import time
import typing
from concurrent import futures

from lepton_jax import machine
from lepton_jax.errors import UserError
from lepton_jax.sweep import claims

EXECUTORS = ('inline', 'devices', 'processes')
FAILURE = 'failure.json'
KEPT = 8  # programs that a worker holds on to
POLL = 0.5  # seconds between looks at a trial that another sweep has


class Costs(typing.NamedTuple):
  """What a sweep took: trials trained here, programs of train steps compiled for them, seconds."""
  trials: int = 0
  programs: int = 0
  compile_seconds: float = 0.0
  seconds: float = 0.0

  def __str__(self):
    rate = 60 * self.trials / self.seconds if self.seconds else 0
    return (f'{self.trials} trials trained, {self.programs} programs; {self.compile_seconds:.1f} s compiling, '
            f'{max(0.0, self.seconds - self.compile_seconds):.1f} s training and the rest, {rate:.1f} trials a minute')


def folder_of(config):
  """Where a trial's run folder is; sweeps need local ones, for their claims."""
  if '://' in config.run.runs_dir:
    raise UserError(f'--runs_dir={config.run.runs_dir}: a sweep needs a local folder, whose files it can lock')
  return pathlib.Path(config.run.runs_dir).expanduser() / config.name()


def finished(config):
  """The result of a trial, or None."""
  with contextlib.suppress(FileNotFoundError):
    return json.loads((folder_of(config) / 'result.json').read_text())


def failure(config):
  """{'error', 'traceback'} of a trial that failed, or None."""
  with contextlib.suppress(FileNotFoundError):
    return json.loads((folder_of(config) / FAILURE).read_text())


def programs(configs):
  """Lists of the configurations that share compiled functions, in the order of their first ones."""
  found = {}
  for config in configs:
    found.setdefault(config.program(), []).append(config)
  return list(found.values())


def check(configs):
  """Raises UserError for what a sweep cannot train."""
  for config in configs:
    folder_of(config)
    if config.data.folds and config.data.fold is None:
      every = ','.join(map(str, range(config.data.folds)))
      raise UserError(f'--folds={config.data.folds}: in a sweep a trial is one fold; pass --fold={every} as well')
    if config.optimization.solver != 'gradient':
      raise UserError(f'--solver={config.optimization.solver}: a sweep trains by gradients; ./launch.sh train solves it')


def sweep(configs, executor='inline', workers=0, per_device=0, tell=print):
  """Trains every trial that has no result yet; returns its Costs. Results and failures are in the run folders.

  Args:
    configs: the trials.
    executor: 'inline' trains one after another on one device, 'devices' one on each device at once (on accelerators
      `per_device` on each), 'processes' starts `workers` processes that share the trials.
    workers: how many processes; 0: one a core.
    per_device: lanes of an accelerator; 0: 16. A CPU device has one.
    tell: called with a line for each trial that ends.

  Raises UserError for trials that a sweep cannot train and train.loop.Interrupted where it was stopped.
  """
  check(configs)
  began = time.monotonic()
  if executor == 'processes':
    costs = in_processes(configs, workers or machine.cores(), tell)
  else:
    costs = here(configs, executor == 'devices', per_device, tell)
  return costs._replace(seconds=time.monotonic() - began)


def here(configs, all_devices, per_device, tell):
  """Trains in this process; returns the Costs."""
  with Session(configs[0].run, all_devices, per_device, tell) as session:
    session.train(configs)
    return session.costs


class Session:
  """This process's workers, a thread for each device, and the programs that they have compiled.

  Every device runs the program of a run on one device, so a trial's numbers are the same bit for bit,
  whichever device has it. (One program over all devices would be compiled, and round, differently.)
  """

  def __init__(self, options, all_devices, per_device, tell, watch=None):
    machine.start(dataclasses.replace(options, parallel='auto', cpu_devices=options.cpu_devices if all_devices else 1))
    import jax
    devices = jax.local_devices() if all_devices else jax.local_devices()[:1]
    self.lanes = 1 if jax.default_backend() == 'cpu' or not all_devices else per_device or 16
    self.workers = [Worker(device, self.lanes, tell, watch) for device in devices]

  def __enter__(self):
    from lepton_jax.train import loop
    self._open = contextlib.ExitStack()
    self._clock = self._open.enter_context(compile_clock())
    self._stop = self._open.enter_context(loop.StopSignal())
    self._pool = self._open.enter_context(futures.ThreadPoolExecutor(len(self.workers)))
    return self

  def __exit__(self, *error):
    return self._open.__exit__(*error)

  def train(self, configs):
    """Trains what has no result; raises train.loop.Interrupted where it was stopped."""
    from lepton_jax.train import loop
    todo = Todo(configs, self.lanes)
    for done in [self._pool.submit(worker.run, todo, self._stop) for worker in self.workers]:
      done.result()
    if self._stop.arrived:
      raise loop.Interrupted(self._stop.arrived)

  @property
  def costs(self):
    """The Costs so far, but for the seconds in all."""
    return Costs(sum(w.trained for w in self.workers), sum(w.programs for w in self.workers), self._clock.seconds)


class Todo:
  """The trials that are left, handed out in groups that share a program."""

  def __init__(self, configs, most):
    self._lock, self._groups, self._most = threading.Lock(), programs(configs), most

  def take(self, known):
    """Up to a cohort of (config, claim) of one program, of `known` ones if there are any, else of the program with most trials left.

    None means that nothing is left; an empty list that other sweeps are training what is.
    """
    with self._lock:
      self._groups = [group for group in self._groups if group]
      for group in sorted(self._groups, key=lambda g: (g[0].program() not in known, -len(g))):
        taken = []
        for config in list(group):
          claim = None if finished(config) else claims.take(folder_of(config))
          if claim is not None and finished(config) is None:
            taken.append((config, claim))
          elif claim is not None:  # finished just before the claim
            claim.release()
          elif finished(config) is None:
            continue
          group.remove(config)
          if len(taken) == self._most:
            break
        if taken:
          return taken
      return [] if any(self._groups) else None


class Worker:
  """Trains cohorts of trials on one device."""

  def __init__(self, device, lanes, tell, watch=None):
    self._device, self._lanes, self._tell, self._watch = device, lanes, tell, watch
    self._kept, self.trained, self.programs = {}, 0, 0

  def run(self, todo, stop):
    """Trains until nothing is left or `stop` was asked for."""
    import jax
    with jax.default_device(self._device):
      while not stop.arrived and (taken := todo.take(self._kept.keys())) is not None:
        if not taken:
          time.sleep(POLL)
          continue
        with contextlib.ExitStack() as stack:
          for _, claim in taken:
            stack.callback(claim.release)
          at = lambda trial: int(trial.state.step)
          for _, together in itertools.groupby(sorted(self._open([config for config, _ in taken]), key=at), key=at):
            self._train(list(together), stop)

  def _open(self, configs):
    """The Trials of configurations of one program; what cannot be opened is noted as failed."""
    from lepton_jax.sweep import cohort
    trials = []
    for config in configs:
      folder = folder_of(config)
      (folder / FAILURE).unlink(missing_ok=True)
      try:
        trials.append(cohort.Trial(config, self.program(config), folder, self._watch))
      except Exception as error:
        self._failed(config, cohort.failure(error))
    return trials

  def program(self, config):
    """The Program of a configuration: made once, the last few kept."""
    from lepton_jax import assemble, run, speed
    from lepton_jax.sweep import cohort
    key = config.program()
    if key not in self._kept:
      import jax
      data = load_data(config.data, config.optimization.loss)
      assembly = assemble.build(config, data, run.read_initial(config, data) if config.training.init_from else None)
      calls = speed.steps_per_call(config.run.steps_per_call, assembly.state.params, assembly.batches, jax.default_backend())
      self._kept[key] = cohort.Program(assembly, self._lanes, calls)
      self.programs += 1
      if len(self._kept) > KEPT:
        del self._kept[next(iter(self._kept))]
    return self._kept[key]

  def _train(self, trials, stop):
    """Trains trials that stand at one step, then writes what came of them."""
    from lepton_jax.sweep import cohort
    from lepton_jax.train import loop
    try:
      with contextlib.suppress(loop.Interrupted):  # saved; whoever waits for all devices sees it as well
        cohort.train(trials[0].program, trials, stop)
    except Exception as error:
      for trial in trials:
        trial.failed = trial.failed or cohort.failure(error)
    for trial in trials:
      try:
        trial.close()
      except Exception as error:
        trial.failed = cohort.failure(error)
      if trial.failed is not None:
        self._failed(trial.config, trial.failed)
      elif trial.result is not None:
        self.trained += 1
        self._tell(line(trial.config, trial.result))

  def _failed(self, config, failed):
    from lepton_jax.train import record
    record.write_atomically(folder_of(config) / FAILURE, json.dumps(failed._asdict(), indent=2) + '\n')
    self._tell(f'{config.name()}  failed: {failed.error.splitlines()[0]}')


@functools.lru_cache(maxsize=2)
def load_data(options, loss):
  """A data set, kept while trials in a row read it."""
  from lepton_jax.data import dataset
  return dataset.load(options, loss)


def line(config, result):
  """One line of a finished trial."""
  measures = [f'{name.replace("_", " ")} {result[name]:.4f}' for name in ('validation_accuracy', 'validation_rmse', 'validation_loss') if name in result]
  return f'{config.name()}  {"  ".join(measures[:1])}  {result["train_seconds"]:.1f} s'


class compile_clock(contextlib.AbstractContextManager):
  """Adds up the seconds that JAX spends tracing and compiling while it is open."""

  def __init__(self):
    self.seconds = 0.0

  def _listen(self, event, duration, **_):
    if event.startswith('/jax/core/compile/'):
      self.seconds += duration

  def __enter__(self):
    import jax
    jax.monitoring.register_event_duration_secs_listener(self._listen)
    return self

  def __exit__(self, *_):
    import jax
    jax.monitoring.unregister_event_duration_listener(self._listen)


def in_processes(configs, count, tell):
  """Trains in so many processes, each taking the trials that it can claim; one that dies leaves its trials to the others."""
  from lepton_jax.train import loop
  context = multiprocessing.get_context('spawn')
  total, said = Costs(), context.Queue()
  workers = [context.Process(target=work, args=(configs, said)) for _ in range(min(count, len(configs)))]
  with loop.StopSignal() as stop:  # workers of a terminal get the signal as well; others are sent it
    for worker in workers:
      worker.start()
    sent = False
    while any(worker.is_alive() for worker in workers) or not said.empty():
      if stop.arrived and not sent:
        sent = True
        for worker in workers:
          worker.terminate()
      with contextlib.suppress(queue.Empty):
        one = said.get(timeout=POLL)
        if isinstance(one, Costs):
          total = Costs(*(a + b for a, b in zip(total, one)))
        else:
          tell(one)
    if stop.arrived:
      raise loop.Interrupted(stop.arrived)
  if any(worker.exitcode for worker in workers) and any(finished(config) is None and failure(config) is None for config in configs):
    raise UserError('a worker process ended before its trials; repeat the command to go on')
  return total


def work(configs, said):
  """A worker process: puts a line for each trial, and its Costs."""
  from lepton_jax.train import loop
  with contextlib.suppress(loop.Interrupted):
    said.put(here(configs, False, 0, said.put))
