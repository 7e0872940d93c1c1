"""Distilling the knowledge in a network: a small network learns from a large one's answers.

Question: how much nearer does a small network come to a large one if it learns the large one's
  answers, and at what temperature?
Paper: Hinton et al., arXiv:1503.02531, section 3: MNIST, 67 test errors of a network of two layers
  of 1,200 with dropout and jittered images, 146 of a plain one of 800, 74 of that one distilled at
  temperature 20; with 30 units a layer 2.5 to 4 works better than higher and lower ones.
Command: ./launch.sh papers.distillation --data_dir=DIR
Expected: experiments/results/papers/distillation.csv and .png as committed.
Cost: 6 minutes on 2 cores.

Ours: the teacher is two layers of 512 units with dropout, its images shifted by up to 2 pixels; the
student two layers of 30 units on images that are not. The paper's 30 units have no numbers.
"""

from experiments.tables import paper
from experiments.tables.study import Study

MNIST = dict(dataset='mnist', model='mlp', batch_size=128)
TEACHER = dict(width=4.0, dropout=0.2, augment_crop=2, epochs=10)
STUDENT = dict(width=0.234, epochs=10, learning_rate=3e-3)
TEMPERATURES = (1, 2, 4, 8, 20)
PAPER = paper.Paper('distillation', {'two layers of 30, MNIST': Study(
    MNIST | STUDENT, {('alone', 1): dict(teacher=''), **{('distilled', t): dict(
        distill=0.9, distill_temperature=t) for t in TEMPERATURES}}, TEACHER, 'teacher')},
    'temperature', log=True)

if __name__ == '__main__':
  paper.run(PAPER, __doc__)
