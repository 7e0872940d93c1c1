"""Prints a script for SLURM that trains on many machines and goes on after each interruption.

Question: how does an experiment run on a cluster that has a queue?
Paper: none; https://slurm.schedmd.com/sbatch.html has the options that it prints.
Command: ./launch.sh slurm --nodes=2 --gpus=4 -- train --model=resnet20 --dataset=cifar10 >job.sh
  sbatch job.sh
Expected: a file for sbatch, whose job saves before its time is over and queues itself again.
Cost: nothing; it only prints.

--runs_dir must be in a folder that all nodes see.
"""

import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.hosts import batch

FLAGS = absl_flags.FLAGS
OWN = ('name', 'nodes', 'gpus', 'cpus', 'time', 'partition', 'account')


def main(words):
  print(batch.sbatch(words, **{name: FLAGS[name].value for name in OWN}), end='')
  return 0


if __name__ == '__main__':
  absl_flags.DEFINE_string('name', 'lepton', 'of the job and its log')
  absl_flags.DEFINE_integer('nodes', 1, 'machines', lower_bound=1)
  absl_flags.DEFINE_integer('gpus', 0, 'GPUs of each machine; 0: train on its processors',
                            lower_bound=0)
  absl_flags.DEFINE_integer('cpus', 8, 'processor cores of each process: one for each GPU, or one '
                            'for each machine without', lower_bound=1)
  absl_flags.DEFINE_string('time', '24:00:00', 'after which the job queues itself again')
  absl_flags.DEFINE_string('partition', '', "queue; '': the cluster's default")
  absl_flags.DEFINE_string('account', '', "who pays; '': the cluster's default")
  sys.exit(flags.run(main, __doc__, OWN, files=True))
