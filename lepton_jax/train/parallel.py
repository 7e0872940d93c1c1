"""One pure step on one device or on many: jit, jit over sharded batches, or pmap."""

import typing

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lepton_jax.errors import UserError

AXIS = 'data'


class Parallel(typing.NamedTuple):
  """How a run is laid out.

  Attributes:
    devices: how many share a batch.
    axis: name of the device axis that the step must average over, or None (pmap only).
    rows: the slice of a global batch that this process feeds.
    step: compiles `(state, batch) -> (state, measurements)`, or with a count above 1 so many of
      them in one program, `(state, batches) -> (state, measurements [count] each)`; the old state
      is given up.
    predict: compiles `(state, batch) -> outputs[batch, ...]`, whole on every process.
    put_state, put_batch, put_examples: move host arrays to where `step` and `predict` want them.
    put_batches: a list of batches as the array of each that a step of many takes.
  """
  devices: int
  axis: str | None
  rows: slice
  step: typing.Callable
  predict: typing.Callable
  put_state: typing.Callable
  put_batch: typing.Callable
  put_examples: typing.Callable
  put_batches: typing.Callable


def repeated(function, count):
  """A step of `count` steps, scanned; the batches lie along a new leading axis."""
  return function if count == 1 else lambda state, batches: jax.lax.scan(function, state, batches)


def stacked(batches, axis=0):
  return jax.tree.map(lambda *arrays: np.stack(arrays, axis), *batches)


def make_parallel(mode, batch_size, devices=0):
  """The layout for `--parallel=mode` over `devices` devices (0: all, of all processes).

  `devices` may be a list of them instead, which are then not looked for among those that are here.
  Raises UserError if the batch does not divide by the devices, naming the nearest sizes that do.
  """
  if mode == 'jit':
    if devices > 1:
      raise UserError(
          f'--devices={devices}: --parallel=jit uses one; pass --parallel=sharded or pmap')
    if jax.process_count() > 1:
      raise UserError(
          '--parallel=jit uses one device of one process; with several processes pass '
          '--parallel=sharded or pmap')
    put = jax.device_put  # to the default device

    def step(function, count=1):
      return jax.jit(repeated(function, count), donate_argnums=0)

    put_many = lambda batches: put(stacked(batches))
    return Parallel(1, None, slice(None), step, jax.jit, put, put, put, put_many)
  chosen = choose(devices)
  local = sum(d.process_index == jax.process_index() for d in chosen)
  check_divides(batch_size, len(chosen))
  mesh = jax.sharding.Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))
  whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
  share = batch_size // jax.process_count()
  rows = slice(jax.process_index() * share, (jax.process_index() + 1) * share)

  def places(state):  # whole on each device, but rows that running text carries: with its examples
    carried = lambda path: mode == 'sharded' and any(getattr(k, 'key', '') == 'carry' for k in path)
    return jax.tree_util.tree_map_with_path(lambda path, _: split if carried(path) else whole,
                                            state)

  def put_state(state):  # from every process's own copy, so that arrays span processes
    put = lambda x, at: jax.make_array_from_callback(x.shape, at, np.asarray(x).__getitem__)
    return jax.tree.map(put, state, places(state))

  def put_sharded(batch):
    put = lambda x: jax.make_array_from_process_local_data(split, np.asarray(x))
    return jax.tree.map(put, batch)

  def put_sharded_many(batches):
    many = NamedSharding(mesh, PartitionSpec(None, AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(many, x), stacked(batches))

  def put_stacked(batch):
    return jax.tree.map(lambda x: np.asarray(x).reshape(local, -1, *x.shape[1:]), batch)

  def put_stacked_many(batches):
    return stacked([put_stacked(batch) for batch in batches], axis=1)

  def predict(function):
    compiled = jax.jit(function, out_shardings=whole)
    if jax.default_backend() != 'cpu':
      return compiled
    # XLA's CPU threads are as many as cores, and a program that waits for another device keeps its
    # thread. Several calls that do not depend on each other, as train steps do, could take all of
    # them and wait for ever.
    return lambda *arguments: jax.block_until_ready(compiled(*arguments))

  if mode == 'sharded':
    def step(function, count=1):
      function = repeated(function, count)

      def placed(state, batch):
        state, measured = function(state, batch)
        put = jax.lax.with_sharding_constraint
        return put(state, places(state)), put(measured, whole)

      return jax.jit(placed, donate_argnums=0)

    return Parallel(len(chosen), None, rows, step, predict, put_state, put_sharded, put_sharded,
                    put_sharded_many)

  # With several processes pmap's result is each process's own; this makes one array over all of the
  # same buffers.
  def span(array):
    shards = [shard.data for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, whole, shards)

  # State goes in and comes out whole, so it never needs replicating or picking apart.
  def step(function, count=1):
    function = repeated(function, count)
    if jax.process_count() == 1:
      return jax.pmap(function, AXIS, in_axes=(None, 0), out_axes=None, devices=chosen,
                      donate_argnums=0)
    mapped = jax.pmap(function, AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0)
    return lambda state, batch: jax.tree.map(span, mapped(state, batch))

  return Parallel(len(chosen), AXIS, rows, step, predict, put_state, put_stacked, put_sharded,
                  put_stacked_many)


def choose(devices):
  """So many devices, 0: all. Raises UserError where there are fewer."""
  if isinstance(devices, list):
    return devices
  present = len(jax.devices())
  if devices > present or (devices and jax.process_count() > 1 and devices != present):
    raise UserError(
        f'--devices={devices}: there are {present}; with several processes all are used. '
        'On a CPU, --cpu_devices makes more')
  return jax.devices()[:devices] if devices else jax.devices()


def check_divides(batch_size, devices):
  """Raises UserError unless every device gets the same number of examples."""
  if batch_size % devices:
    below = batch_size // devices * devices
    near = f'{below} or {below + devices}' if below else f'{devices} or {2 * devices}'
    raise UserError(
        f'--batch_size={batch_size} does not divide by {devices} devices; the nearest sizes that '
        f'do: {near}')
