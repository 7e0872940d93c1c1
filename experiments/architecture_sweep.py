"""Trains every combination of the values that flags list: which architecture is worth its size?

Question: how does accuracy depend on architecture, width and depth, over seeds, at equal training?
Command: ./launch.sh architecture_sweep --model=lenet_300_100,lenet5 --width=0.5,1 --epochs=5
  --seed=0,1,2
Expected: a table of the settings, best on validation first, in runs/architecture_sweep/report.
Cost: two minutes on 2 cores for this command.

Every flag of `train` takes a comma list. Trials of one architecture share one compiled program,
whatever their seeds and strengths. A trial is a run folder: the same command again trains what is
missing.
"""

import sys

from lepton_jax import flags
from lepton_jax.sweep import command

if __name__ == '__main__':
  command.define('architecture_sweep')
  sys.exit(flags.run(command.main, __doc__, command.OWN))
