"""The traced scalars of a run: one compiled program serves all their values but zero."""

import dataclasses
import inspect

import jax.numpy as jnp

from lepton_jax import config as config_lib
from lepton_jax import registry
from lepton_jax.precision import at_least_single

DROPOUTS = ('dropout', 'recurrent_dropout', 'stochastic_depth')


def strengths(config, compression):
  """{name: scalar or vector} of those that are not zero.

  A strength of 0 is absent here, and so from the program.
  """
  concerns = (config.optimization, config.regularize, config.augment, config.distill)
  values = {name: value for concern in concerns
            for name, value in dataclasses.asdict(concern).items()
            if config_lib.FIELDS[name][1].metadata['traced']}
  parameters = inspect.signature(registry.MODELS.get(config.architecture.model)).parameters
  for name in DROPOUTS:
    values[name] = getattr(config.architecture, name)
    if values[name] is None:
      values[name] = parameters[name].default if name in parameters else 0.0
  values |= compression.strengths(config)
  dtype = at_least_single(config.architecture.dtype)
  return {name: jnp.asarray(value, dtype) for name, value in values.items() if value}
