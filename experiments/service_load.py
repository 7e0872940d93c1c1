"""Loads the prediction service from another process: throughput, overload, malformed requests.

Question: does the service keep its promises under load, and how fast is it?
Papers: none.
Command: ./launch.sh service_load --artifact=network.onnx
Expected: experiments/results/service_load.csv as committed, times apart: no request fails, more
  than the queue bears is answered by 503, malformed bodies by 4xx, and memory stays flat.
Cost: two minutes on 2 cores, which service and clients share.
"""

import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import random
import re
import socket
import statistics
import subprocess
import sys
import threading
import time

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
OWN = ('artifact', 'requests', 'clients', 'malformed', 'output')
OUTPUT = pathlib.Path(__file__).parent / 'results' / 'service_load.csv'


def main(config):
  del config
  import numpy as np

  from lepton_jax import machine
  from lepton_jax.deploy import runtime
  from lepton_jax.report import markdown, tables
  if not FLAGS.artifact:
    raise UserError('--artifact=FILE.onnx names the network to serve')
  shape = runtime.open_file(FLAGS.artifact).shape[1:]
  good = json.dumps(dict(inputs=np.zeros([n or 20 for n in shape], int).tolist())).encode()
  found = {}
  with service() as (port, process):
    ask(port, good)  # the first call warms up
    statuses, seconds, took = load(port, lambda i: good, FLAGS.requests)
    found |= dict(requests=FLAGS.requests, failed=sum(s != 200 for s in statuses),
                  requests_per_second=round(FLAGS.requests / took),
                  median_ms=round(1000 * statistics.median(seconds), 2),
                  p99_ms=round(1000 * statistics.quantiles(seconds, n=100)[98], 2))
    before = memory(process.pid)
    rng = random.Random(0)
    bad = [malformed(rng, good) for _ in range(FLAGS.malformed)]
    statuses, _, _ = load(port, bad.__getitem__, FLAGS.malformed)
    found |= dict(malformed=FLAGS.malformed, answered_4xx=sum(400 <= s < 500 for s in statuses),
                  memory_before_mb=before, memory_after_mb=memory(process.pid))
  with service('--max_queue=4', '--max_batch=1') as (port, _):
    statuses, _, _ = load(port, lambda i: good, 2000)
    time.sleep(1)
    found |= dict(overload_503=statuses.count(503), overload_200=statuses.count(200),
                  after_overload=ask(port, good)[0])
  found |= dict(clients=FLAGS.clients, artifact=pathlib.Path(FLAGS.artifact).name,
                processor=machine.processor(), git_revision=machine.git_revision())
  tables.print_table('service under load', [(n, str(value)) for n, value in found.items()])
  markdown.write_rows(FLAGS.output, [{name: str(value) for name, value in found.items()}])
  return 0


@contextlib.contextmanager
def service(*options):
  """(port, process) of a service that is stopped at the end."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  process = subprocess.Popen([sys.executable, '-m', 'experiments.serve', f'--port={port}',
                              f'--artifact={FLAGS.artifact}', *options],
                             stdout=subprocess.DEVNULL)
  try:
    for _ in range(200):
      with contextlib.suppress(OSError):
        socket.create_connection(('127.0.0.1', port), 1).close()
        break
      time.sleep(0.1)
    yield port, process
  finally:
    process.terminate()
    process.wait(30)


_connections = threading.local()


def ask(port, body):
  """(status, seconds) of a request on this thread's connection; 0 where none came back."""
  began = time.perf_counter()
  try:
    if getattr(_connections, 'port', None) != port:
      _connections.port = port
      _connections.link = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
    _connections.link.request('POST', '/predict', body, {'Content-Type': 'application/json'})
    response = _connections.link.getresponse()
    response.read()
    if response.status == 503 and response.headers['Retry-After'] is None:
      return 0, 0.0
    return response.status, time.perf_counter() - began
  except (OSError, http.client.HTTPException):
    _connections.port = None
    return 0, time.perf_counter() - began


def load(port, body, count):
  """(statuses, seconds of each, seconds in all) of requests by so many clients at once."""
  began = time.perf_counter()
  with concurrent.futures.ThreadPoolExecutor(FLAGS.clients) as pool:
    found = list(pool.map(lambda i: ask(port, body(i)), range(count)))
  statuses, seconds = zip(*found)
  return list(statuses), list(seconds), time.perf_counter() - began


def malformed(rng, good):
  """A body that no service should take."""
  kinds = (lambda: os.urandom(rng.randrange(1, 2000)), lambda: good[:rng.randrange(len(good) - 1)],
           lambda: b'{"inputs": "' + b'x' * rng.randrange(100) + b'"}', lambda: b'{}',
           lambda: json.dumps(dict(inputs=[[1, 2], [3]])).encode(),
           lambda: b'[' * rng.randrange(1, 5000), lambda: b'{"inputs": [NaN, 1e999]}')
  return rng.choice(kinds)()


def memory(process):
  """Megabytes that a process holds."""
  status = pathlib.Path(f'/proc/{process}/status').read_text()
  return round(int(re.search(r'VmRSS:\s+(\d+)', status)[1]) / 1000, 1)


if __name__ == '__main__':
  absl_flags.DEFINE_string('artifact', '', 'ONNX file to serve')
  absl_flags.DEFINE_integer('requests', 20_000, 'requests', lower_bound=100)
  absl_flags.DEFINE_integer('clients', 32, 'clients at once', lower_bound=1)
  absl_flags.DEFINE_integer('malformed', 10_000, 'malformed requests', lower_bound=1)
  absl_flags.DEFINE_string('output', str(OUTPUT), 'CSV file to write')
  sys.exit(flags.run(main, __doc__, OWN))
