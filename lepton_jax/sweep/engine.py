"""Runs the trials of a sweep.

Trials share programs, finished ones are skipped, and failures are noted while the others go on.
"""

import contextlib
import multiprocessing
import os
import queue
import threading
import time

from lepton_jax import machine, outcomes
from lepton_jax.errors import UserError
from lepton_jax.sweep import ray_executor, trials
from lepton_jax.sweep.session import POLL, Costs, Session

EXECUTORS = ('inline', 'devices', 'processes', 'ray')


def sweep(configs, executor='inline', workers=0, tell=print, address=''):
  """Trains every trial that has no result yet into its run folder; returns the sweep's Costs.

  Failures are noted in the run folders as well.

  Args:
    configs: the trials.
    executor: 'inline' trains one after another on one device, 'devices' one on each device at once
      (on accelerators several), 'processes' starts `workers` processes that share the trials,
      'ray' as many workers of Ray.
    workers: how many processes, 0: one a core; or workers, 0: one a device that Ray has.
    tell: called with a line for each trial that ends.
    address: of the Ray cluster, '': one that is started on this machine.

  Raises UserError for trials that a sweep cannot train and train.loop.Interrupted where it was
  stopped.
  """
  trials.check(configs)
  ray_executor.check(executor, address)
  began = time.monotonic()
  if executor == 'processes':
    costs = in_processes(configs, workers or machine.cores(), tell)
  elif executor == 'ray' and any(outcomes.finished(config) is None for config in configs):
    costs = ray_executor.sweep(configs, workers, address, tell)
  else:
    costs = here(configs, executor == 'devices', tell)
  return costs._replace(seconds=time.monotonic() - began)


def here(configs, all_devices, tell, began=None):
  """Trains in this process; returns the Costs.

  Trials that failed since `began` (seconds since the epoch) are left alone.
  """
  with Session(configs[0].run, all_devices, tell, began=began) as session:
    session.train(configs)
    return session.costs


def in_processes(configs, count, tell):
  """Trains in so many processes, each taking the trials that it can claim.

  A process that dies leaves its trials to the others.
  """
  from lepton_jax.train import loop
  context = multiprocessing.get_context('spawn')
  total, said = Costs(), context.Queue()
  left = [config for config in configs if outcomes.finished(config) is None]
  workers = [context.Process(target=work, args=(configs, said, time.time()))
             for _ in range(min(count, len(configs)))]
  # Workers of a terminal get the signal as well; others are sent it.
  with loop.StopSignal() as stop:
    for worker in workers:
      worker.start()
    sent = False
    while any(worker.is_alive() for worker in workers) or not said.empty():
      if stop.arrived and not sent:
        sent = True
        for worker in workers:
          worker.terminate()
      with contextlib.suppress(queue.Empty):
        one = said.get(timeout=POLL)
        if isinstance(one, Costs):
          total = Costs(*(a + b for a, b in zip(total, one)))
        elif isinstance(one, UserError):
          raise one
        else:
          tell(one)
    if stop.arrived:
      raise loop.Interrupted(stop.arrived)
  unsettled = lambda config: outcomes.finished(config) is None and outcomes.failure(config) is None
  if any(worker.exitcode for worker in workers) and any(map(unsettled, configs)):
    raise UserError('a worker process ended before its trials; repeat the command to go on')
  return total._replace(programs=len(trials.programs(left)))


def work(configs, said, began):
  """A worker process: puts a line for each trial, and its Costs."""
  from lepton_jax.train import loop
  threading.Thread(target=end_with_parent, daemon=True).start()
  try:
    said.put(here(configs, False, said.put, began))
  except loop.Interrupted:
    pass
  except UserError as error:
    said.put(error)


def end_with_parent():
  """Ends this process when the sweep that started it was killed, as if killed with it."""
  multiprocessing.parent_process().join()
  os._exit(1)
