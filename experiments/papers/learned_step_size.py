"""Learned step size quantisation against PACT and DoReFa, at two to four bits.

Question: is a step that is learned by its own gradient better than a clipping value that is learned
  (PACT) and than weights that are squeezed by tanh (DoReFa)?
Paper: Esser et al., arXiv:1902.08153, table 1: ResNet-18 on ImageNet, 70.5 % dense; LSQ 67.6, 70.2
  and 71.1 % at 2, 3 and 4 bits, PACT 64.4, 68.1 and 69.2 %; DoReFa, of which PACT takes its
  weights, 62.6, 67.5 and 68.1 % as arXiv:1805.06085 has it.
Command: ./launch.sh papers.learned_step_size
Expected: experiments/results/papers/learned_step_size.csv and .png as committed.
Cost: 6 minutes on 2 cores.

Ours is ResNet-8 on 5,000 digits of MNIST: 12 epochs dense, then 6 rounded. As in the paper the
first and the last layer stay at 8 bits. DoReFa clips inputs to a range that is not learned: ours
is the mean of batches' largest values, set anew at each epoch.
"""

from experiments.tables import paper
from experiments.tables.study import Study

METHODS = dict(LSQ=dict(quantize_weights='lsq', quantize_inputs='lsq_plus'),
               PACT=dict(quantize_weights='dorefa', quantize_inputs='pact'),
               DoReFa=dict(quantize_weights='dorefa', quantize_inputs='batch_mean'))
SETTINGS = {('dense', 32): {}, **{
    (name, bits): dict(options, quantize_layers=f'stem|head=8/8;.*={bits}/{bits}')
    for name, options in METHODS.items() for bits in (2, 3, 4)}}
PUBLISHED = {('dense', 32): '70.5 (ResNet-18)'} | {
    (name, bits): f'{accuracy} (ResNet-18)'
    for name, accuracies in dict(LSQ=(67.6, 70.2, 71.1), PACT=(64.4, 68.1, 69.2),
                                 DoReFa=(62.6, 67.5, 68.1)).items()
    for bits, accuracy in zip((2, 3, 4), accuracies)}
BASE = dict(model='resnet8', optimizer='nesterov', weight_decay=5e-4, schedule='one_cycle',
            batch_size=64, augment_crop=2, epochs=6, learning_rate=0.02)
NETWORK = 'ResNet-8, digits'
STUDIES = {NETWORK: Study(BASE, SETTINGS, dict(epochs=12, learning_rate=0.1))}
PAPER = paper.Paper('learned_step_size', STUDIES, 'bits of weights and inputs',
                    {NETWORK: PUBLISHED}, log=True)

if __name__ == '__main__':
  paper.run(PAPER, __doc__)
