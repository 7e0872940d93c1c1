"""What the devices of a sharded train step send each other, read from the compiled program.

Nothing runs: a program for hundreds of devices is compiled for as many virtual ones of a CPU.
"""

import collections
import math
import re
import typing

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lepton_jax import assemble
from lepton_jax.layers import platform
from lepton_jax.train import parallel

KINDS = ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute', 'collective-broadcast',
         'reduce-scatter', 'ragged-all-to-all')
# '%name = f32[8,16]{1,0} all-gather(' or '%name = (f32[8]{0}, f32[]) all-reduce('.
OPERATION = re.compile(rf' = (\(.*?\)|\S+) ({"|".join(KINDS)})(-start)?\(')
ARRAY = re.compile(r'\b(pred|[a-z]+\d+)\[([\d,]*)\]')


class Collective(typing.NamedTuple):
  """One operation in which all devices take part.

  Attributes:
    kind: one of KINDS.
    sizes: bytes of each array that it leaves on each device.
  """
  kind: str
  sizes: tuple


def of_step(config, dataset, devices):
  """(the Collectives of a train step, the sizes in bytes of its parameters); as in `compiled`."""
  program, params = compiled(config, dataset, devices)
  sizes = tuple(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
  return collectives(program.as_text()), sizes


def compiled(config, dataset, devices):
  """(the compiled sharded train step, the shapes of its parameters).

  `config.data.batch_size` examples lie on each of the devices: so many of those that are here, or
  a list of those of a topology (jax.experimental.topologies) that is elsewhere. The forms of layers
  are those that run on GPUs and TPUs. Raises UserError where there are not so many devices.
  """
  if isinstance(devices, int):
    devices = parallel.choose(devices)
  count = len(devices)
  layout = parallel.make_parallel('sharded', count * config.data.batch_size, devices)
  with platform.using('portable'):
    assembly, state = _built(config, dataset)
    mesh = jax.sharding.Mesh(np.array(devices), (parallel.AXIS,), axis_types=(AxisType.Auto,))
    whole = lambda leaf: _placed(leaf, mesh, PartitionSpec())
    split = lambda leaf: _placed(leaf, mesh, PartitionSpec(parallel.AXIS), count)
    batch = jax.tree.map(split, assembly.batches.at(0))
    carry = state.model_state.get('carry', {})  # of running text: a row for each example
    state = jax.tree.map(whole, state)
    if carry:
      longer = jax.tree.map(split, carry)
      state = state.replace(model_state=dict(state.model_state, carry=longer))
    step = layout.step(assembly.train_step(layout.axis)).lower(state, batch)
  return step.compile(), state.params


def collectives(text):
  """The Collectives in the text of a compiled program.

  Raises ValueError for those whose bytes a step the text does not say: in a loop, or asynchronous.
  """
  found, inside = [], False
  for line in text.splitlines():
    inside = line.startswith('ENTRY') or inside and not line.startswith('}')
    operation = OPERATION.search(line)
    if operation is None:
      continue
    arrays, kind, asynchronous = operation.groups()
    if not inside or asynchronous:
      raise ValueError(f'a collective in a loop or a branch, or an asynchronous one, whose bytes a '
                       f'step are not known: {line.strip()[:200]}')
    found.append(Collective(kind, tuple(_bytes(*array) for array in ARRAY.findall(arrays))))
  return found


def summary(found, parameters):
  """What Collectives move in a step on each device, beside the sizes of the parameters.

  Returns all_reduces (their number), gradient_bytes (summed arrays of the sizes of parameters),
  summed_bytes (all other summed arrays: statistics of batch norm, the loss), others (kinds and
  numbers of operations that are not all-reduces) and other_bytes.
  """
  def total(sizes):
    return sum(size * count for size, count in sizes.items())

  reduces = [one for one in found if one.kind == 'all-reduce']
  rest = [one for one in found if one.kind != 'all-reduce']
  summed = collections.Counter(size for one in reduces for size in one.sizes)
  gradient = summed & collections.Counter(parameters)
  kinds = collections.Counter(one.kind for one in rest)
  return dict(all_reduces=len(reduces), gradient_bytes=total(gradient),
              summed_bytes=total(summed - gradient),
              others=', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items())),
              other_bytes=sum(sum(one.sizes) for one in rest))


def _built(config, dataset):
  """(the Assembly of a configuration, the shapes of its state), without a weight being drawn."""
  found = []

  def first_state():
    found.append(assemble.build(config, dataset))
    return found[0].state

  state = jax.eval_shape(first_state)
  return found[0], state


def _placed(leaf, mesh, spec, times=1):
  """The shape of an array on the mesh, its first axis so many times as long."""
  shape = leaf.shape if times == 1 else (times * leaf.shape[0], *leaf.shape[1:])
  return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=NamedSharding(mesh, spec))


def _bytes(dtype, shape):
  """Of an array 'f32[8,16]'; those of fewer bits than a byte take a whole one."""
  bits = re.search(r'\d+', dtype)
  width = max(1, int(bits.group()) // 8) if bits else 1
  return width * math.prod(int(size) for size in shape.split(',') if size)
