"""Trains every combination of the values that flags list: what does each regulariser bring?

Question: which regularisers, at which strength, raise validation accuracy over seeds?
Papers: beside each method's flag.
Command: ./launch.sh regularization_sweep --model=lenet_300_100 --l2=0,1e-4,1e-3 --dropout=0,0.3
  --epochs=5 --seed=0,1,2
Expected: a table of the settings, best on validation first, in runs/regularization_sweep/report.
Cost: a minute on 2 cores for this command.

Every flag of `train` takes a comma list. A strength of 0 is absent from the compiled program; all
other values share one. A trial is a run folder: the same command again trains what is missing.
"""

import sys

from lepton_jax import flags
from lepton_jax.sweep import command

if __name__ == '__main__':
  command.define('regularization_sweep')
  sys.exit(flags.run(command.main, __doc__, command.OWN))
