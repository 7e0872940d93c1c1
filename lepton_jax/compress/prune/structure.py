"""What goes at once: single entries, all but N of every M neighbours, or channels (channels.py).

A structure turns scores of entries into units that can go, and units that stay into masks.
"""

import functools
import re
import typing

import numpy as np

from lepton_jax import registry
from lepton_jax.compress.prune import channels
from lepton_jax.compress.prune.masks import Units
from lepton_jax.errors import UserError


class Structure(typing.NamedTuple):
  """One structure of one network. A key names what gives up units: a kernel or a group of channels.

  Attributes:
    kernels: {key: names of the kernels that are scored for it, the first gives it its shape}.
    reasons: {kernel: why nothing of it can go}.
    share: of a unit's entries, how many go with it, 0 to 1.
    units: (score, Evidence, {array: mask before} or None) -> {key: Units}.
    masks: ({key: Units}, {key: how many are to be gone}) -> {array: mask of what stays}.
    masked: keys -> names of the parameters that get masks.
    allowed: (key, its units, how many should go) -> how many may.
  """
  kernels: dict
  reasons: dict
  share: float
  units: typing.Callable
  masks: typing.Callable
  masked: typing.Callable = tuple
  allowed: typing.Callable = lambda key, units, count: count


def structure(options, setting):
  """The Structure that --prune_structure names; raises UserError for a name that is not allowed."""
  name = options.prune_structure
  if name == 'channels':
    return Structure(**channels.parts(setting.coupling(), options.prune_round))
  if options.prune_round > 1:
    raise UserError(f'--prune_round={options.prune_round}: it rounds the widths that '
                    f'--prune_structure=channels leaves')
  if options.prune_score in registry.CHANNEL_SCORES.names():
    raise UserError(f'--prune_score={options.prune_score} ranks channels; it takes '
                    f'--prune_structure=channels')
  return of_kernels(setting, pattern(name))


class Pattern(typing.NamedTuple):
  """Units within one kernel.

  Attributes:
    share: as a Structure's.
    units: (score[...] of entries, mask before or None) -> Units.
    mask: (Units, bool of those that stay) -> bool[...], the entries that stay.
    refuses: (kernel name, shape) -> why it cannot have this pattern, or None.
  """
  share: float
  units: typing.Callable
  mask: typing.Callable
  refuses: typing.Callable = lambda name, shape: None


def pattern(name):
  """The Pattern called 'none' or 'N:M'; raises UserError for any other name."""
  if name == 'none':
    return Pattern(1.0, Units.of, lambda units, stays: stays.reshape(units.shape))
  found = re.fullmatch(r'(\d+):(\d+)', name)
  if not found or not 0 < int(found[1]) < int(found[2]):
    raise UserError(f'--prune_structure={name}: allowed are none, channels, and N:M with '
                    f'0 < N < M, such as 2:4')
  return n_of_m(int(found[1]), int(found[2]))


def of_kernels(setting, pattern):
  """The Structure of a Pattern in every kernel."""
  refused = {name: pattern.refuses(name, kernel.shape) for name, kernel in setting.kernels.items()}
  return Structure(
      kernels={name: (name,) for name, why in refused.items() if not why},
      reasons={name: why for name, why in refused.items() if why}, share=pattern.share,
      units=functools.partial(units_of_kernels, pattern),
      masks=functools.partial(chosen_masks, pattern))


def units_of_kernels(pattern, score, evidence, before):
  before = before or {}
  return {name: pattern.units(np.asarray(one), before.get(name))
          for name, one in registry.SCORES.get(score)(evidence).items()}


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

  def units(score, before=None):
    groups = grouped(score if before is None else np.where(before, score, -np.inf))
    lost = losing(groups)
    goes = lost & np.isfinite(groups)
    worth = np.where(goes, groups, 0).sum(-1)
    return Units.of(worth, goes.any(-1), shape=score.shape, entries=lost)

  def mask(units, stays):
    lost = units.entries & ~stays.reshape(units.entries.shape[:-1])[..., None]
    flat = lost.reshape(*lost.shape[:-2], -1)[..., :units.shape[-2]]
    return ~np.moveaxis(flat, -1, -2)

  def refuses(name, shape):
    if name.endswith('embedding'):
      return f'{n}:{m} needs the inputs of a matrix product; a table of vectors has none'
    return f'{n}:{m} leaves out none of {shape[-2]} inputs' if shape[-2] <= n else None

  return Pattern((m - n) / m, units, mask, refuses)


def chosen_masks(pattern, units, counts):
  """{kernel: bool mask of what stays} where of each kernel counts[kernel] units are gone."""
  return {name: pattern.mask(one, one.staying(counts[name])) for name, one in units.items()}
