"""Dropout in recurrent networks: one mask a sequence against a mask a step.

Question: how should a recurrent network be regularised by dropout: not at all, on its inputs and
  outputs only, or on its state as well by one mask for the whole sequence?
Paper: Gal and Ghahramani, arXiv:1512.05287, table 1 and figure 3: LSTM language models on the Penn
  Treebank and a sentiment task; with the state's mask they overfit least: test perplexity 79.7 of a
  variational LSTM of medium size, 82.7 of one with dropout between layers only (arXiv:1409.2329).
Command: ./launch.sh papers.recurrent_dropout
Expected: experiments/results/papers/recurrent_dropout.csv and .png as committed.
Cost: 15 minutes on 2 cores.

Ours is a task where an LSTM overfits at once: 1,000 digits of MNIST read row by row, 3 seeds, 60
epochs. `state` keeps one mask a sequence, as in the paper; `output` drops what the last step says.
"""

from experiments.tables import paper
from experiments.tables.study import Study

RATES = (0.1, 0.25, 0.5)
SETTINGS = {('none', 0): {}}
for rate in RATES:
  SETTINGS |= {('output', rate): dict(dropout=rate), ('state', rate): dict(recurrent_dropout=rate),
               ('both', rate): dict(dropout=rate, recurrent_dropout=rate)}
BASE = dict(model='lstm_classifier', epochs=60, learning_rate=3e-3, train_limit=1000)
NETWORK = 'LSTM, digits'
PUBLISHED = {('output', 0.5): 'perplexity 82.7 (PTB)', ('both', 0.5): 'perplexity 79.7 (PTB)'}
PAPER = paper.Paper('recurrent_dropout', {NETWORK: Study(BASE, SETTINGS)}, 'dropout rate',
                    {NETWORK: PUBLISHED})

if __name__ == '__main__':
  paper.run(PAPER, __doc__)
