"""The methods of compression that a configuration asks for, in the order in which they act."""

from lepton_jax.compress import soft_sharing
from lepton_jax.compress.method import Compression
from lepton_jax.compress.prune import method as prune
from lepton_jax.compress.quantize import method as quantize

# Each (config, Setting) -> Method or None. What removes weights comes before what rounds them.
METHODS = (soft_sharing.make, prune.make, quantize.make)


def build(config, setting):
  """The Compression of a configuration."""
  made = (make(config, setting) for make in METHODS)
  return Compression(tuple(method for method in made if method is not None))
