"""Pruning as a method of compression: score, structure, allocation and schedule put together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import registry, trees
from lepton_jax.compress import rules
from lepton_jax.compress.method import Method, part, placed, replaced, under
from lepton_jax.compress.prune import masks, scores
from lepton_jax.compress.prune import structure as structures
from lepton_jax.errors import UserError

NAME, MASKS, MOVEMENT = 'prune', 'masks', 'movement'


def make(config, setting):
  """The Method of a configuration; None where nothing is pruned and no zeros have to stay."""
  options = config.prune
  structure = structures.structure(options.prune_structure)
  fixed = rules.parse(options.prune_layers, tuple(setting.kernels), 'prune_layers', share)
  reaches = reached(options, config.training.freeze, setting, structure, fixed)
  ranked = [name for name, row in reaches.items() if 'pruned' in row]
  masked = [name for name in setting.kernels if name in ranked or name in setting.zeros]
  if not masked:
    return None
  check(options)
  straight = options.prune_gradient == 'straight_through'
  plan = registry.PRUNE_SCHEDULES.get(options.prune_schedule)(options, setting.total_steps)

  def init(params, hparams):
    del hparams
    start = {n: params[n] != 0 if n in setting.zeros else jnp.ones(params[n].shape, bool)
             for n in masked}
    held = under(MASKS, start)
    if ranked and options.prune_score == 'movement':
      held |= under(MOVEMENT, {name: jnp.zeros_like(params[name]) for name in ranked})
    return {}, held

  def after(params, gradients, held):
    moved = {name: total - params[name] * gradients[name]
             for name, total in part(held, MOVEMENT).items()}
    return held | under(MOVEMENT, moved)

  change = masks.apply_straight_through if straight else masks.apply
  return Method(
      name=NAME, reaches=lambda options: reaches, init=init,
      weights=lambda params, learned, held, hparams: change(params, part(held, MASKS)),
      finish=lambda params, held: params if straight else masks.apply(params, part(held, MASKS)),
      after=after if options.prune_score == 'movement' and ranked else None,
      hooks=(functools.partial(hooks, structure, plan, ranked, fixed, setting.ticket) if ranked
             else lambda *_: []),
      settled=plan.steps[-1] + 1 if ranked else 0,
      strengths=functools.partial(check_share, structure, fixed),
      describe=functools.partial(describe, ranked) if ranked else lambda *_: {})


def describe(ranked, params, held):
  """The share of zeros in the pruned kernels."""
  kept = masks.apply(params, part(held, MASKS))
  return dict(sparsity=masks.sparsity({name: kept[name] for name in ranked}))


def masked_names(weights):
  """Names of the kernels that saved weights have masks for."""
  return frozenset(part(trees.named(weights['held'].get(NAME, {})), MASKS))


def without_dead(weights):
  """Saved weights with zeros where their masks are, if dead weights were kept beside them."""
  found = part(trees.named(weights['held'].get(NAME, {})), MASKS)
  return dict(weights, params=masks.applied(weights['params'], found)) if found else weights


def check(options):
  """Raises UserError for options that do not go together."""
  dynamic = options.prune_schedule in ('set', 'rigl')
  if dynamic and options.prune_structure != 'none':
    raise UserError(f'--prune_schedule={options.prune_schedule} exchanges single weights; it takes '
                    f'--prune_structure=none')
  if options.prune_ticket and (options.prune_schedule, options.prune_begin) != ('one_shot', 0):
    raise UserError('--prune_ticket prunes before the first step; it takes '
                    '--prune_schedule=one_shot --prune_begin=0')
  if options.prune_score == 'movement' and (dynamic or not options.prune_begin):
    raise UserError('--prune_score=movement sums up what updates did; it takes a --prune_begin '
                    'above 0, and no schedule that prunes at once')
  if dynamic and options.prune_gradient != 'masked':
    raise UserError(f'--prune_schedule={options.prune_schedule} brings weights back itself; it '
                    f'takes --prune_gradient=masked')


def share(text):
  """The sparsity of a rule."""
  value = float(text)
  if not 0 <= value < 1:
    raise ValueError('a sparsity is at least 0 and below 1')
  return value


def reached(options, freeze, setting, structure, fixed):
  """{kernel: what pruning does with it}; raises UserError where it is on and reaches none."""
  if not options.prune_sparsity and not fixed:
    return {}
  dense = trees.matching(options.prune_exclude, setting.kernels, 'prune_exclude')
  found = {}
  for name in setting.kernels:
    why = structure.refuses(name, setting.kernels[name].shape)
    if name in dense:
      why = f'excluded by --prune_exclude={options.prune_exclude}'
    elif name in setting.frozen:
      why = f'frozen by --freeze={freeze}'
    elif not options.prune_sparsity and name not in fixed:
      why = 'no rule of --prune_layers matches'
    found[name] = dict(prune_reason=why) if why else dict(pruned=options.prune_structure)
  if not any('pruned' in row for row in found.values()):
    raise UserError(f'--prune_exclude={options.prune_exclude!r} --freeze={freeze!r} leave no '
                    f'kernel to prune')
  return found


def check_share(structure, fixed, config):
  """Raises UserError for a sparsity that the structure cannot have; it adds no strength."""
  options = config.prune
  if max(options.prune_sparsity, *fixed.values(), 0) > structure.share:
    raise UserError(f'--prune_sparsity={options.prune_sparsity} --prune_layers='
                    f'{options.prune_layers!r}: --prune_structure={options.prune_structure} leaves '
                    f'out {structure.share:g} at most')
  return {}


def hooks(structure, plan, ranked, fixed, ticket, config, tools):
  """The update of masks before each of the plan's steps."""
  straight = config.prune.prune_gradient == 'straight_through'

  def update(state, step):
    present = part(state.held[NAME], MASKS)
    before = {name: np.asarray(present[name]) for name in ranked}
    scores_of = worth(config, tools, ranked, ticket, state, step)
    if not straight:  # what is gone ranks below all
      scores_of = {name: np.where(before[name], np.asarray(score), -np.inf)
                   for name, score in scores_of.items()}
    if plan.grows_by and step:
      kept = exchanged(plan, tools, scores_of, before, state, step, config.training.seed)
    else:
      counts = units_to_go(config.prune, structure, plan.share(step), fixed, scores_of)
      kept = structures.chosen_masks(structure, scores_of, counts)
      if not straight:
        kept = {name: mask & before[name] for name, mask in kept.items()}
    grown = {name: kept[name] & ~before[name] for name in ranked if plan.grows_by}
    return with_masks(state, kept, grown, straight)

  return [(lambda step: step in plan.steps, update)]


def worth(config, tools, ranked, ticket, state, step):
  """{kernel: score of its entries}."""
  named = trees.named(state.params) | ticket
  evidence = scores.Evidence(
      {name: named[name] for name in ranked}, state, tools, step, config.prune.prune_batches,
      jax.random.fold_in(jax.random.key(config.training.seed), step),
      part(state.held[NAME], MOVEMENT))
  return registry.SCORES.get(config.prune.prune_score)(evidence)


def units_to_go(options, structure, share, fixed, scores_of):
  """{kernel: how many of its units go} at a share of the final sparsity; what is gone stays so."""
  units = {name: structure.units(score) for name, score in scores_of.items()}
  counts = {name: round(share * fixed[name] / structure.share * units[name].size)
            for name in units if name in fixed}
  rest = {name: one for name, one in units.items() if name not in fixed}
  if rest:
    total = sum(one.size for one in rest.values())
    count = round(share * options.prune_sparsity / structure.share * total)
    gone = sum(int(np.isneginf(one).sum()) for one in rest.values())
    shapes = {name: scores_of[name].shape for name in rest}
    allocate = registry.ALLOCATIONS.get(options.prune_allocation)
    counts |= allocate(rest, shapes, max(gone, count))
  return {name: max(counts[name], int(np.isneginf(one).sum())) for name, one in units.items()}


def exchanged(plan, tools, scores_of, before, state, step, seed):
  """Masks as sparse as before: the lowest weights of each kernel give way to the most promising."""
  promise = growth(plan, tools, before, state, step, seed)
  kept = {}
  for name, alive in before.items():
    count = round(plan.exchange(step) * int(alive.sum()))
    rest = np.where(alive, scores_of[name], np.inf)
    staying = alive & ~masks.lowest(rest, count)
    kept[name] = staying | masks.lowest(np.where(staying, np.inf, -promise[name]), count)
  return kept


def growth(plan, tools, before, state, step, seed):
  """{kernel: what ranks weights that may come back}: a dense gradient's size, or chance."""
  if plan.grows_by == 'random':
    rng = np.random.default_rng([seed, step])
    return {name: rng.random(mask.shape) for name, mask in before.items()}
  gradient = tools.once('dense_gradient', jax.grad(tools.loss))
  found = trees.named(gradient(tools.counted(state), state, tools.batch(step)))
  return {name: np.abs(np.asarray(found[name])) for name in before}


def with_masks(state, kept, grown, straight):
  """The state under new masks; weights that come back start at 0, and so do their moments."""
  held = state.held[NAME]
  held = held | {name: placed(mask, held[name]) for name, mask in under(MASKS, kept).items()}
  state, all_masks = replaced(state, NAME, held=held), part(held, MASKS)
  if not straight:
    state = state.replace(params=masks.applied(state.params, all_masks))
    if state.ema:
      ema = masks.applied(state.ema['params'], all_masks)
      state = state.replace(ema=dict(state.ema, params=ema))
  if any(mask.any() for mask in grown.values()):
    state = state.replace(opt_state=without_moments(state.opt_state, grown))
  return state


def without_moments(opt_state, grown):
  """An optimizer's state with zeros at the entries that `grown` marks."""
  def cleared(name, leaf):
    kernel = name.rpartition('params/')[2]
    fits = kernel in grown and np.shape(leaf) == grown[kernel].shape
    return jnp.where(grown[kernel], 0, leaf) if fits else leaf

  return trees.map_named(cleared, opt_state)
