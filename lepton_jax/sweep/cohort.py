"""Trials of one program, trained side by side in the lanes of one device.

A CPU has one lane, an accelerator several.
"""

import time
import traceback
import typing

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lepton_jax import evaluation, finish, run
from lepton_jax import strengths as strengths_lib
from lepton_jax.train import loop, parallel
from lepton_jax.train import record as record_lib


def freezing(step):
  """A step of ((state, active), batch): a lane that is not `active`, as after a NaN, stays."""
  def advance(lane, batch):
    state, active = lane
    new, measured = step(state, batch)
    active &= jnp.all(jnp.stack([jnp.isfinite(m) for m in jax.tree.leaves(measured)]))
    kept = jax.tree.map(lambda mine, old: jnp.where(active, mine, old), new, state)
    return (kept, active), measured

  return advance


def carrying(step):
  """The same of a lane that is alone: training ends where it fails."""
  def advance(lane, batch):
    new, measured = step(lane[0], batch)
    return (new, lane[1]), measured

  return advance


class Failed(typing.NamedTuple):
  """Why a trial came to no result; it has a traceback where that was not the training itself."""
  error: str
  traceback: str


class Program:
  """The compiled functions that all trials with one `config.program()` share on one device.

  Attributes:
    lanes: how many trials train at once.
    assembly: config -> the Assembly of one of the trials.
    steps: {count: ((state, active), batch) -> ((state, active), measurements)} for the steps that a
      call makes; with several lanes every array has a leading axis of them.
  """

  def __init__(self, assembly, lanes, calls):
    self.assembly, self.lanes, self.calls = assembly.another, lanes, calls
    self.layout = parallel.make_parallel('jit', assembly.config.data.batch_size)
    step = assembly.train_step()
    # A lane that is alone needs no freezing, and is then the very program of a single run.
    step = freezing(step) if lanes > 1 else carrying(step)
    spread = jax.vmap if lanes > 1 else lambda function: function
    self.steps = {count: jax.jit(spread(parallel.repeated(step, count)), donate_argnums=0)
                  for count in {1, calls}}
    self.predict = evaluation.predictor(assembly.network, assembly.dataset, self.layout)

  def stack(self, trees):
    """One tree of the lanes' `trees`, for `steps`; lanes that are left over repeat the first."""
    if self.lanes == 1:
      return trees[0]
    trees = [*trees, *trees[:1] * (self.lanes - len(trees))]
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)

  def unstack(self, tree, count):
    """The first `count` lanes of a tree, as trees."""
    if self.lanes == 1:
      return [tree]
    tree = jax.device_get(tree)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]


class Trial:
  """One run folder, open as a lane.

  `watch`, if there is one, is called with the configuration and the row of each epoch; True gives
  the trial up.
  """

  def __init__(self, config, program, folder, watch=None):
    self._watch, self.given_up = watch, False
    self.config, self.folder, self.program = config, epath.Path(folder), program
    self.assembly = program.assembly(config)
    run.open_folder(config, self.folder, self.assembly.dataset)
    self.state, self._checkpoints = run.resume(self.assembly, program.layout, self.folder,
                                               config.run.keep_checkpoints, lambda text: None)
    network, data = self.assembly.network, self.assembly.dataset
    self._meter = evaluation.Meter(network, data, program.layout,
                                   strengths_lib.strengths(config, network.compression),
                                   program.predict)
    self.hooks = self.assembly.make_hooks(program.layout.put_examples, slice(None), jax.jit)
    self._record = record_lib.Record(self.folder, int(self.state.step), config.run.tensorboard)
    self._earlier = self._record.rows[-1]['seconds'] if self._record.rows else 0.0
    self._began = time.monotonic()
    self.result = self.failed = None

  @property
  def over(self):
    """Whether nothing is left to train."""
    patience = self.config.training.patience
    if patience and int(self.state.stale) >= patience:
      return True
    ended = int(self.state.step) >= self.assembly.total_steps
    return ended or self.failed is not None or self.given_up

  def _validation(self, state):
    weights = self.program.layout.put_state(state.evaluated)
    return self._meter(weights, 'validation')

  def end_epoch(self, began):
    """What a single run does after an epoch, which began at the time `began`."""
    steps, step = self.assembly.batches.steps_per_epoch, int(self.state.step)
    took = time.monotonic() - began
    self.state, row = loop.end_epoch(
        self.state, step - 1, step // steps, self._validation,
        step >= self.assembly.selectable_from,
        lambda s: self.assembly.network.compression.describe(s.params, s.held))
    row.update(examples_per_second=steps * self.config.data.batch_size / took,
               seconds=self._earlier + time.monotonic() - self._began)
    self._record.add(row)
    self.given_up = self._watch is not None and not self.over and self._watch(self.config, row)
    every = self.config.run.checkpoint_every
    if every and (step // steps % every == 0 or self.over):
      self.save()

  def save(self):
    """Writes a checkpoint."""
    self._checkpoints.save(int(self.state.step), self.state)

  def close(self):
    """Writes the result, if the training came to its end."""
    self._record.close()
    self._checkpoints.close()
    if self.failed is None and self.over and not self.given_up:
      elapsed = time.monotonic() - self._began
      state = self.program.layout.put_state(self.state)
      self.result = finish.finish(self.config, self.assembly, self.folder, state,
                                   self._record.rows, elapsed, self._meter)
      if not self.config.run.checkpoint_every and (self.folder / 'checkpoints').exists():
        (self.folder / 'checkpoints').rmtree()  # of a stop; nobody asked for them


class Lanes:
  """The states of trials that stand at one step, side by side on the device while they train.

  It is the work of loop.advance. Until `settle` the states of the trials themselves are out of
  date.

  Attributes:
    faults: {lane: its first fault}.
  """

  def __init__(self, program, live):
    self._program, self._live, self._stacked, self.faults = program, live, None, {}
    self.hooks = [hook for trial in live for hook in trial.hooks]

  def change(self, step):
    """Runs the hooks that are due before a step."""
    if any(hook.due(step) for hook in self.hooks):
      self.settle()
      for trial in self._live:
        for hook in trial.hooks:
          trial.state = hook(trial.state, step)

  def make(self, step, count):
    """Trains `count` steps in one call; returns their measurements, on the device."""
    if self._stacked is None:
      lanes = [(trial.state, np.ones((), bool)) for trial in self._live]
      self._stacked = self._program.stack(lanes)
    batch = self._program.stack([batches(trial, step, count) for trial in self._live])
    batch = self._program.layout.put_batch(batch)
    self._stacked, measured = self._program.steps[count](self._stacked, batch)
    return measured

  def look(self, first, measured):
    """Notes the first fault of each lane."""
    steps_per_epoch = self._live[0].assembly.batches.steps_per_epoch
    for i, values in enumerate(self._program.unstack(jax.device_get(measured), len(self._live))):
      values = {name: np.atleast_1d(value) for name, value in values.items()}
      if found := loop.fault(first, values, steps_per_epoch):
        self.faults.setdefault(i, found)

  def settle(self):
    """Brings the states back into their trials."""
    if self._stacked is not None:
      states = self._program.unstack(self._stacked[0], len(self._live))
      for trial, state in zip(self._live, states):
        trial.state = state
    self._stacked = None


def train(program, trials, stop=None):
  """Trains the trials, which stand at the same step, to their ends.

  Each then has a `result` or has `failed`. Raises loop.Interrupted, after saving, when `stop` was
  asked for.
  """
  live = [t for t in trials if not t.over]
  steps_per_epoch = trials[0].assembly.batches.steps_per_epoch
  while live and not (stop and stop.arrived):
    live = train_epoch(program, live, steps_per_epoch, stop)
  if stop and stop.arrived:
    for trial in live:
      trial.save()
    raise loop.Interrupted(stop.arrived)


def train_epoch(program, live, steps_per_epoch, stop):
  """Takes trials to the end of their epoch, or to a stop; returns those that have more to do."""
  step, began, lanes = int(live[0].state.step), time.monotonic(), Lanes(program, live)
  end, total = (step // steps_per_epoch + 1) * steps_per_epoch, live[0].assembly.total_steps
  step = loop.advance(lanes, step, end, total, steps_per_epoch, program.calls, stop)
  lanes.settle()
  for i, trial in enumerate(live):
    try:
      if i in lanes.faults:
        raise loop.NotFinite(lanes.faults[i])
      if step == end:
        trial.end_epoch(began)
    except Exception as error:
      trial.failed = failure(error)
  return [t for t in live if not t.over]


def batches(trial, step, count):
  """A lane's batch of a step, or the batches of several along a new leading axis."""
  found = [trial.assembly.batches.at(step + i) for i in range(count)]
  return found[0] if count == 1 else parallel.stacked(found)


def failure(error):
  """The Failed of an exception; training that diverged needs no traceback."""
  expected = isinstance(error, (loop.NotFinite, run.UserError))
  told = '' if expected else ''.join(traceback.format_exception(error))
  return Failed(str(error) or type(error).__name__, told)
