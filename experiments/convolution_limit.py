"""How near our convolutions come to oneDNN's own, called in a loop in the same process.

Question: what does it cost to call oneDNN from inside a compiled JAX program?
Peer: oneDNN itself (experiments/peers/onednn_loop.cc), its kernels in the order that it likes best.
Command: ./launch.sh convolution_limit
Expected: experiments/results/convolution_limit.csv as committed: all convolutions of a network and
  their gradients take at most a seventh longer than the bare calls.
Cost: a minute on 2 cores with nothing else running; it needs a C++ compiler.
"""

import ctypes
import pathlib
import subprocess
import sys
import tempfile
import time

from absl import flags as absl_flags

from lepton_jax import flags, machine
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
HERE = pathlib.Path(__file__).parent
# (side, channels, features, kernel, stride, padding, how often) of a batch of 128.
NETWORKS = dict(
    cnn_cifar=((32, 3, 32, 3, 1, 'VALID', 1), (15, 32, 64, 3, 1, 'VALID', 1),
               (6, 64, 64, 3, 1, 'VALID', 1)),
    resnet8=((32, 3, 16, 3, 1, 'SAME', 1), (32, 16, 16, 3, 1, 'SAME', 2),
             (32, 16, 32, 3, 2, 'SAME', 1), (16, 32, 32, 3, 1, 'SAME', 1),
             (16, 32, 64, 3, 2, 'SAME', 1), (8, 64, 64, 3, 1, 'SAME', 1),
             (32, 16, 32, 1, 2, 'SAME', 1), (16, 32, 64, 1, 2, 'SAME', 1)),
    resnet20=((32, 3, 16, 3, 1, 'SAME', 1), (32, 16, 16, 3, 1, 'SAME', 6),
              (32, 16, 32, 3, 2, 'SAME', 1), (16, 32, 32, 3, 1, 'SAME', 5),
              (16, 32, 64, 3, 2, 'SAME', 1), (8, 64, 64, 3, 1, 'SAME', 5)))
BATCH, CALLS, TURNS = 128, 30, 3


def main(config):
  del config
  machine.keep_freed_memory()
  from lepton_jax.layers.native import library
  if isinstance(missing := library.status(), library.Missing):
    raise UserError(f'oneDNN is not on this machine; {missing}')
  from lepton_jax.report import markdown
  loop, rows = compiled(), []
  for network, shapes in NETWORKS.items():
    ours = theirs = 0.0
    for *shape, often in shapes:
      for kind in range(3):
        if kind == 1 and shape[1] == 3:
          continue  # nobody asks for the gradient of the pictures
        one, other = measured(loop, kind, *shape)
        ours, theirs = ours + often * one, theirs + often * other
    rows.append(dict(network=network, batch=BATCH, ours_ms=f'{ours:.2f}', loop_ms=f'{theirs:.2f}',
                     reached=f'{theirs / ours:.3f}', cores=machine.cores(),
                     processor=machine.processor(), onednn=library.opened().version,
                     git_revision=machine.git_revision()))
    print(f'{network}: {ours:.2f} ms, oneDNN alone {theirs:.2f} ms, {theirs / ours:.0%}',
          flush=True)
  markdown.write_rows(pathlib.Path(FLAGS.output) / 'convolution_limit.csv', rows)
  return 0


def compiled():
  """The C++ loop, built in a temporary folder against the library that our layers call."""
  from lepton_jax.layers.native import library
  include = library._file(library._installed(library.HEADERS), 'dnnl.hpp').parent
  onednn = library._file(library._installed(library.RUNTIME), library.SONAME)
  with tempfile.TemporaryDirectory() as folder:
    made = f'{folder}/loop.so'
    subprocess.run(['g++', '-std=c++17', '-O2', '-fPIC', '-fopenmp', '-shared', f'-I{include}',
                    f'-I{include.parents[1]}', str(HERE / 'peers' / 'onednn_loop.cc'),
                    str(onednn), '-o', made], check=True)
    function = ctypes.CDLL(made).onednn_loop
  function.restype = ctypes.c_double
  return function


def measured(loop, kind, side, channels, features, kernel, stride, padding):
  """(ours, the loop's) milliseconds of one convolution or gradient, the least of turns."""
  import jax
  import numpy as np

  from lepton_jax.layers import convolve
  pads = jax.lax.padtype_to_pads((side, side), (kernel, kernel), (stride, stride), padding)
  window = (stride, stride), tuple(pads), 1
  rng = np.random.default_rng(0)
  x = rng.normal(size=(BATCH, side, side, channels)).astype(np.float32)
  weights = rng.normal(size=(kernel, kernel, channels, features)).astype(np.float32)
  y = convolve.by_onednn(x, weights, None, window)
  function, arguments = (
      (lambda x, k: convolve._convolution(window, x, k), (x, weights)),
      (lambda y, k: convolve._image_gradient(window, (side, side), y, k), (y, weights)),
      (lambda x, y: convolve._kernel_gradient(window, (kernel, kernel), x, y), (x, y)))[kind]
  function, arguments = jax.jit(function), jax.device_put(arguments)
  shape = (ctypes.c_int * 9)(BATCH, side, channels, features, kernel, stride, *pads[0], y.shape[1])
  turns = [(milliseconds(function, arguments), loop(kind, shape, machine.cores(), CALLS))
           for _ in range(TURNS)]
  return tuple(min(times) for times in zip(*turns))


def milliseconds(function, arguments):
  """The median of some calls."""
  import statistics

  import jax
  jax.block_until_ready(function(*arguments))
  took = []
  for _ in range(CALLS):
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    took.append(1000 * (time.perf_counter() - began))
  return statistics.median(took)


if __name__ == '__main__':
  absl_flags.DEFINE_string('output', str(HERE / 'results'), 'folder for the table')
  sys.exit(flags.run(main, __doc__, ('output',)))
