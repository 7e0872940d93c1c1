"""Cross-layer equalisation: channels of unlike size are made alike, and the network answers alike.

A channel that is divided by s where it is made and multiplied by s where it is read leaves the
answers as they were, as long as all between is linear for positive factors: ReLU, pooling, sums
(arXiv:1906.04721). One step for all inputs of a layer, and one for all weights into an output, then
fit every channel. Which arrays a channel lies in is read off the traced program; whether all
between is so linear is tried.
"""

import numpy as np

SAME = 1e-4  # of the largest answer: how far answers may move, by the order of sums
MOST = 16.0  # factor of a channel


def equalized(params, groups, largest, answers):
  """Parameters {name: array} with channels made alike.

  `groups` are the coupling's, {name: Group}; `largest` is {layer: f[features]}, the largest sizes
  that it reads; `answers` are the outputs of some examples, a function of the parameters.
  """
  wanted = answers(params)
  close = SAME * np.abs(wanted).max()
  for group in groups.values():
    factors = balance(params, group, largest)
    if factors is None:
      continue
    new = scaled(params, group, factors)
    if np.abs(answers(new) - wanted).max() <= close:
      params = new
  return params


def balance(params, group, largest):
  """f[channels] that make the largest input and the largest weight of a channel alike, or None.

  Their geometric mean is 1.
  """
  inputs = weights = np.zeros(group.channels)
  for name, axis, places in members(params, group):
    layer = name.rpartition('/')[0]
    if reads(params[name], name, axis) and layer in largest:
      rows = np.abs(np.moveaxis(np.asarray(params[name]), axis, 0))
      rows = rows.reshape(len(rows), -1).max(1)
      inputs = np.maximum(inputs, largest[layer][places].max(1))
      weights = np.maximum(weights, rows[places].max(1))
  there = (inputs > 0) & (weights > 0)
  if not there.any():
    return None
  factors = np.ones(group.channels)
  factors[there] = np.sqrt(inputs[there] / weights[there])
  factors[there] /= np.exp(np.log(factors[there]).mean())
  return np.clip(factors, 1 / MOST, MOST)


def scaled(params, group, factors):
  """Parameters with a group's channels divided where they are made, multiplied where they are read.

  A norm makes the channels that come out of it, whatever made those that go in.
  """
  of_norm = lambda name: f'{name.rpartition("/")[0]}/scale' in params
  normed, new = any(map(of_norm, group.places)), dict(params)
  for name, axis, places in members(params, group):
    array, kind = np.asarray(new[name]), name.rpartition('/')[2]
    if reads(array, name, axis):
      change = factors
    elif of_norm(name) == normed and kind in ('kernel', 'scale', 'bias'):
      change = 1 / factors
    else:
      continue
    along = np.ones(array.shape[axis], array.dtype)
    along[places] = change[:, None]
    new[name] = array * along.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
  return new


def members(params, group):
  """(array, axis, int[channels, n]) of a group's places in parameters."""
  return [(name, axis, places) for name, found in group.places.items() if name in params
          for axis, places in found]


def reads(array, name, axis):
  """Whether a kernel's channels along an axis are those that its layer reads."""
  return name.rpartition('/')[2] == 'kernel' and axis == array.ndim - 2
