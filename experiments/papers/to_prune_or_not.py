"""To prune, or not to prune: a large sparse network against a small dense one.

Question: at an equal number of weights that are not zero, is it better to prune a large network or
  to train a small one?
Paper: Zhu and Gupta, arXiv:1710.01878, tables 1 to 3: MobileNet on ImageNet, 70.6 % dense, 69.5 %
  at 50 % and 67.7 % at 75 % sparsity, against 68.4 and 63.7 % of dense ones of width 0.75 and 0.5;
  LSTM language models on the Penn Treebank alike.
Command: ./launch.sh papers.to_prune_or_not
Expected: experiments/results/papers/to_prune_or_not.csv and .png as committed.
Cost: 10 minutes on 2 cores.

Ours are digits, 5,000 of MNIST: LeNet-5, and an LSTM that reads the rows. Widths of the small ones
are such that they have at least as many weights as the sparse one, at most half as many more. The
axis counts all parameters that are not zero; the schedule is the paper's cubic one.
"""

from experiments.tables import paper
from experiments.tables.study import Study

SPARSE = (0.5, 0.75, 0.875, 0.95, 0.98)
LARGE = {('large, sparse', 0): {}, **{('large, sparse', share): dict(prune_sparsity=share)
                                     for share in SPARSE}}
# Weights grow by about the square of the width.
WIDTHS = dict(zip(SPARSE, (0.71, 0.5, 0.36, 0.23, 0.15)))
HIDDEN = dict(zip(SPARSE, (88, 62, 43, 26, 15)))  # of 128


def small(option, sizes):
  return {('small, dense', 0): {}, **{('small, dense', share): {option: size}
                                     for share, size in sizes.items()}}


STUDIES = {
    'LeNet-5': Study(dict(model='lenet5', epochs=15), LARGE | small('width', WIDTHS)),
    'LSTM': Study(dict(model='lstm_classifier', epochs=15, learning_rate=3e-3),
                  LARGE | small('hidden', HIDDEN))}
PUBLISHED = {setting: f'{accuracy} (MobileNet)' for setting, accuracy in {
    ('large, sparse', 0): 70.6, ('large, sparse', 0.5): 69.5, ('large, sparse', 0.75): 67.7,
    ('small, dense', 0.5): 68.4, ('small, dense', 0.75): 63.7}.items()}


BIASES = {'LeNet-5': 580, 'LSTM': 522}  # of the large networks; they are not pruned


def weights_left(line):
  biases = BIASES[line['study']]
  return (float(line['num_parameters']) - biases) * (1 - float(line['sparsity'])) + biases


PAPER = paper.Paper('to_prune_or_not', STUDIES, 'parameters that are not zero',
                    {'LeNet-5': PUBLISHED}, weights_left, log=True, setting='sparsity, or as small')

if __name__ == '__main__':
  paper.run(PAPER, __doc__)
