"""A C++ function as an operation of JAX programs: jitted, mapped over lanes, split over devices."""

import functools

import jax
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from lepton_jax.layers.native import library


def operation(name, dimensions, shapes, combine=jax.lax.psum, **attributes):
  """A function of arrays that calls the C++ function `name`; returns a tuple of arrays.

  Args:
    dimensions: 'b h w i, r s j o -> b y x o' names each dimension of the arguments and results.
      Those that begin with b are rows of a batch, which devices may share. Results that do not have
      them combine what each device found in its rows.
    shapes: (arguments) -> a tuple of the results' shapes.
    combine: (results, mesh axes) -> results over all rows.
    attributes: numbers and tuples of numbers that the C++ function reads by name.

  Under vmap the C++ function gets leading axes on all arrays. There is no derivative; callers
  define one.
  """
  inputs, outputs = ([part.split() for part in side.split(',')] for side in dimensions.split('->'))

  def local(*arrays):
    results = [jax.ShapeDtypeStruct(shape, arrays[0].dtype) for shape in shapes(*arrays)]
    numbers = {key: _number(value) for key, value in attributes.items()}
    function = jax.ffi.ffi_call(_target(name), results, vmap_method='broadcast_all')
    return tuple(function(*arrays, **numbers))

  def partition(mesh, arguments, results):
    axes = {}  # of the mesh, by dimension
    for names, array in zip(inputs, arguments):
      for dimension, axis in zip(names, array.sharding.spec):
        if axis is not None and dimension.startswith('b'):
          axes.setdefault(dimension, axis)
    sharded = lambda names: NamedSharding(mesh, PartitionSpec(*(axes.get(n) for n in names)))
    summed = tuple(axis for dimension, axis in axes.items() if dimension not in outputs[0])

    def lower(*arrays):
      found = local(*arrays)
      return combine(found, summed) if summed else found

    return mesh, lower, tuple(map(sharded, outputs)), tuple(map(sharded, inputs))

  split = custom_partitioning(local)
  factors = list(dict.fromkeys(dimension for names in (*inputs, *outputs) for dimension in names))
  missing = [d for d in factors if d.startswith('b') and d not in outputs[0]]
  split.def_partition(partition, sharding_rule=dimensions, reduction_factors=tuple(missing),
                      need_replication_factors=tuple(d for d in factors if not d.startswith('b')))
  mapped = jax.custom_batching.custom_vmap(split)

  @mapped.def_vmap
  def _(size, batched, *arrays):
    del size
    results = jax.vmap(local, tuple(0 if one else None for one in batched))(*arrays)
    return results, (True,) * len(results)

  return mapped


def _number(value):
  """As the C++ side reads it: a 64-bit number or an array of those."""
  return np.int64(value) if np.ndim(value) == 0 else np.array(value, np.int64)


@functools.cache
def _target(name):
  """XLA's name of the C++ function.

  Each new library has a new name, because compiled programs are kept.
  """
  opened = library.opened()
  target = f'lepton_{name}_{opened.digest}'
  capsule = jax.ffi.pycapsule(getattr(opened.functions, name))
  jax.ffi.register_ffi_target(target, capsule, platform='cpu')
  return target
