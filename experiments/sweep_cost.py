"""What sharing one program between trials saves, and what a second device brings.

Question: how long do 64 short trials take as one sweep, as 64 processes, and compiled anew each;
  and how many trials a minute does each executor train?
Command: ./launch.sh sweep_cost
Expected: experiments/results/sweep_cost.csv as committed, for that machine.
Cost: a quarter of an hour on 2 cores with nothing else running.

What starts or compiles anew is timed on fewer trials: processes on 8, times 8; trials one after
another in one process on 4 and on 12, whose difference says what a trial takes and the rest what
the start does. Every contestant writes the same files.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

from absl import flags as absl_flags

from lepton_jax import flags

FLAGS = absl_flags.FLAGS
RESULTS = pathlib.Path(__file__).parent / 'results' / 'sweep_cost.csv'
FEW = ('--tensorboard=false', '--pictures=false', '--save_weights=false', '--checkpoint_every=0')
SMALL = ('--model=lenet_300_100', '--epochs=3')
GRID = ('--learning_rate=3e-4,1e-3,3e-3,1e-2', '--l2=1e-5,1e-4', '--dropout=0.1,0.3',
        '--seed=0,1,2,3')
CNN = ('--model=lenet5', '--epochs=4', '--learning_rate=3e-4,1e-3', '--l2=1e-5,1e-4',
       '--seed=0,1,2,3')
ONE_BY_ONE = """
import sys
from absl import flags as absl_flags
from lepton_jax import flags, run
flags.define()
absl_flags.FLAGS(sys.argv)
config = flags.configuration()
for seed in range({count}):
  run.train(config.replace(seed=seed, learning_rate=1e-3 * (1 + seed)), quiet=True)
"""


def main(config):
  del config
  from lepton_jax.report import markdown
  lines = []
  with tempfile.TemporaryDirectory() as scratch:
    for number in range(FLAGS.rounds):
      for (work, how), commands in contestants(f'{scratch}/{number}').items():
        took = sum(weight * seconds(command) for weight, command in commands)
        print(f'{took:8.1f} s  {work}, {how}', flush=True)
        lines.append(dict(round=number, work=work, how=how, seconds=round(took, 1),
                          cores=os.cpu_count()))
      markdown.write_rows(FLAGS.output, lines)
  return 0


def contestants(place):
  """{(what is done, how): [(factor on its seconds, command)]}, their run folders below `place`."""
  strengths = (*SMALL, *FEW, '--l2=1e-4', '--dropout=0.3', '--parallel=jit')

  def one_by_one(name, *more):  # 64 trials from a + 4 b and a + 12 b seconds
    return [(weight, [sys.executable, '-c', ONE_BY_ONE.format(count=count), *strengths, *more,
                      f'--runs_dir={place}-{name}-{count}'])
            for weight, count in ((-6.5, 4), (7.5, 12))]

  processes = [(8, train(f'{place}-p', *strengths, f'--seed={seed}')) for seed in range(8)]
  dense, cnn = '64 trials of lenet_300_100', '16 trials of lenet5'
  return {
      (dense, 'one sweep'): [(1, sweep(f'{place}-i', 'inline', *SMALL, *GRID))],
      (dense, 'one sweep, --executor=devices'): [
          (1, sweep(f'{place}-d', 'devices', *SMALL, *GRID))],
      (dense, 'one process, compiled for each trial'): one_by_one('o', '--compilation_cache=off'),
      (dense, 'one process, each from the cache of programs'): one_by_one('c'),
      (dense, 'a process for each trial'): processes,
      (cnn, 'one sweep'): [(1, sweep(f'{place}-cnn-i', 'inline', *CNN))],
      (cnn, 'one sweep, --executor=devices'): [(1, sweep(f'{place}-cnn-d', 'devices', *CNN))],
  }


def sweep(folder, executor, *arguments):
  return [sys.executable, '-m', 'experiments.regularization_sweep', f'--runs_dir={folder}',
          f'--executor={executor}', *arguments]


def train(folder, *arguments):
  return [sys.executable, '-m', 'experiments.train', f'--runs_dir={folder}', *arguments]


def seconds(command):
  """How long a whole process takes."""
  began = time.monotonic()
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
  return time.monotonic() - began


if __name__ == '__main__':
  absl_flags.DEFINE_integer('rounds', 2, 'turns of each contestant')
  absl_flags.DEFINE_string('output', str(RESULTS), 'CSV file to write')
  sys.exit(flags.run(main, __doc__, ('rounds', 'output')))
