"""How a run is spread over devices and cut into calls, where the user leaves it to us.

`./launch.sh benchmark` measures what each choice is worth.
"""

import jax

from lepton_jax import trees
from lepton_jax.errors import UserError
from lepton_jax.layers import platform

AUTO = 'auto'


def devices(mode, asked, batch_size, backend):
  """(mode, number of devices, 0 for all) of a run.

  Under 'auto' several processes and several accelerators share the batch. On a CPU a run takes one
  device, whose convolutions and products use all cores.
  """
  if mode != AUTO:
    return mode, asked
  if jax.process_count() > 1:
    return 'sharded', asked
  split = 'pmap' if backend == 'cpu' else 'sharded'
  if asked:
    return (split, asked) if asked > 1 else ('jit', 0)
  count = 1 if backend == 'cpu' else jax.device_count()
  while count > 1 and batch_size % count:
    count -= 1
  return (split, count) if count > 1 else ('jit', 0)


def calls_of(config, assembly):
  """How many train steps one compiled call of a run makes."""
  library = platform.by_library(config.run.convolution, config.architecture.dtype)
  return steps_per_call(config.run.steps_per_call, assembly.state.params, assembly.batches,
                        jax.default_backend(), library)


def recurrent(params):
  """Whether a layer takes its own output of the step before."""
  return any(name.endswith('recurrent/kernel') for name in trees.named(params))


def steps_per_call(asked, params, batches, backend, by_library=False):
  """How many train steps one compiled call makes.

  A small network's step is shorter than the handing over of its arrays, so several share a call.
  XLA's own convolutions run 5 to 40 times slower inside a scan on a CPU (jax issue 12868), those
  `by_library` do not. A recurrent step is long. Batches whose shapes change cannot be stacked. Of
  the numbers up to 32, 16 on accelerators, it is the one that makes an epoch of the fewest calls.
  Raises UserError if `asked` is neither 'auto' nor a positive number.
  """
  if asked != AUTO:
    if not asked.isdecimal() or int(asked) < 1:
      raise UserError(f'--steps_per_call={asked}: allowed are {AUTO} and whole numbers from 1')
    if int(asked) > 1 and not batches.same_shapes:
      raise UserError(
          f'--steps_per_call={asked}: batches of text come in several lengths, one step a call')
    return int(asked)
  if not batches.same_shapes:
    return 1
  kernels = {name: leaf for name, leaf in trees.named(params).items() if trees.is_kernel(name)}
  convolutions = any(leaf.ndim != 2 for leaf in kernels.values())
  if backend == 'cpu' and (recurrent(params) or convolutions and not by_library):
    return 1
  calls = lambda count: batches.steps_per_epoch // count + batches.steps_per_epoch % count
  most = min(32 if backend == 'cpu' else 16, batches.steps_per_epoch)
  return min(range(1, most + 1), key=lambda count: (calls(count), -count))
