"""Trains one network from flags and proves what it cost: the main job.

Question: what accuracy does this network reach on this data, at which size and speed, regularised
and compressed like this?
Papers: named beside each method's flag below.
Command: ./launch.sh train --model=lenet5 --dataset=mnist5k
Expected: test accuracy 97 to 98 % in about a minute on 2 cores (3,500 training images).
Cost: seconds on the embedded sets; minutes for LeNet-5 on MNIST; see the README for more.

The run folder is named after everything that can change the result. The same command again shows a
finished run's result, or continues an interrupted one where it stopped.
"""

import sys

from lepton_jax import flags


def main(config):
  from lepton_jax import cluster, run
  from lepton_jax.report import tables
  from lepton_jax.train import loop
  folder = f'{config.run.runs_dir}/{config.name()}'
  try:
    result = run.train(config)
  except loop.NotFinite as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except loop.Interrupted as signal:
    print(f'{signal}: saved. To resume, repeat the same command, or: ./launch.sh train '
          f'--config={folder}/config.json', file=sys.stderr)
    return signal.status
  if cluster.first():
    tables.print_table(f'{folder}', tables.result_rows(result))
  return 0


if __name__ == '__main__':
  flags.define()
  flags.run(main, __doc__)
