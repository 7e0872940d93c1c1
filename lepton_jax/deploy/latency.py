"""How long files take to answer, side by side, and how much memory a process needs for one."""

import json
import statistics
import subprocess
import sys
import time

import numpy as np

from lepton_jax.errors import UserError

WARM, LEAST = 5, 0.03  # calls before the clock, seconds of calls in a round

# A process of its own: what it holds at most while it answers, less what the libraries take.
MEMORY = '''
import json, pathlib, resource, sys
from lepton_jax.deploy import runtime
import numpy as np
if sys.argv[1].endswith('.onnx'):
  import onnxruntime
else:
  import jax
  jax.numpy.zeros(1).block_until_ready()
def most():
  return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, inputs = most(), np.load(sys.argv[2], allow_pickle=False)
if pathlib.Path('/proc/self/clear_refs').exists():  # Linux counts the peak anew from here
  def line(name):
    found = pathlib.Path('/proc/self/status').read_text().split(name + ':')[1]
    return 1024 * int(found.split()[0])
  most, before = lambda: line('VmHWM'), line('VmRSS')
  pathlib.Path('/proc/self/clear_refs').write_text('5')
runtime.open_file(sys.argv[1]).answer(inputs)
print(json.dumps(most() - before))
'''


def load_seconds(open_file, inputs, count=5):
  """Median seconds from opening a file to its first answer."""
  times = []
  for _ in range(count):
    began = time.perf_counter()
    open_file().answer(inputs)
    times.append(time.perf_counter() - began)
  return statistics.median(times)


def calls(answer, inputs):
  """Seconds of each of the calls of one round."""
  for _ in range(WARM):
    answer(inputs)
  times = []
  while sum(times) < LEAST or len(times) < 3:
    began = time.perf_counter()
    answer(inputs)
    times.append(time.perf_counter() - began)
  return times


def side_by_side(answers, inputs, rounds):
  """[{'ms', 'p95', 'ratio', 'low', 'high'}] of functions that take turns.

  `ms` is the median time of a call, and `ratio` the time of the first function over this one's: the
  median over rounds, with the interval that holds 95 % of medians of rounds drawn again.
  """
  times = [[calls(answer, inputs) for answer in answers] for _ in range(rounds)]
  medians = np.array([[statistics.median(one) for one in line] for line in times])
  rng, found = np.random.default_rng(0), []
  for i in range(len(answers)):
    every = 1000 * np.concatenate([line[i] for line in times])
    ratios = medians[:, 0] / medians[:, i]
    again = np.median(rng.choice(ratios, (1000, rounds)), 1)
    found.append(dict(ms=float(np.median(every)), p95=float(np.quantile(every, 0.95)),
                      ratio=float(np.median(ratios)), low=float(np.quantile(again, 0.025)),
                      high=float(np.quantile(again, 0.975))))
  return found


def memory(path, inputs_file):
  """Bytes that a fresh process takes for a file beside its libraries."""
  done = subprocess.run([sys.executable, '-c', MEMORY, str(path), str(inputs_file)],
                        capture_output=True, text=True)
  if done.returncode:
    raise UserError(f'{path} does not run in a process of its own: {done.stderr.strip()[-300:]}')
  return json.loads(done.stdout)
