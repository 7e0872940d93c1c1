"""This process's part of a sweep: a worker for each device, and the programs that trials share."""

import contextlib
import dataclasses
import functools
import itertools
import threading
import time
import typing
from concurrent import futures

from lepton_jax import files, machine, outcomes
from lepton_jax.errors import UserError
from lepton_jax.sweep import claims, trials

LANES = 16  # of an accelerator
KEPT = 8  # programs that a worker holds on to
POLL = 0.5  # seconds between looks at a trial that another sweep has


class Costs(typing.NamedTuple):
  """What a sweep took.

  Attributes:
    trials: how many were trained to their end.
    programs: how many different ones they needed; each is compiled on every device that trains by
      it.
    compile_seconds, busy_seconds: of tracing and compiling, and in all, summed over devices or
      processes.
    seconds: on the clock.
  """
  trials: int = 0
  programs: int = 0
  compile_seconds: float = 0.0
  busy_seconds: float = 0.0
  seconds: float = 0.0

  def __str__(self):
    rate = 60 * self.trials / self.seconds if self.seconds else 0
    training = max(0.0, self.busy_seconds - self.compile_seconds)
    return (f'trials trained: {self.trials} in {self.seconds:.1f} s, {rate:.1f} a minute; '
            f'programs: {self.programs}; over all devices {self.compile_seconds:.1f} s compiling, '
            f'{training:.1f} s training and the rest')


class Session:
  """This process's workers, a thread for each device, and the programs that they have compiled.

  Every device runs the program of a run on one device, so a trial's numbers are the same bit for
  bit, whichever device has it. (One program over all devices would be compiled, and round,
  differently.)
  """

  def __init__(self, options, all_devices, tell, watch=None, began=None):
    cpu_devices = options.cpu_devices if all_devices else 1
    # Trials are whole: processes of a sweep share a folder and nothing else.
    alone = dataclasses.replace(options, parallel='auto', cpu_devices=cpu_devices, processes=1)
    machine.start(alone)
    import jax
    devices = jax.local_devices() if all_devices else jax.local_devices()[:1]
    self.lanes = 1 if jax.default_backend() == 'cpu' or not all_devices else LANES
    self._began = time.time() if began is None else began
    self.workers = [Worker(device, self.lanes, tell, watch) for device in devices]

  def __enter__(self):
    from lepton_jax.train import loop
    _loaded.cache_clear()  # files may have changed since an earlier sweep
    self._open = contextlib.ExitStack()
    self._clock = self._open.enter_context(compile_clock())
    self._stop = self._open.enter_context(loop.StopSignal())
    self._pool = self._open.enter_context(futures.ThreadPoolExecutor(len(self.workers)))
    return self

  def __exit__(self, *error):
    return self._open.__exit__(*error)

  def train(self, configs):
    """Trains what has no result.

    Raises train.loop.Interrupted where it was stopped, and UserError if a result was found that is
    of other data.
    """
    self.check(configs)
    self.train_unchecked(configs)

  def check(self, configs):
    """Raises UserError for data that all trials share and cannot be read, and for results of other
    data.
    """
    from lepton_jax import folder
    # A mistake in data that all trials share is found once, before any of them starts.
    if len({(config.data, config.optimization.loss) for config in configs}) == 1:
      load_data(configs[0].data, configs[0].optimization.loss)
    for config in configs:
      if outcomes.finished(config):
        data = load_data(config.data, config.optimization.loss)
        folder.check_data(outcomes.folder_of(config), data.version)

  def train_unchecked(self, configs):
    """Trains, as `train` does, some of the trials that `check` has seen."""
    from lepton_jax.train import loop
    todo = Todo(configs, self.lanes, self._began)
    for done in [self._pool.submit(worker.run, todo, self._stop) for worker in self.workers]:
      done.result()
    if self._stop.arrived:
      raise loop.Interrupted(self._stop.arrived)

  def stop(self, signal):
    """Ends training, from another thread, as if the process had received the signal of that name.
    """
    self._stop.arrived = signal

  @property
  def costs(self):
    """The Costs so far, but for the seconds on the clock."""
    compiled = set().union(*(worker.compiled for worker in self.workers))
    return Costs(sum(w.trained for w in self.workers), len(compiled), self._clock.seconds,
                 sum(w.busy for w in self.workers))


class Todo:
  """The trials that are left, handed out in groups that share a program."""

  def __init__(self, configs, most, began):
    self._lock, self._most, self._began = threading.Lock(), most, began
    self._groups = trials.programs(configs)

  def take(self, known):
    """Up to a cohort of (config, claim) of one program.

    It is one of the `known` programs if trials of such are left, else the one with most trials
    left. None means that nothing is left; an empty list that other sweeps are training what is.
    """
    with self._lock:
      for group in by_preference(self._groups, known):
        if taken := self._claimed(group):
          return taken
      return [] if any(self._groups) else None

  def _claimed(self, group):
    """Takes trials that no other sweep has out of a group, with their claims.

    Those that came to their end meanwhile are dropped.
    """
    taken = []
    for config in list(group):
      if len(taken) == self._most:
        break
      claim = claims.take(outcomes.folder_of(config))
      if claim is None:
        continue
      group.remove(config)
      # Asked under the claim: before it, another sweep could still finish the trial.
      if outcomes.finished(config) or outcomes.failed_since(config, self._began):
        claim.release()
      else:
        taken.append((config, claim))
    return taken


def by_preference(groups, known):
  """The groups of trials that have any, those of `known` programs first, then the largest."""
  return sorted(filter(None, groups), key=lambda g: (g[0].program() not in known, -len(g)))


class Worker:
  """Trains cohorts of trials on one device."""

  def __init__(self, device, lanes, tell, watch=None):
    self._device, self._lanes, self._tell, self._watch = device, lanes, tell, watch
    self._kept, self.compiled, self.trained, self.busy = {}, set(), 0, 0.0

  def run(self, todo, stop):
    """Trains until nothing is left or `stop` was asked for."""
    import jax
    with jax.default_device(self._device):
      while not stop.arrived and (taken := todo.take(self._kept.keys())) is not None:
        if not taken:
          time.sleep(POLL)
          continue
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
          for _, claim in taken:
            stack.callback(claim.release)
          at = lambda trial: int(trial.state.step)
          configs = [config for config, _ in taken]
          for _, together in itertools.groupby(sorted(self._open(configs), key=at), key=at):
            self._train(list(together), stop)
        self.busy += time.monotonic() - began

  def _open(self, configs):
    """The Trials of configurations of one program; what cannot be opened is noted as failed."""
    from lepton_jax.sweep import cohort
    opened = []
    for config in configs:
      folder = outcomes.folder_of(config)
      for name in (outcomes.FAILURE, outcomes.GIVEN_UP):
        (folder / name).unlink(missing_ok=True)
      try:
        opened.append(cohort.Trial(config, self.program(config), folder, self._watch))
      except Exception as error:
        self._failed(config, cohort.failure(error))
    return opened

  def program(self, config):
    """The Program of a configuration: made once, the last few kept."""
    from lepton_jax import assemble, other_runs, speed
    from lepton_jax.sweep import cohort
    key = config.program()
    if key in self._kept:
      self._kept[key] = self._kept.pop(key)  # the least used one is the first
    else:
      data = load_data(config.data, config.optimization.loss)
      if not data.size('validation'):
        raise UserError(
            f'{data.name} has no validation part to rank trials by; pass a --validation_fraction '
            f'above 0')
      assembly = assemble.build(config, data, **other_runs.read(config, data))
      calls = speed.calls_of(config, assembly)
      self._kept[key] = cohort.Program(assembly, self._lanes, calls)
      self.compiled.add(key)
      if len(self._kept) > KEPT:
        del self._kept[next(iter(self._kept))]
    return self._kept[key]

  def _train(self, together, stop):
    """Trains trials that stand at one step, then writes what came of them."""
    from lepton_jax.sweep import cohort
    from lepton_jax.train import loop
    try:
      # An interrupted cohort is saved; whoever waits for all devices sees the signal as well.
      with contextlib.suppress(loop.Interrupted):
        cohort.train(together[0].program, together, stop)
    except Exception as error:
      for trial in together:
        if not trial.over:  # what came to its end before has its result
          trial.failed = cohort.failure(error)
    for trial in together:
      try:
        trial.close()
      except Exception as error:
        trial.failed = cohort.failure(error)
      if trial.failed is not None:
        self._failed(trial.config, trial.failed)
      elif trial.given_up:
        (outcomes.folder_of(trial.config) / outcomes.GIVEN_UP).write_text('')
      elif trial.result is not None:
        self.trained += 1
        self._tell(line(trial.config, trial.result))

  def _failed(self, config, failed):
    self._tell(note_failure(config, failed))


def note_failure(config, failed):
  """Writes the cohort.Failed of a trial into its run folder; returns a line that says so."""
  folder = outcomes.folder_of(config)
  # The trial may have failed before it was opened.
  files.write_atomically(folder / 'config.json', config.to_keep().to_json())
  outcomes.note_failure(config, **failed._asdict())
  return f'{config.name()}  failed: {failed.error.splitlines()[0]}'


_loading = threading.Lock()


def load_data(options, loss):
  """A data set, kept while trials in a row read it.

  It is loaded once where the threads of several devices ask together.
  """
  with _loading:
    return _loaded(options, loss)


@functools.lru_cache(maxsize=2)
def _loaded(options, loss):
  from lepton_jax.data import dataset
  return dataset.load(options, loss)


def line(config, result):
  """One line of a finished trial."""
  measure = result['measure']
  return (f'{config.name()}  validation {measure} {result[f"validation_{measure}"]:.4f}  '
          f'{result["train_seconds"]:.1f} s')


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
