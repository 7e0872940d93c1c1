"""Deep Compression: pruned, then clustered, then coded, and the bytes after each.

Question: how small does a trained network get in three stages, and what does each stage cost?
Paper: Han et al., arXiv:1510.00149, tables 1, 2 and 3: LeNet-300-100 from 1,070 kB and 1.64 % error
  to 27 kB and 1.58 %, its kernels cut to 8 % of their weights and 64 shared values.
Command: ./launch.sh papers.deep_compression --data_dir=DIR
Expected: experiments/results/papers/deep_compression.csv and .png as committed.
Cost: 5 minutes on 2 cores.

A layer has 32 values here. The paper codes by Huffman, positions as differences of 3 to 8 bits;
ours by adaptive arithmetic coding (lepton_jax/deploy/FORMAT.md), float32 weights as well. Bytes are
those of the whole file of each stage: architecture, scales and biases too.
"""

import pathlib
import sys

from absl import flags as absl_flags

from experiments.tables import study
from experiments.tables.paper import RESULTS
from lepton_jax import config as config_lib
from lepton_jax import flags

FLAGS = absl_flags.FLAGS
STAGES = ('trained', 'pruned', 'clustered and coded')
NETWORK, OPTIONS = 'lenet_300_100', dict(dataset='mnist', epochs=30, augment_crop=1)
RECIPE = 'prune(0.92,end=0.7):20,cluster(32):5'
OF_PAPER = (1070, 1.64), (27, 1.58)  # kB, % error
PUBLISHED = ('1,070 kB, 1.64 %', '', '27 kB, 1.58 %')


def main(config):
  del config
  from lepton_jax.report import studies
  from lepton_jax.report.pictures import save
  lines = study.without_others(study.known(FLAGS.output), {}, dict(recipe=RECIPE))
  for seed in study.seeds():
    if study.missing(lines, dict(seed=seed)):
      lines += compressed(seed)
      study.write(FLAGS.output, lines)
  save(picture(lines), pathlib.Path(FLAGS.output).with_suffix('.png'))
  print(studies.stages_table(lines))
  return 0


def compressed(seed):
  """The lines of the stages."""
  from lepton_jax import recipe, run
  from lepton_jax.deploy import measure
  base = config_lib.Config().replace(
      model=NETWORK, data_dir=FLAGS.data_dir, seed=int(seed), runs_dir=FLAGS.runs_dir,
      **study.QUIET | OPTIONS).check()
  print(base.name(), flush=True)
  run.train(base, quiet=True)
  start = f'{FLAGS.runs_dir}/{base.name()}'
  stages = recipe.follow(recipe.parse(RECIPE), base, dict(learning_rate=5e-4), start)
  places = [start, *(place for _, place, _ in stages)]
  return [line(seed, stage, measure.packed(place, bits=0), published)
          for stage, place, published in zip(STAGES, places, PUBLISHED)]


def line(seed, stage, found, published):
  columns = ('test_accuracy', 'validation_accuracy', 'file_bytes', 'dense_bytes', 'processor',
             'git_revision')
  return dict(network=NETWORK, stage=stage, seed=seed, published=published,
              recipe=RECIPE, **{name: str(found[name]) for name in columns})


def picture(lines):
  """Error against bytes after each stage, ours with every seed and the paper's."""
  from matplotlib import figure
  drawing = figure.Figure(figsize=(4.6, 3.4), layout='constrained')
  axes = drawing.subplots()
  for seed in dict.fromkeys(line['seed'] for line in lines):
    own = [line for line in lines if line['seed'] == seed]
    axes.plot([int(line['file_bytes']) / 1000 for line in own],
              [100 - 100 * float(line['test_accuracy']) for line in own], marker='.', color='C0',
              label='ours: trained, pruned, clustered' if own[0] is lines[0] else None)
  axes.plot(*zip(*OF_PAPER), marker='s', linestyle='--', color='C1', label='the paper, its ends')
  axes.set(xscale='log', xlabel='file (kB)', ylabel='test error (%)')
  axes.xaxis.set_major_formatter('{x:g}')
  axes.grid(alpha=0.3)
  axes.legend(fontsize='small')
  return drawing


if __name__ == '__main__':
  study.define('runs/deep_compression', RESULTS / 'deep_compression.csv')
  sys.exit(flags.run(main, __doc__, study.OWN))
