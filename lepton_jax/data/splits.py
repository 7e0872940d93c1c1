"""Seeded splits, stratified by class where there are classes."""

import numpy as np

from lepton_jax.errors import UserError


def _seeded(seed):
  return np.random.Generator(np.random.Philox(seed))


def hold_out(label, fraction, seed, by_class=True):
  """(kept rows, held-out rows), each sorted; round(fraction * n) rows are held out.

  They are shared fairly over the classes: each class gives its fraction rounded down, and the
  classes with the largest remainders one more.
  """
  count = round(fraction * len(label))
  order = _seeded(seed).permutation(len(label))
  if by_class:
    values, sizes = np.unique(label, return_counts=True)
    share = sizes * (count / max(len(label), 1))
    take = np.floor(share + 1e-9).astype(int)
    for i in np.argsort(-(share - take), kind='stable')[:count - take.sum()]:
      take[i] += 1
    shuffled = label[order]
    held = order[:0]
    if len(values):
      held = np.concatenate([order[shuffled == v][:t] for v, t in zip(values, take)])
  else:
    held = order[:count]
  held = np.sort(held)
  return np.setdiff1d(np.arange(len(label)), held), held


def fold(label, folds, index, seed, by_class=True):
  """(kept rows, validation rows) of fold `index` of `folds`.

  The folds are disjoint and cover all rows together.
  """
  if folds > len(label):
    raise UserError(f'--folds={folds}: there are only {len(label)} examples')
  order = _seeded(seed).permutation(len(label))
  if by_class:  # dealt out class after class, like cards
    order = order[np.argsort(label[order], kind='stable')]
  held = np.sort(order[index::folds])
  return np.setdiff1d(np.arange(len(label)), held), held
