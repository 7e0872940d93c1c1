"""How a run is cut into calls, where the user leaves it to us; `./launch.sh benchmark` measures what each choice is worth."""

from lepton_jax import trees
from lepton_jax.errors import UserError

AUTO = 'auto'


def steps_per_call(asked, params, same_shapes, backend):
  """How many train steps one compiled call makes.

  A small network's step is shorter than the handing over of its arrays, so several share a call. On a
  CPU that holds for dense layers alone: convolutions inside a scan run 5 to 40 times slower there (jax
  issue 12868), and a recurrent step is long. Batches whose shapes change (`same_shapes` False) cannot be
  stacked. Raises UserError if `asked` is neither 'auto' nor a positive number.
  """
  if asked != AUTO:
    if not asked.isdecimal() or int(asked) < 1:
      raise UserError(f'--steps_per_call={asked}: allowed are {AUTO} and whole numbers from 1')
    if int(asked) > 1 and not same_shapes:
      raise UserError(f'--steps_per_call={asked}: batches of text come in several lengths, one step a call')
    return int(asked)
  if not same_shapes:
    return 1
  if backend != 'cpu':
    return 16
  kernels = {name: leaf for name, leaf in trees.named(params).items() if trees.is_kernel(name)}
  dense = all(leaf.ndim == 2 for leaf in kernels.values()) and not any(name.endswith('recurrent/kernel') for name in kernels)
  return 32 if dense else 1
