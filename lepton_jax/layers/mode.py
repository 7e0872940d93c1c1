"""What a layer may know about the training step it runs in."""

import flax.struct
import jax


@flax.struct.dataclass
class Training:
  """Passed to a model while training; evaluation passes None.

  Attributes:
    example: int32[batch], each example's position in the global batch, whichever device holds it.
    dropout: f32[] dropout rate, or None where there is none.
    recurrent_dropout: the same for the state of recurrent layers.
    stochastic_depth: the share of the last residual block's branches that is left out.
    axis: name of the device axis under pmap, over which batch statistics are averaged, or None.
  """
  example: jax.Array
  dropout: jax.Array | None = None
  recurrent_dropout: jax.Array | None = None
  stochastic_depth: jax.Array | None = None
  axis: str | None = flax.struct.field(pytree_node=False, default=None)
