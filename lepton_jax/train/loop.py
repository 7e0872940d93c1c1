"""The training loop: steps, and after each epoch evaluation, best weights, a row, a checkpoint."""

import collections
import itertools
import math
import os
import signal
import threading
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

# Measurements are looked at this many steps late, so that the device always has work queued.
LAG = 2


class NotFinite(Exception):
  """A measurement became NaN or infinite; the message says which and when."""


class Interrupted(Exception):
  """SIGTERM or SIGINT arrived, and the state was saved; its text is the signal's name."""

  @property
  def status(self):
    """The exit status of a process that a signal ended, as shells have it."""
    return 128 + signal.Signals[str(self)]


class StopSignal:
  """A context where SIGTERM and SIGINT only set `arrived`; a second SIGINT interrupts at once."""

  def __init__(self):
    self.arrived = None

  def __enter__(self):
    self._before = {}
    if threading.current_thread() is threading.main_thread():
      self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
    return self

  def _note(self, number, frame):
    del frame
    if self.arrived is not None and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.arrived = signal.Signals(number).name

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def asked(self):
    """What arrived, or None; the question that is put before each call of the train step."""
    return self.arrived


class AgreedStop(StopSignal):
  """A StopSignal of several processes, each of which trains the same steps.

  A SIGTERM to one of them stops all before the same call: JAX's own handler of the signal tells the
  others and agrees with them on the call (jax.experimental.multihost_utils). So SIGTERM is left to
  it, and Ctrl-C becomes one.
  """

  _calls = itertools.count(1)  # all that this process ever made: JAX counts them too

  def __enter__(self):
    self._before = {signal.SIGINT: signal.signal(signal.SIGINT, self._pass_on)}
    return self

  def _pass_on(self, number, frame):
    signal.signal(signal.SIGINT, self._before[signal.SIGINT])  # the second one interrupts at once
    os.kill(os.getpid(), signal.SIGTERM)

  def asked(self):
    if multihost_utils.reached_preemption_sync_point(next(AgreedStop._calls)):
      self.arrived = 'SIGTERM'
    return self.arrived


class Hook(typing.NamedTuple):
  """A change of the state before some steps: `change(state, step) -> state` where `due(step)`."""
  due: typing.Callable
  change: typing.Callable

  def __call__(self, state, step):
    return self.change(state, step) if self.due(step) else state


def steps_at_once(step, count, total_steps, steps_per_epoch, hooks):
  """`count` where so many steps from `step` on can be one call, else 1.

  Calls begin at multiples of `count` within an epoch, whatever happened before, so a resumed run
  makes the calls that an uninterrupted one makes.
  """
  place = step % steps_per_epoch
  fits = place % count == 0 and place + count <= steps_per_epoch and step + count <= total_steps
  if fits and not any(hook.due(step + i) for hook in hooks for i in range(1, count)):
    return count
  return 1


def fault(first, measured, steps_per_epoch):
  """Says which measurements are NaN or infinite at the first step where any is, or returns None.

  `measured` is {name: f32[steps]}, of the steps from `first` on.
  """
  for i in range(len(measured['loss'])):
    bad = [f'{name} = {float(values[i])}' for name, values in measured.items()
           if not np.isfinite(values[i])]
    if bad:
      epoch = (first + i) // steps_per_epoch + 1
      return f'{", ".join(bad)} at step {first + i} (epoch {epoch})'
  return None


def fit(state, *, step_fns, batch_at, batch_size, total_steps, steps_per_epoch, hooks, evaluate,
        selectable_from, patience, save, save_every, record, progress, describe=lambda state: {},
        stop=None):
  """Trains to `total_steps` or until patience runs out; returns the last state.

  Everything that decides what happens next is in `state`, so continuing from any saved state gives
  the same result as never having stopped.

  Args:
    state: a TrainState; its step says where to begin.
    step_fns: {1: (state, batch) -> (state, measurements), n: (state, n batches) -> (state, n
      measurements each)}, compiled; n is how many steps are made in one call where nothing else
      comes between.
    batch_at: (step, how many) -> batch or batches, on the device; batch_size is for the rate that
      rows report.
    hooks: each a Hook, called before the step, in order.
    evaluate: state -> {measurement: float} on validation; {} without validation examples. 'score'
      ranks (higher is better, then lower 'loss').
    selectable_from: first step whose weights may be the best (before it, pruning is under way).
    patience: epochs without a new best before stopping; 0 never stops.
    save: state -> None, writes a checkpoint.
    save_every: epochs between checkpoints; 0: only when stopped.
    record, progress: see record.py.
    describe: state -> {name: float}, more for each row.
    stop: a StopSignal, or None.

  Raises:
    NotFinite: a loss or gradient became NaN or infinite.
    Interrupted: after saving, when `stop` was asked for.
  """
  work = _One(state, step_fns, batch_at, hooks, progress, steps_per_epoch)
  step, clock = int(state.step), time.monotonic()
  earlier = record.rows[-1]['seconds'] if record.rows else 0.0
  over = bool(patience) and int(state.stale) >= patience
  while step < total_steps and not over:
    end = min((step // steps_per_epoch + 1) * steps_per_epoch, total_steps)
    step = advance(work, step, end, total_steps, steps_per_epoch, max(step_fns), stop)
    if step == end:
      epoch = -(-step // steps_per_epoch)
      rate = work.rate(step) * batch_size
      work.state, row = end_epoch(work.state, step - 1, epoch, evaluate, step >= selectable_from,
                                  describe)
      row.update(examples_per_second=rate or None, seconds=earlier + time.monotonic() - clock)
      record.add(row)
      progress.line(format_row(row))
      over = bool(patience) and int(work.state.stale) >= patience
      if save_every and (epoch % save_every == 0 or over or step == total_steps):
        save(work.state)
      if over:
        progress.line(f'no better validation for {patience} epochs: stopping')
      work.start_clock(step)
    if stop is not None and stop.arrived and step < total_steps and not over:
      save(work.state)
      raise Interrupted(stop.arrived)
  return work.state


class _One:
  """The work of a single run, for `advance`."""

  def __init__(self, state, step_fns, batch_at, hooks, progress, steps_per_epoch):
    self.state, self.hooks, self._progress = state, hooks, progress
    self._step_fns, self._batch_at, self._steps_per_epoch = step_fns, batch_at, steps_per_epoch
    self._compiled = False
    self.start_clock(int(state.step))

  def start_clock(self, step):
    self._began, self._since = time.monotonic(), step

  def rate(self, step):
    """Steps a second since the clock was started."""
    return (step - self._since) / (time.monotonic() - self._began)

  def change(self, step):
    for hook in self.hooks:
      self.state = hook(self.state, step)

  def make(self, step, count):
    self.state, measured = self._step_fns[count](self.state, self._batch_at(step, count))
    if not self._compiled:  # the first call compiles
      jax.block_until_ready(self.state.step)
      self._compiled = True
      self.start_clock(step + count)
    return measured

  def look(self, first, measured):
    measured = {name: np.atleast_1d(m) for name, m in jax.device_get(measured).items()}
    if found := fault(first, measured, self._steps_per_epoch):
      raise NotFinite(found)
    self._progress.step(first + len(measured['loss']), float(measured['loss'][-1]))


def advance(work, step, end, total_steps, steps_per_epoch, calls, stop):
  """Trains from `step` to `end`, within an epoch, or to a stop; returns the step that is reached.

  Args:
    work: has `hooks`; `change(step)` runs those that are due, `make(step, count)` makes steps in
      one call and returns their measurements, on the device, and `look(step, measurements)` checks
      them, `LAG` calls later.
    calls: how many steps are made in one call where nothing comes between.
  """
  pending = collections.deque()
  while step < end and not (stop and stop.asked()):
    work.change(step)
    count = steps_at_once(step, calls, total_steps, steps_per_epoch, work.hooks)
    pending.append((step, work.make(step, count)))
    step += count
    while len(pending) > LAG:
      work.look(*pending.popleft())
  while pending:
    work.look(*pending.popleft())
  return step


def end_epoch(state, step, epoch, evaluate, selectable, describe):
  """Evaluates the state after the last `step` of an epoch; returns (state, row).

  The returned state has the best weights so far, and its totals are zero. Raises NotFinite if the
  validation loss is NaN or infinite.
  """
  totals = {name: float(total) for name, total in jax.device_get(state.totals).items()}
  validation = evaluate(state)
  if validation and not math.isfinite(validation['loss']):
    raise NotFinite(f'validation loss = {validation["loss"]} after step {step} (epoch {epoch})')
  state = track_best(state, validation, selectable)
  steps = totals.pop('steps')
  means = {f'train_{name}': total / steps for name, total in totals.items()}
  measured = {f'validation_{name}': value for name, value in validation.items() if name != 'score'}
  row = dict(epoch=epoch, step=step + 1, **means, **measured, **describe(state))
  return state.replace(totals=jax.tree.map(jnp.zeros_like, state.totals)), row


def track_best(state, validation, selectable):
  """The state with `best` and `stale` updated after an epoch's validation ({}: nothing to rank)."""
  if not validation or not selectable or not state.best:
    return state
  best = jax.device_get({k: state.best[k] for k in ('score', 'loss')})
  new = {k: np.float32(validation[k]) for k in ('score', 'loss')}
  if (new['score'], -new['loss']) > (best['score'], -best['loss']):
    fresh = {k: jnp.full_like(state.best[k], new[k]) for k in new}
    fresh.update(step=jnp.copy(state.step), weights=jax.tree.map(jnp.copy, state.evaluated))
    return state.replace(best=fresh, stale=jnp.zeros_like(state.stale))
  return state.replace(stale=state.stale + 1)


def format_row(row):
  """One line of an epoch for people."""
  parts = [f'epoch {row["epoch"]:>3}', f'step {row["step"]:>6}', f'loss {row["train_loss"]:.4f}']
  for name in ('validation_loss', 'validation_accuracy', 'validation_rmse', 'sparsity'):
    if name in row:
      parts.append(f'{name.replace("_", " ")} {row[name]:.4f}')
  return '  '.join([*parts, f'{row["seconds"]:.1f} s'])
