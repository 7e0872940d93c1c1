"""What is the state of neural network pruning? Several ways at several sparsities, over seeds.

Question: after the same fine-tuning of the same trained network, how do magnitude, gradient and
  random pruning compare, by compression and by multiply-accumulates saved?
Paper: Blalock et al., arXiv:2003.03033 (ShrinkBench), section 7: five ratios from 2 to 32, three
  seeds, one-shot pruning and fine-tuning; random pruning as a baseline; both compression
  and theoretical speed-up; no single order of methods holds at every ratio.
Command: ./launch.sh papers.pruning_state
Expected: experiments/results/papers/pruning_state.csv and .png as committed.
Cost: 4 minutes on 2 cores.

The paper has ResNets on CIFAR-10 and ImageNet; ours is LeNet-5 on 5,000 digits of MNIST: 15 epochs,
then pruned at once and tuned for 5. `global` ranks all kernels together, `uniform` each by itself.
The speed-up is the one that a computer without cost for zeros would have.
"""

from experiments.tables import paper
from experiments.tables.study import Study

WAYS = {'magnitude, global': dict(prune_score='magnitude', prune_allocation='global'),
        'magnitude, uniform': dict(prune_score='magnitude', prune_allocation='uniform'),
        'gradient, global': dict(prune_score='saliency', prune_allocation='global'),
        'gradient, uniform': dict(prune_score='saliency', prune_allocation='uniform'),
        'random, uniform': dict(prune_score='random', prune_allocation='uniform')}
RATIOS = (2, 8, 32)
SETTINGS = {(way, ratio): dict(options, prune_sparsity=1 - 1 / ratio)
            for way, options in WAYS.items() for ratio in RATIOS}
BASE = dict(model='lenet5', epochs=5, learning_rate=3e-4,
            prune_schedule='one_shot', prune_begin=0.0)
PAPER = paper.Paper(
    'pruning_state', {'LeNet-5, digits': Study(BASE, SETTINGS, dict(
        epochs=15, learning_rate=1e-3, prune_schedule='cubic', prune_begin=0.1))},
    'compression ratio of the kernels', log=True)

if __name__ == '__main__':
  paper.run(PAPER, __doc__)
