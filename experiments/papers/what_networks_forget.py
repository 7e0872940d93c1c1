"""What do compressed deep neural networks forget? Examples and classes that pruning costs most.

Question: does pruning, at nearly the same accuracy, cost all classes and examples alike?
Paper: Hooker et al., arXiv:1911.05248, sections 2 and 3: populations of 30 networks on CIFAR-10 and
  ImageNet; examples on which the most frequent answer of pruned networks differs from that of dense
  ones (PIEs) are harder for dense networks too, and a few classes bear most of the loss.
Command: ./launch.sh papers.what_networks_forget --data_dir=DIR
Expected: experiments/results/papers/what_networks_forget.csv and .png as committed.
Cost: 10 minutes on 2 cores.

Ours are 10 networks of each sparsity, LeNet-300-100 on MNIST. As in the paper a class counts as
changed where its change differs from that of all classes together by Welch's t-test at 5 %, over
seeds. Pruned networks have as many epochs as dense ones.
"""

import pathlib
import sys

from absl import flags as absl_flags

from experiments.tables import study
from experiments.tables.paper import RESULTS
from lepton_jax import flags, outcomes
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
SPARSITIES = (0.0, 0.9, 0.95, 0.98)
BASE = dict(model='lenet_300_100', dataset='mnist', epochs=8)
STUDY = study.Study(BASE, {share: dict(prune_sparsity=share) if share else {}
                           for share in SPARSITIES})


def main(config):
  del config
  import numpy as np

  from lepton_jax import folder
  from lepton_jax.report import studies
  from lepton_jax.report.pictures import save
  said, seeds = {share: [] for share in SPARSITIES}, study.seeds()
  if len(seeds) < 2:
    raise UserError(f'--seeds={FLAGS.seeds}: networks are compared over two seeds or more')
  for seed in seeds:
    for share, trained in study.train(STUDY, seed, STUDY.settings).items():
      network = folder.load(str(outcomes.folder_of(trained)))
      images, labels = network.data.splits['test']
      said[share].append(network.outputs(images).argmax(-1))
  said = {share: np.array(answers) for share, answers in said.items()}
  pies = {share: most_frequent(answers) != most_frequent(said[0.0])
          for share, answers in said.items()}
  lines = [line(share, answers, said[0.0], labels, pies[share], outcomes.finished(trained))
           for share, answers in said.items()]
  output = pathlib.Path(FLAGS.output)
  study.write(output, lines)
  save(picture(images, labels, said, pies), output.with_suffix('.png'))
  print(studies.forgetting_table(lines))
  return 0


def most_frequent(answers):
  """The class that most networks say, i64[examples], of answers i64[networks, examples]."""
  import numpy as np
  return np.apply_along_axis(lambda said: np.bincount(said).argmax(), 0, answers)


def line(share, answers, dense, labels, pie, result):
  """What a sparsity costs: accuracies in %, classes that changed more or less than all together."""
  import numpy as np
  change = class_changes(answers, dense, labels)
  dense_right = (dense == labels).mean(0)
  percent = lambda part: f'{100 * np.mean(part):.2f}' if np.size(part) else ''
  return dict(
      sparsity=str(share), networks=str(len(answers)), test=percent(answers == labels),
      deviation=f'{100 * np.std((answers == labels).mean(1), ddof=1):.2f}', pies=str(pie.sum()),
      dense_on_pies=percent(dense_right[pie]), dense_elsewhere=percent(dense_right[~pie]),
      changed_classes=' '.join(str(c) for c in changed(answers, dense, labels)),
      worst_class=str(change.argmin()), worst_class_change=f'{100 * change.min():.2f}',
      seeds=FLAGS.seeds, flags=study.words(BASE), processor=result['processor'],
      git_revision=result['git_revision'])


def by_class(answers, labels):
  """Share of right answers f64[networks, classes]."""
  import numpy as np
  right = answers == labels
  return np.stack([right[:, labels == c].mean(1) for c in range(labels.max() + 1)], 1)


def class_changes(answers, dense, labels):
  return by_class(answers, labels).mean(0) - by_class(dense, labels).mean(0)


def changed(answers, dense, labels):
  """Classes whose change, less that of all examples, differs from none by Welch's t-test."""
  from scipy import stats
  relative = lambda said: by_class(said, labels) - (said == labels).mean(1, keepdims=True)
  found = stats.ttest_ind(relative(answers), relative(dense), equal_var=False).pvalue
  return [c for c, p in enumerate(found) if p < 0.05]


def picture(images, labels, said, pies):
  """Changes of the classes at each sparsity, and twelve of the examples that were forgotten."""
  import numpy as np
  from matplotlib import figure
  drawing = figure.Figure(figsize=(9, 3.4), layout='constrained')
  left, right = drawing.subfigures(1, 2, width_ratios=(1.2, 1))
  axes = left.subplots()
  for i, share in enumerate(SPARSITIES[1:]):
    change = 100 * class_changes(said[share], said[0.0], labels)
    axes.bar(np.arange(len(change)) + 0.27 * (i - 1), change, 0.25, label=f'{share:.0%} sparse')
  axes.set(xlabel='class', ylabel='change of test accuracy (points)',
           xticks=range(labels.max() + 1))
  axes.legend(fontsize='small')
  dense, sparse = (most_frequent(said[share]) for share in (0.0, SPARSITIES[-1]))
  shown = np.flatnonzero(pies[SPARSITIES[-1]])[:12]
  for axis, example in zip(right.subplots(3, 4).flat, shown):
    axis.imshow(images[example].squeeze(), cmap='gray_r')
    axis.set_title(f'{labels[example]}: {dense[example]} to {sparse[example]}', fontsize=7)
  for axis in right.axes:
    axis.axis('off')
  right.suptitle(f'label: answer of dense to answer at {SPARSITIES[-1]:.0%}', fontsize=8)
  return drawing


if __name__ == '__main__':
  study.define('runs/what_networks_forget', RESULTS / 'what_networks_forget.csv',
               ','.join(map(str, range(10))))
  sys.exit(flags.run(main, __doc__, study.OWN))
