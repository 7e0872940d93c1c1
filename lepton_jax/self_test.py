"""A few train steps of two small networks on each device, against plain XLA's on the CPU."""

import collections
import concurrent.futures
import functools
import typing

import jax
import numpy as np

from lepton_jax import assemble, trees
from lepton_jax.config import Config
from lepton_jax.data.dataset import Dataset
from lepton_jax.layers import platform

STEPS, BATCH, SIDE, CLASSES = 3, 16, 16, 10
# Between them they have every kind of layer that has a form of its own on a CPU. Plain descent:
# Adam would turn the rounding of a gradient that is nearly zero into a step of full length.
NETWORKS = dict(CNN=dict(model='lenet5', width=0.5, norm='batch', learning_rate=0.05),
                LSTM=dict(model='lstm_classifier', hidden=16, learning_rate=0.5))
# Sums of float32 numbers in another order change the results by 2e-7 (oneDNN and XLA on a CPU).
# Products of bfloat16 numbers change them by 1e-2 (CNN) and 1e-3 (LSTM), those of TF32 numbers in
# dense layers alone by 6e-4 and 6e-5: more than this, as a wrong or missing term does.
ALLOWED = 1e-5


class Outcome(typing.NamedTuple):
  """How far one network on one device is from plain XLA's numbers on the CPU.

  Attributes:
    network, device: their names.
    difference: the largest of the losses of all steps, and of parameters and batch statistics
      after the last, each divided by the largest number in its layer.
    error: what the device said where it could not run; '' where it ran.
  """
  network: str
  device: str
  difference: float
  error: str = ''

  @property
  def passed(self):
    return not self.error and self.difference <= ALLOWED


def run():
  """The Outcome of each network on each local device, in full float32 precision.

  Raises RuntimeError where JAX has no device or leaves out the CPU.
  """
  cpu, devices = jax.local_devices(backend='cpu')[0], jax.local_devices()
  # The time is that of compiling, which takes one core a program.
  with concurrent.futures.ThreadPoolExecutor() as pool:
    found = pool.map(functools.partial(outcomes, cpu, devices), NETWORKS)
    return [outcome for one in found for outcome in one]


def outcomes(cpu, devices, name):
  """The Outcome of one network on each device."""
  train = prepare(NETWORKS[name])
  with platform.using('portable'):
    expected = train(cpu)
  return [compared(name, device, train, expected) for device in devices]


def prepare(options):
  """A function from a device to {name: array} after STEPS steps there from equal numbers."""
  config = Config().replace(batch_size=BATCH, optimizer='sgd', schedule='constant', **options)
  assembly = assemble.build(config, random_images())
  first = jax.device_get(assembly.state)
  batches = [assembly.batches.at(step) for step in range(STEPS)]
  return functools.partial(trained, assembly, first, batches)


def trained(assembly, state, batches, device):
  step, losses = jax.jit(assembly.train_step(None)), []
  state = jax.device_put(state, device)
  with jax.default_matmul_precision('highest'):
    for batch in batches:
      state, measured = step(state, jax.device_put(batch, device))
      losses.append(measured['loss'])
  arrays = dict(trees.named(dict(params=state.params, model_state=state.model_state)), loss=losses)
  return {name: np.asarray(jax.device_get(array)) for name, array in arrays.items()}


def compared(name, device, train, expected):
  """The Outcome of a network on a device."""
  label = f'{device.platform}:{device.id}'
  try:
    found = train(device)
  except Exception as error:  # such as too little memory, or a driver that does not fit
    return Outcome(name, label, np.inf, f'{type(error).__name__}: {str(error).splitlines()[0]}')
  return Outcome(name, label, largest_difference(found, expected))


def largest_difference(found, expected):
  """Of {name: array}: the largest difference of entries over the largest entry in their layer.

  A bias before batch norm has a gradient of nothing but rounding: beside itself alone it would
  never agree. Not a number if an entry is none.
  """
  layers = collections.defaultdict(list)
  for name, array in expected.items():
    layers[name.rpartition('/')[0]].append(
        (np.max(np.abs(found[name] - array)), np.max(np.abs(array))))
  ratios = [np.max(pairs, axis=0) for pairs in layers.values()]
  return float(np.max([difference / largest for difference, largest in ratios]))


def random_images():
  """A Dataset of as many grey images of random pixels as the steps take."""
  rng, count = np.random.default_rng(0), STEPS * BATCH
  images = rng.integers(0, 256, (count, SIDE, SIDE, 1), np.uint8)
  part = images, np.arange(count, dtype=np.int32) % CLASSES
  splits = dict.fromkeys(('train', 'validation', 'test'), part)
  return Dataset('random', '1', splits, tuple(map(str, range(CLASSES))), (),
                 np.full(1, 128, np.float32), np.full(1, 74, np.float32))
