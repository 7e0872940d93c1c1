"""Rigging the lottery: connections that grow where the gradient is large.

Question: at equal sparsity from the first step to the last, is it worth moving connections while
  the network trains, and to where?
Paper: Evci et al., arXiv:1911.11134, figure 2 and table 2: ResNet-50 on ImageNet at 80 and 90 %
  by the Erdos-Renyi-Kernel allocation (its number for SET is of a uniform one); static < SET <
  RigL.
Command: ./launch.sh papers.rigl --data_dir=DIR
Expected: experiments/results/papers/rigl.csv and .png as committed.
Cost: two hours on 2 cores; 3 minutes on an H200, the 21 runs side by side.

Ours is ResNet-8 on CIFAR-10 for 20 epochs, a network of 77,850 parameters, at 90 and 98 %: 98 % of
so small a network leaves 1,600 weights. The paper trains 5 times longer for its best numbers.
"""

from experiments.tables import paper
from experiments.tables.compression import CIFAR
from experiments.tables.study import Study

GROWING = dict(prune_allocation='erk', prune_end=0.75)
METHODS = dict(
    static=dict(prune_schedule='one_shot', prune_begin=0.0, prune_score='random',
                prune_allocation='erk'),
    SET=dict(prune_schedule='set', **GROWING), RigL=dict(prune_schedule='rigl', **GROWING))
SETTINGS = {('dense', 100): {},
            **{(name, left): dict(prune_sparsity=1 - left / 100, **options)
               for left in (10, 2) for name, options in METHODS.items()}}
PUBLISHED = {('dense', 100): '76.8 (ResNet-50)', ('static', 10): '67.7 (ResNet-50)',
             ('SET', 10): '69.6 (ResNet-50)', ('RigL', 10): '73.0 (ResNet-50)'}
NETWORK = 'ResNet-8, CIFAR-10'
STUDIES = {NETWORK: Study(dict(CIFAR, model='resnet8', epochs=20), SETTINGS)}
PAPER = paper.Paper('rigl', STUDIES, 'weights that remain (%)', {NETWORK: PUBLISHED}, log=True)

if __name__ == '__main__':
  paper.run(PAPER, __doc__)
