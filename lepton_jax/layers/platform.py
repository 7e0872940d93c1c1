"""The one place that says which form of a layer's compute runs: on a CPU our own, elsewhere XLA's plain one.

Convolutions, pools and sums over positions have both; the plain one is the reference that tests compare with.
What was measured for a CPU says nothing about a GPU or a TPU, whose compilers are made for the plain forms.
"""

import jax


def own_forms():
  """Whether layers use the forms made for a CPU."""
  return jax.default_backend() == 'cpu'
