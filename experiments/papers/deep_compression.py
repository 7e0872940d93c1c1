"""Deep Compression: pruned, then clustered, then coded, and the bytes after each.

Question: how small does a trained network get in three stages, and what does each stage cost?
Paper: Han et al., arXiv:1510.00149, tables 1, 2 and 3: LeNet-300-100 from 1,070 kB and 1.64 % error
  to 27 kB and 1.58 %, its kernels cut to 8 % of their weights and 64 shared values; LeNet-5 from
  1,720 kB and 0.80 % to 44 kB and 0.74 %, cut to 8 %, 256 values for convolutions and 32 for the
  rest.
Command: ./launch.sh papers.deep_compression --data_dir=DIR
Expected: experiments/results/papers/deep_compression.csv as committed.
Cost: 5 minutes on 2 cores for the first network, 10 for the second.

Both networks have 32 values a layer here. The paper codes by Huffman, positions as differences of 3
to 8 bits; ours by adaptive arithmetic coding (lepton_jax/deploy/FORMAT.md). Bytes are those of the
whole file of each stage: architecture, scales and biases as well. Its sparse float32 weights are
coded too, so a pruned file is smaller here than in the paper.
"""

import itertools
import pathlib
import sys

from absl import flags as absl_flags

from experiments.tables import study
from experiments.tables.paper import RESULTS
from lepton_jax import config as config_lib
from lepton_jax import flags

FLAGS = absl_flags.FLAGS
STAGES = ('trained', 'pruned', 'clustered and coded')
NETWORKS = dict(lenet_300_100=(dict(epochs=30), 'prune(0.92,end=0.7):20,cluster(32):5'),
                lenet5=(dict(epochs=12), 'prune(0.92,end=0.7):10,cluster(32):3'))
PUBLISHED = dict(lenet_300_100=('1,070 kB, 1.64 %', '', '27 kB, 1.58 %'),
                 lenet5=('1,720 kB, 0.80 %', '', '44 kB, 0.74 %'))


def main(config):
  del config
  from lepton_jax.report import markdown, studies
  output = pathlib.Path(FLAGS.output)
  lines = markdown.rows(output) if output.exists() else []
  for network, seed in itertools.product(NETWORKS, FLAGS.seeds.split(',')):
    if not any((line['network'], line['seed']) == (network, seed) for line in lines):
      lines += compressed(network, seed)
      lines.sort(key=lambda line: list(NETWORKS).index(line['network']))
      output.parent.mkdir(parents=True, exist_ok=True)
      markdown.write_rows(output, lines)
  print(studies.stages_table(lines))
  return 0


def compressed(network, seed):
  """The lines of a network's stages."""
  from lepton_jax import recipe, run
  from lepton_jax.deploy import measure
  options, text = NETWORKS[network]
  base = config_lib.Config().replace(
      model=network, dataset='mnist', augment_crop=1, data_dir=FLAGS.data_dir, seed=int(seed),
      runs_dir=FLAGS.runs_dir, **study.QUIET | options).check()
  print(base.name(), flush=True)
  run.train(base, quiet=True)
  start = f'{FLAGS.runs_dir}/{base.name()}'
  stages = recipe.follow(recipe.parse(text), base, dict(learning_rate=5e-4), start)
  places = [start, *(place for _, place, _ in stages)]
  return [line(network, seed, stage, measure.packed(place), published)
          for stage, place, published in zip(STAGES, places, PUBLISHED[network])]


def line(network, seed, stage, found, published):
  columns = ('test_accuracy', 'validation_accuracy', 'file_bytes', 'dense_bytes', 'processor',
             'git_revision')
  return dict(network=network, stage=stage, seed=seed, published=published,
              recipe=NETWORKS[network][1], **{name: str(found[name]) for name in columns})


if __name__ == '__main__':
  study.define('runs/deep_compression', RESULTS / 'deep_compression.csv')
  sys.exit(flags.run(main, __doc__, study.OWN))
