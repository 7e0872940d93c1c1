"""Our own training step and prediction, as a run makes them, on made-up data."""

import collections
import time

import jax
import numpy as np

from lepton_jax import assemble, machine, speed
from lepton_jax.config import Config
from lepton_jax.data.dataset import Dataset
from lepton_jax.train import loop, parallel


class Contestant:
  """Trains or predicts with one registered network on `devices` devices, `calls` steps a compiled call."""

  def __init__(self, name, inputs, label, devices=1, calls=1, dtype='float32'):
    words = tuple(map(str, range(10_000))) if inputs.ndim == 2 else ()
    config = Config().replace(model=name, dtype=dtype, batch_size=len(inputs), devices=devices, select='last', buckets=1, schedule='constant')
    machine.start(config.run)
    channels = inputs.shape[-1] if inputs.ndim == 4 else 1
    classes = tuple(map(str, range(2 if words else 10)))
    part = (inputs, label)
    data = Dataset('made up', '', dict(train=part, validation=part, test=part), classes, (), np.zeros(channels, np.float32), np.ones(channels, np.float32),
                   vocabulary=words)
    assembly = assemble.build(config, data)
    backend = jax.default_backend()
    mode, count = speed.devices(speed.AUTO, devices, assembly.state.params, len(inputs), backend)
    self._auto_devices = max(1, speed.devices(speed.AUTO, 0, assembly.state.params, len(inputs), backend)[1])
    layout = parallel.make_parallel(mode, len(inputs), count)
    self.parameters = sum(p.size for p in jax.tree.leaves(assembly.state.params))
    self._state, self._calls = layout.put_state(assembly.state), calls
    self._auto_calls = speed.steps_per_call(speed.AUTO, assembly.state.params, assembly.batches.same_shapes, backend)
    self._step = layout.step(assembly.train_step(layout.axis), calls)
    batch = dict(inputs=inputs, label=label, example=np.arange(len(inputs), dtype=np.int32))
    self._batch = layout.put_batch(batch) if calls == 1 else layout.put_batches([batch] * calls)
    network = assembly.network
    self._predict = jax.jit(network.predict)
    self._weights, self._hparams, self._inputs = jax.device_get((assembly.state.evaluated, assembly.state.hparams, inputs))
    began = time.perf_counter()
    self.train(calls)
    self.compile_seconds = time.perf_counter() - began

  def facts(self):
    """What the table says beside the times."""
    return dict(version=jax.__version__, device=jax.devices()[0].device_kind, devices=jax.device_count(), auto=(self._auto_devices, self._auto_calls))

  def peak(self, size=2048):
    """FLOP a second of the largest matrix product here, the machine's limit."""
    matrix = jax.numpy.ones((size, size))
    product = jax.jit(lambda a: a @ a)
    times = []
    for _ in range(8):
      began = time.perf_counter()
      product(matrix).block_until_ready()
      times.append(time.perf_counter() - began)
    return 2 * size ** 3 / min(times)

  def train(self, steps):
    """Takes at least so many steps, in whole calls, as few ahead as a run has, and waits for the last; returns how many."""
    calls, pending = -(-steps // self._calls), collections.deque()
    for _ in range(calls):
      self._state, measured = self._step(self._state, self._batch)
      pending.append(measured)
      if len(pending) > loop.LAG:
        jax.block_until_ready(pending.popleft())
    jax.block_until_ready(list(pending))
    return calls * self._calls

  def predict(self, passes, batch):
    """So many forward passes over the first `batch` examples."""
    weights, x = jax.device_put((self._weights, self._inputs[:batch]))
    for _ in range(passes):
      answer = self._predict(weights, x, self._hparams)
    answer.block_until_ready()
