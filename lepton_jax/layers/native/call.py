"""A C++ function as an operation of JAX programs: jitted, mapped over lanes, split over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from lepton_jax.layers.native import library


def operation(name, dimensions, shapes, combine=jax.lax.psum, **attributes):
  """A function of arrays that calls the C++ function `name`; returns a tuple of arrays.

  Args:
    dimensions: 'b h w i, r s j o -> b y x o2' names each dimension of the arguments and results.
      Those that begin with b are rows of a batch, which devices may share. Results that do not have
      them combine what each device found in its rows. Other names that differ in a number alone
      have the same size.
    shapes: (arguments) -> a tuple of the results' shapes.
    combine: (results, mesh axes) -> results over all rows.
    attributes: numbers and tuples of numbers that the C++ function reads by name.

  Under vmap the C++ function gets leading axes on all arrays. There is no derivative; callers
  define one. Arrays whose shapes or dtypes do not fit raise TypeError.
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
          axes.setdefault(dimension, axis if isinstance(axis, tuple) else (axis,))
    sharded = lambda names: NamedSharding(mesh, PartitionSpec(*(axes.get(n) for n in names)))
    summed = sum((axis for dimension, axis in axes.items() if dimension not in outputs[0]), ())

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
    lanes = [array if one else jnp.broadcast_to(array, (size, *array.shape))
             for array, one in zip(arrays, batched)]
    # Devices may share lanes as well as rows.
    taken = {name for names in inputs for name in names}
    lane = next(f'b{i}lane' for i in range(99) if f'b{i}lane' not in taken)
    with_lane = ' -> '.join(', '.join(' '.join((lane, *names)) for names in side)
                            for side in (inputs, outputs))
    inner = lambda *arrays: tuple((size, *shape) for shape in shapes(
        *(jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for array in arrays)))
    results = operation(name, with_lane, inner, combine, **attributes)(*lanes)
    return results, (True,) * len(results)

  def checked(*arrays):
    _check(name, inputs, arrays)
    return mapped(*arrays)

  return checked


def _check(name, inputs, arrays):
  """Raises TypeError where arrays of unlike dtypes or sizes would be read beyond their ends."""
  told = f'{name}: {", ".join(f"{array.dtype}{list(array.shape)}" for array in arrays)}'
  if len({array.dtype for array in arrays}) > 1:
    raise TypeError(f'{told}: all have to be of one dtype')
  sizes = {}
  for names, array in zip(inputs, arrays, strict=True):
    if len(names) != array.ndim:
      raise TypeError(f'{told}: the dimensions are {" ".join(names)}')
    for dimension, size in zip(names, array.shape):
      same = dimension if dimension.startswith('b') else dimension.rstrip('0123456789')
      if sizes.setdefault(same, size) != size:
        raise TypeError(f'{told}: sizes of {same} differ')


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
