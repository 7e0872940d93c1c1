"""Our own training step and prediction, as a run makes them, on made-up data."""

import collections
import functools
import time
import types

import jax
import jax.numpy as jnp
import numpy as np

from experiments.peers import race
from lepton_jax import assemble, machine, speed
from lepton_jax.config import Config
from lepton_jax.data.dataset import Dataset
from lepton_jax.layers import platform
from lepton_jax.layers.product import product
from lepton_jax.train import loop, parallel


def made_up(inputs, label, classes, words=()):
  """The Dataset of one batch, which is all of its parts."""
  channels, part = inputs.shape[-1] if inputs.ndim == 4 else 1, (inputs, label)
  return Dataset('made up', '', dict(train=part, validation=part, test=part),
                 tuple(map(str, range(classes))), (), np.zeros(channels, np.float32),
                 np.ones(channels, np.float32), vocabulary=words)


class Contestant:
  """Trains or predicts with one registered network on `devices` devices.

  A compiled call takes `calls` steps of one trial, or a step of each of `trials` in one program.
  """

  def __init__(self, name, inputs, label, devices=1, calls=1, trials=1, dtype='float32'):
    words = tuple(map(str, range(10_000))) if inputs.ndim == 2 else ()
    config = Config().replace(model=name, dtype=dtype, batch_size=len(inputs), devices=devices,
                              select='last', buckets=1, schedule='constant',
                              compilation_cache='off')
    machine.start(config.run)
    assembly = assemble.build(config, made_up(inputs, label, 2 if words else 10, words))
    backend = jax.default_backend()
    mode, count = speed.devices(speed.AUTO, devices, len(inputs), backend)
    self._dtype, self._count = dtype, max(1, count)
    self._recurrent = speed.recurrent(assembly.state.params)
    self._auto_devices = max(1, speed.devices(speed.AUTO, 0, len(inputs), backend)[1])
    layout = parallel.make_parallel(mode, len(inputs), count)
    self.parameters = sum(p.size for p in jax.tree.leaves(assembly.state.params))
    # These data are one batch; what auto takes is asked for an epoch of usual length.
    long = types.SimpleNamespace(same_shapes=assembly.batches.same_shapes, steps_per_epoch=960)
    library = platform.by_library(config.run.convolution, dtype)
    self._auto_calls = speed.steps_per_call(speed.AUTO, assembly.state.params, long, backend,
                                            library)
    state, step = assembly.state, assembly.train_step(layout.axis)
    batch = dict(inputs=inputs, label=label, example=np.arange(len(inputs), dtype=np.int32))
    if trials > 1:
      step = jax.vmap(step)
      state, batch = jax.tree.map(lambda a: jnp.broadcast_to(a, (trials, *a.shape)), (state, batch))
    self._state, self._calls = layout.put_state(state), calls
    self._step = layout.step(step, calls)
    self._batch = layout.put_batch(batch) if calls == 1 else layout.put_batches([batch] * calls)
    weights, hparams = jax.device_get((assembly.state.evaluated, assembly.state.hparams))
    self._forward = {}  # one example on one device, a batch spread as a run spreads it
    for size, place in ((1, parallel.make_parallel('jit', 1)), (len(inputs), layout)):
      arguments = (place.put_state(weights), place.put_examples(inputs[:size]),
                   place.put_state(hparams))
      self._forward[size] = functools.partial(place.predict(assembly.network.predict), *arguments)
    began = time.perf_counter()
    self.train(calls)
    self.compile_seconds = time.perf_counter() - began

  def facts(self):
    """What the table says beside the times."""
    return dict(version=jax.__version__, device=jax.devices()[0].device_kind,
                devices=jax.device_count(), auto=(self._auto_devices, self._auto_calls))

  def traffic(self):
    """Bytes that a step reads and writes by XLA's own count, or None for a recurrence.

    XLA counts what a loop does once. That is right for steps in one call, not for a recurrence.
    """
    if self._recurrent:
      return None
    cost = self._step.lower(self._state, self._batch).compile().cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)['bytes accessed'] * self._count

  def peaks(self):
    """The machine's limits: (FLOP a second, bytes a second).

    They are those of the largest matrix product here and of a sum of two large arrays.
    """
    size, length = (2048, 2 ** 25) if jax.default_backend() == 'cpu' else (8192, 2 ** 29)
    matrix = jax.random.normal(jax.random.key(0), (size, size), self._dtype)
    array = jnp.ones(length)
    return (2 * size ** 3 / quickest(lambda a: product(a, a), matrix),
            2 * array.nbytes / quickest(lambda a: a + 1, array))

  def train(self, steps):
    """Takes at least so many steps, in whole calls, and waits for the last; returns how many.

    It goes as few steps ahead as a run does.
    """
    calls, pending = -(-steps // self._calls), collections.deque()
    for _ in range(calls):
      self._state, measured = self._step(self._state, self._batch)
      pending.append(measured)
      if len(pending) > loop.LAG:
        jax.block_until_ready(pending.popleft())
    jax.block_until_ready(list(pending))
    return calls * self._calls

  def device_memory(self):
    return race.jax_device_memory()

  def predict(self, passes, batch):
    """So many forward passes over the first `batch` examples: one, or all of them."""
    for _ in range(passes):
      answer = self._forward[batch]()
    answer.block_until_ready()


def quickest(function, argument, times=8):
  """Least seconds of a compiled call."""
  compiled, found = jax.jit(function), []
  for _ in range(times + 1):
    began = time.perf_counter()
    compiled(argument).block_until_ready()
    found.append(time.perf_counter() - began)
  return min(found[1:])
