"""How long a sweep will take, from a few steps of each of its networks."""

import time

from lepton_jax import config as config_lib
from lepton_jax import outcomes
from lepton_jax.errors import UserError
from lepton_jax.sweep import trials
from lepton_jax.sweep.session import Session

# Fields that tell the time of a step apart, or the number of steps; all others are taken not to.
CONCERNS, SINGLE = ('architecture', 'data', 'quantize'), ('r_drop', 'sam')
TRIAL = 0.3  # seconds to open and close a run folder
EVALUATION = 1.1  # a tenth of the examples is evaluated after an epoch


def estimate(configs, executor, workers):
  """Seconds; those of trials that are finished already are left out."""
  from lepton_jax import machine
  probes, total = {}, 0.0
  at_once = 1 if executor == 'inline' else workers or machine.cores()
  for group in trials.programs([config for config in configs if outcomes.finished(config) is None]):
    kind = tuple((name, value) for name, value in group[0].program()
                 if name in SINGLE or config_lib.FIELDS[name][0] in CONCERNS)
    if kind not in probes:
      try:
        probes[kind] = probe(group[0])
      except UserError as error:
        print(f'{group[0].name()} will fail: {error}')
        continue
    compiling, step, steps_per_epoch = probes[kind]
    total += compiling * min(at_once, len(group))
    epochs = [config.training.epochs for config in group]
    total += sum(TRIAL + step * EVALUATION * steps_per_epoch * count for count in epochs)
  return total / at_once


def probe(config):
  """(seconds to build and compile, seconds a step, steps an epoch) of one trial's network."""
  import jax
  import numpy as np

  from lepton_jax.train import parallel
  session = Session(config.run, False, print)
  began = time.monotonic()
  program = session.workers[0].program(config)
  assembly = program.assembly(config)
  lane, count = (assembly.state, np.ones((), bool)), program.calls
  batch = assembly.batches.at(0)
  stacked = batch if count == 1 else parallel.stacked([batch] * count)
  lane, _ = jax.block_until_ready(program.steps[count](lane, stacked))
  compiling, calls = time.monotonic() - began, 0
  began = time.monotonic()
  while time.monotonic() - began < 1 or calls < 3:
    lane, _ = jax.block_until_ready(program.steps[count](lane, stacked))
    calls += 1
  return compiling, (time.monotonic() - began) / calls / count, assembly.batches.steps_per_epoch
