"""What goes at once: single entries, or all but N of every M neighbours (N:M).

A structure turns the scores of a kernel's entries into scores of units, and a choice of units into
the entries that are masked.
"""

import re
import typing

import numpy as np

from lepton_jax.compress.prune import masks
from lepton_jax.errors import UserError


class Structure(typing.NamedTuple):
  """One structure.

  Attributes:
    share: of a unit's entries, how many go with it, 0 to 1.
    units: score[...] of entries -> score of units, an array.
    entries: (score[...] of entries, bool of units) -> bool[...], the entries that go.
    refuses: (kernel name, shape) -> why it cannot have this structure, or None.
  """
  share: float
  units: typing.Callable
  entries: typing.Callable
  refuses: typing.Callable = lambda name, shape: None


def structure(name):
  """The Structure called 'none' or 'N:M'; raises UserError for any other name."""
  if name == 'none':
    return Structure(1.0, np.asarray, lambda score, units: units)
  pattern = re.fullmatch(r'(\d+):(\d+)', name)
  if not pattern or not 0 < int(pattern[1]) < int(pattern[2]):
    raise UserError(f'--prune_structure={name}: allowed are none, and N:M with 0 < N < M, such as '
                    f'2:4')
  return n_of_m(int(pattern[1]), int(pattern[2]))


def n_of_m(n, m):
  """At most `n` of `m` neighbours along the input axis, the last but one (arXiv:2104.08378).

  A kernel[..., in, out] whose inputs do not divide by M is filled up with zeros, as hardware does.
  """
  def grouped(score):
    """[groups..., m] of a score[..., in, out]; the filling is lower than all."""
    score = np.moveaxis(np.asarray(score, np.float64), -2, -1)
    missing = -score.shape[-1] % m
    filled = np.pad(score, [(0, 0)] * (score.ndim - 1) + [(0, missing)], constant_values=-np.inf)
    return filled.reshape(*filled.shape[:-1], -1, m)

  def losing(groups):
    """bool[groups..., m]: all but the n highest; among equal ones the first go."""
    order = np.argsort(groups, -1, kind='stable')
    lost = np.zeros(groups.shape, bool)
    np.put_along_axis(lost, order[..., :m - n], True, -1)
    return lost

  def units(score):
    groups = grouped(score)
    goes = losing(groups) & np.isfinite(groups)
    return np.where(goes.any(-1), np.where(goes, groups, 0).sum(-1), -np.inf)

  def entries(score, chosen):
    groups = grouped(score)
    lost = losing(groups) & chosen[..., None]
    flat = lost.reshape(*lost.shape[:-2], -1)[..., :np.shape(score)[-2]]
    return np.moveaxis(flat, -1, -2)

  def refuses(name, shape):
    if name.endswith('embedding'):
      return f'{n}:{m} needs the inputs of a matrix product; a table of vectors has none'
    return f'{n}:{m} leaves out none of {shape[-2]} inputs' if shape[-2] <= n else None

  return Structure((m - n) / m, units, entries, refuses)


def chosen_masks(kind, scores, counts):
  """{kernel: bool mask of what stays} where each kernel gives up counts[kernel] units."""
  found = {}
  for name, score in scores.items():
    units = masks.lowest(kind.units(score), counts[name])
    found[name] = ~kind.entries(score, units)
  return found
