"""Writes recurrent.npz: outputs of PyTorch's recurrent networks, for test_sequences.py.

They are those of nn.RNN, nn.GRU and nn.LSTM, with their weights.

Two layers, both directions, sequences of unequal length. Run with PyTorch installed:
python tests/golden/make_recurrent.py
"""

import pathlib

import numpy as np

KINDS = ('elman', 'gru', 'lstm')
LENGTHS = (7, 3, 1, 5)
INPUT, HIDDEN = 3, 4


def reference(kind):
  """{name: array} of one PyTorch network.

  It has the weights by PyTorch's names, 'x', 'outputs' [batch, time, 2 * hidden] and 'last'.
  """
  import torch
  torch.manual_seed(0)
  network = dict(elman=torch.nn.RNN, gru=torch.nn.GRU, lstm=torch.nn.LSTM)[kind](
      INPUT, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)
  x = torch.randn(len(LENGTHS), max(LENGTHS), INPUT)
  packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(LENGTHS), batch_first=True,
                                                   enforce_sorted=False)
  with torch.no_grad():
    outputs, states = network(packed)
  outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True)
  last = states[0] if kind == 'lstm' else states
  weights = {name: p.detach().numpy() for name, p in network.named_parameters()}
  return weights | dict(x=x.numpy(), outputs=outputs.numpy(), last=last.numpy())


if __name__ == '__main__':
  arrays = {f'{kind}/{name}': a for kind in KINDS for name, a in reference(kind).items()}
  np.savez(pathlib.Path(__file__).with_name('recurrent.npz'), **arrays)
