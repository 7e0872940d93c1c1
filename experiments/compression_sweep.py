"""Accuracy against size over every combination of pruning and quantisation values in the flags.

Question: which sparsity and which bit widths are worth their accuracy, for this network?
Papers: pruning arXiv:1710.01878; quantisation arXiv:1806.08342, arXiv:1902.08153.
Command: ./launch.sh compression_sweep --model=lenet5 --prune_sparsity=0.5,0.8,0.9,0.95
  --quantize_weight_bits=2,3,4,8 --seed=0,1,2
Expected: a table and a Pareto front of accuracy over bytes of the packed file in
  runs/compression_sweep/report.
Cost: three quarters of an hour on 2 cores for this command, with --executor=devices.

Every flag of `train` takes a comma list. All sparsities and bit widths but 0 share one compiled
program. With --init_from=RUN every trial starts from that dense run. The size is that of the packed
file, whose levels are those that were trained.
"""

import sys

from lepton_jax import flags
from lepton_jax.sweep import command

if __name__ == '__main__':
  command.define('compression_sweep')
  sys.exit(flags.run(command.main, __doc__, command.OWN))
