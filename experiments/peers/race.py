"""Alternating timings: each contestant lives in a process of its own and works only when asked.

Contestants take turns within a round, so that a machine that slows down slows them all; ratios are
taken round by round.
"""

import contextlib
import importlib
import multiprocessing
import pathlib
import resource
import statistics
import time

import numpy as np

SHAPES = dict(cnn_cifar=(32, 32, 3), lenet5=(28, 28, 1), resnet8=(32, 32, 3), resnet20=(32, 32, 3),
              resnet18=(32, 32, 3), mobilenet_v1=(32, 32, 3), lstm_classifier=(128,),
              lenet_300_100=(28, 28, 1))


def made_up(name, batch):
  """(inputs, label): normal pixels, or tokens of 10,000 words."""
  rng = np.random.default_rng(0)
  if len(SHAPES[name]) == 1:
    inputs = rng.integers(1, 10_000, (batch, *SHAPES[name])).astype(np.int32)
    return inputs, rng.integers(0, 2, batch).astype(np.int32)
  inputs = rng.normal(size=(batch, *SHAPES[name])).astype(np.float32)
  return inputs, rng.integers(0, 10, batch).astype(np.int32)


class Racer:
  """A contestant in its own process.

  Attributes:
    label: what it is called in tables.
    facts: {'parameters', 'compile_seconds', 'threads', 'device'}, and what its library adds.
  """

  def __init__(self, label, library, name, batch, **options):
    self.label, self._steps = label, 1
    context = multiprocessing.get_context('spawn')
    self._pipe, other = context.Pipe()
    self._process = context.Process(target=serve, args=(other, library, name, batch, options),
                                    daemon=True)
    self._process.start()
    other.close()  # so that a contestant that dies is noticed
    self.facts = self.ask()
    self.milliseconds = []

  def ask(self, *request):
    """The answer to a request; that of a contestant's method comes with the seconds it took."""
    if request:
      self._pipe.send(request)
    try:
      answer = self._pipe.recv()
    except EOFError:
      self._process.join()
      raise RuntimeError(
          f'{self.label}: its process ended with exit code {self._process.exitcode}') from None
    if isinstance(answer, Exception):
      raise answer
    return answer

  def warm(self, seconds):
    """Finds how many steps fill so many seconds."""
    self.ask('train', 2)
    taken, steps = self.ask('train', 2)
    self._steps = max(1, round(seconds * steps / taken))

  def turn(self):
    """One stretch of steps; returns and remembers milliseconds a step."""
    taken, steps = self.ask('train', self._steps)
    self.milliseconds.append(1e3 * taken / steps)
    return self.milliseconds[-1]

  def median(self):
    """Median milliseconds a step."""
    return statistics.median(self.milliseconds)

  def predict(self, batch, seconds):
    """Median milliseconds a forward pass at this batch size."""
    self.ask('predict', 3, batch)  # compiles
    taken, _ = self.ask('predict', 3, batch)
    passes = max(3, round(seconds * 3 / taken / 5))
    return 1e3 * statistics.median(self.ask('predict', passes, batch)[0] / passes for _ in range(5))

  def peak_memory(self):
    """Most memory that the process has held, MiB; on an accelerator that of the card."""
    return self.ask('memory')

  def close(self):
    with contextlib.suppress(BrokenPipeError):  # it has stopped by itself, and said why
      self._pipe.send(('stop',))
    self._process.join()


def serve(pipe, library, name, batch, options):
  """The other end: builds the contestant, then answers requests until told to stop."""
  try:
    module = importlib.import_module(f'experiments.peers.{library}')
    contestant = module.Contestant(name, *made_up(name, batch), **options)
    pipe.send(dict(parameters=contestant.parameters, compile_seconds=contestant.compile_seconds,
                   **contestant.facts()))
    while (request := pipe.recv())[0] != 'stop':
      if request[0] == 'memory':
        pipe.send(contestant.device_memory() or peak_memory())
        continue
      began = time.perf_counter()
      done = getattr(contestant, request[0])(*request[1:])
      pipe.send((time.perf_counter() - began, done))
  except EOFError:
    return
  except Exception as error:  # shown where the question was asked
    pipe.send(RuntimeError(f'{library} {name}: {type(error).__name__}: {error}'))


def jax_device_memory():
  """Most memory of an accelerator in use so far by JAX, MiB; None on a CPU."""
  import jax
  if jax.default_backend() == 'cpu':
    return None
  used = (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
  return used and used / 2 ** 20


def peak_memory():
  """Most memory that this process has held, MiB.

  Linux's figure does not count the process it was started from.
  """
  status = pathlib.Path('/proc/self/status')
  if status.exists():
    lines = status.read_text().splitlines()
    return int(next(line for line in lines if line.startswith('VmHWM')).split()[1]) / 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def race(racers, rounds, seconds):
  """Lets the racers take turns; what they took is in their `milliseconds`."""
  for racer in racers:
    racer.warm(seconds)
  for number in range(rounds):
    for racer in racers if number % 2 == 0 else racers[::-1]:
      racer.turn()


def ratio(slow, fast):
  """(median, low, high) of slow / fast round by round; above 1 `fast` is faster.

  The interval is a bootstrapped one of 95 %.
  """
  rounds = np.array(slow.milliseconds) / np.array(fast.milliseconds)
  drawn = np.random.default_rng(0).choice(rounds, (2000, len(rounds)))
  low, high = np.percentile(np.median(drawn, 1), [2.5, 97.5])
  return float(np.median(rounds)), float(low), float(high)


def best(racers):
  """The fastest by its median."""
  return min(racers, key=Racer.median)
