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
from lepton_jax.compress.quantize import weights
from lepton_jax.errors import UserError

NAME, MASKS, MOVEMENT, BEGUN = 'prune', 'masks', 'movement', 'begun'


def make(config, setting):
  """The Method of a configuration; None where nothing is pruned and no zeros have to stay."""
  options = config.prune
  on = bool(options.prune_sparsity or options.prune_layers)
  # What makes channels is found by tracing, for nothing where nothing is pruned.
  structure = structures.structure(options, setting) if on else None
  fixed = rules.parse(options.prune_layers, tuple(setting.kernels), 'prune_layers', share)
  reaches = reached(options, config.training.freeze, setting, structure, fixed) if on else {}
  keys = [key for key, kernels in structure.kernels.items()
          if all('pruned' in reaches[name] for name in kernels)] if on else []
  ranked = {key: structure.kernels[key] for key in keys}
  targets = structure.masked(keys) if on else ()
  masked = [*targets, *(name for name in setting.kernels
                        if name in setting.zeros and name not in targets)]
  if not masked:
    return None
  check(options, config.quantize)
  straight = options.prune_gradient == 'straight_through'
  plan = registry.PRUNE_SCHEDULES.get(options.prune_schedule)(options, setting.total_steps)
  scored = tuple(dict.fromkeys(name for kernels in ranked.values() for name in kernels))

  def init(params, hparams):
    del hparams
    start = {n: params[n] != 0 if n in setting.zeros else jnp.ones(params[n].shape, bool)
             for n in masked}
    held = under(MASKS, start)
    if straight:
      held |= under(BEGUN, {name: start[name] for name in masked if name in setting.zeros})
    if ranked and options.prune_score == 'movement':
      held |= under(MOVEMENT, {name: jnp.zeros_like(params[name]) for name in scored})
    return {}, held

  def after(params, gradients, held):
    moved = {name: total - params[name] * gradients[name]
             for name, total in part(held, MOVEMENT).items()}
    return held | under(MOVEMENT, moved)

  change = masks.apply_straight_through if straight else masks.apply
  update = functools.partial(hooks, structure, plan, ranked, scored, fixed, setting.ticket)
  return Method(
      name=NAME, reaches=lambda options: reaches, init=init,
      weights=lambda params, learned, held, hparams: change(params, part(held, MASKS)),
      finish=lambda params, held: params if straight else masks.apply(params, part(held, MASKS)),
      after=after if options.prune_score == 'movement' and ranked else None,
      hooks=update if ranked else lambda *_: [],
      settled=plan.steps[-1] + 1 if ranked else 0,
      strengths=functools.partial(check_share, structure, fixed) if on else lambda options: {},
      removes=options.prune_structure == 'channels',
      describe=functools.partial(describe, scored) if ranked else lambda *_: {})


def describe(scored, params, held):
  """The share of zeros in the pruned kernels."""
  kept = masks.apply(params, part(held, MASKS))
  return dict(sparsity=masks.sparsity({name: kept[name] for name in scored}))


def masked_names(weights):
  """Names of the kernels that saved weights have masks for."""
  return frozenset(masks_of(weights))


def masks_of(weights):
  """{array: mask} that saved weights hold."""
  return part(trees.named(weights['held'].get(NAME, {})), MASKS)


def without_full_masks(weights):
  """Saved weights without the masks that leave everything, and what else pruning held."""
  kept = {name: mask for name, mask in masks_of(weights).items() if not np.asarray(mask).all()}
  held = {name: arrays for name, arrays in weights['held'].items() if name != NAME}
  return dict(weights, held=held | ({NAME: under(MASKS, kept)} if kept else {}))


def without_dead(weights):
  """Saved weights with zeros where their masks are, if dead weights were kept beside them."""
  found = masks_of(weights)
  return dict(weights, params=masks.applied(weights['params'], found)) if found else weights


def check(options, quantize):
  """Raises UserError for options that do not go together."""
  bits = quantize.quantize_weight_bits or quantize.quantize_layers
  how = quantize.quantize_weights
  if options.prune_structure == 'channels' and bits and weights.counts_zeros(how):
    raise UserError(f'--prune_structure=channels with --quantize_weights={how}: its levels change '
                    f'when zeros leave; prune first, then quantise by --init_from')
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
  """{kernel: what pruning does with it}; raises UserError where it reaches none."""
  dense = trees.matching(options.prune_exclude, setting.kernels, 'prune_exclude')
  found = {}
  for name in setting.kernels:
    why = structure.reasons.get(name)
    if name in dense:
      why = f'excluded by --prune_exclude={options.prune_exclude}'
    elif name in setting.frozen:
      why = f'frozen by --freeze={freeze}'
    found[name] = dict(prune_reason=why) if why else dict(pruned=options.prune_structure)
  for kernels in structure.kernels.values():
    bound = next((name for name in kernels if 'prune_reason' in found[name]), None)
    for name in kernels:
      if bound is not None and name != bound:
        found[name] = dict(prune_reason=f'its channels are also those of {bound}, which is '
                                        f'{found[bound].get("prune_reason", "not pruned")}')
      elif bound is None and not options.prune_sparsity and not fixed.keys() & set(kernels):
        found[name] = dict(prune_reason='no rule of --prune_layers matches')
  lost = [name for name in fixed if 'pruned' not in found[name]]
  if fixed and len(lost) == len(fixed):
    raise UserError(f'--prune_layers={options.prune_layers!r} matches only kernels that are not '
                    f'pruned: {lost[0]}, {found[lost[0]]["prune_reason"]}')
  if not any('pruned' in row for row in found.values()):
    raise UserError(f'--prune_structure={options.prune_structure} --prune_exclude='
                    f'{options.prune_exclude!r} --freeze={freeze!r} leave no kernel to prune')
  return found


def check_share(structure, fixed, config):
  """Raises UserError for a sparsity that the structure cannot have; it adds no strength."""
  options = config.prune
  if max(options.prune_sparsity, *fixed.values(), 0) > structure.share:
    raise UserError(f'--prune_sparsity={options.prune_sparsity} --prune_layers='
                    f'{options.prune_layers!r}: --prune_structure={options.prune_structure} leaves '
                    f'out {structure.share:g} at most')
  return {}


def hooks(structure, plan, ranked, scored, fixed, ticket, config, tools):
  """The update of masks before each of the plan's steps."""
  straight = config.prune.prune_gradient == 'straight_through'
  shares = {key: fixed[name] for key, kernels in ranked.items()
            for name in [next((n for n in kernels if n in fixed), None)] if name}

  def update(state, step):
    left = not_gone(state.held[NAME], straight)
    found = evidence(config, tools, scored, ticket, state, step)
    units = structure.units(config.prune.prune_score, found, left)
    units = {key: units[key] for key in ranked}
    if plan.grows_by and step:
      before = {name: left[name] for name in ranked}
      kept = exchanged(plan, tools, units, before, state, step, config.training.seed)
      return with_masks(state, kept, {name: kept[name] & ~before[name] for name in kept}, straight)
    kept = structure.masks(units, to_go(config.prune, structure, plan.share(step), shares, units))
    kept = {name: mask & left[name] for name, mask in kept.items()}
    return with_masks(state, kept, {}, straight)

  return [(lambda step: step in plan.steps, update)]


def not_gone(held, straight):
  """{array: mask} of what may stay; straight through, only zeros that a run began with may not."""
  present = {name: np.asarray(mask) for name, mask in part(held, MASKS).items()}
  if not straight:
    return present
  begun = part(held, BEGUN)
  return {name: np.asarray(begun[name]) if name in begun else np.ones_like(mask)
          for name, mask in present.items()}


def evidence(config, tools, scored, ticket, state, step):
  """What scores may look at before a step: of a ticket, the weights that it ended with."""
  named = trees.named(state.params) | ticket
  if ticket:
    state = state.replace(params=trees.map_named(
        lambda name, leaf: placed(named[name], leaf), state.params))
  return scores.Evidence(
      {name: named[name] for name in scored}, named, state, tools, step,
      config.prune.prune_batches,
      jax.random.fold_in(jax.random.key(config.training.seed), step),
      part(state.held[NAME], MOVEMENT))


def to_go(options, structure, share, fixed, units):
  """{key: how many of its units go} at a share of the final sparsity; what is gone stays so."""
  counts = {key: round(share * fixed[key] / structure.share * units[key].total)
            for key in units if key in fixed}
  rest = {key: one for key, one in units.items() if key not in fixed}
  if rest:
    count = round(share * options.prune_sparsity / structure.share
                  * sum(one.total for one in rest.values()))
    allocate = registry.ALLOCATIONS.get(allocation(options))
    counts |= allocate(rest, max(sum(one.gone for one in rest.values()), count))
  return {key: max(structure.allowed(key, one.total, counts[key]), one.gone)
          for key, one in units.items()}


def allocation(options):
  """The allocation's name; where all channels are ranked together, wide layers lose nearly all."""
  auto = 'uniform' if options.prune_structure == 'channels' else 'lamp'
  return auto if options.prune_allocation == 'auto' else options.prune_allocation


def exchanged(plan, tools, units, before, state, step, seed):
  """Masks as sparse as before: the lowest weights of each kernel give way to the most promising."""
  promise = growth(plan, tools, before, state, step, seed)
  kept = {}
  for name, one in units.items():
    count = round(plan.exchange(step) * len(one.scores))
    staying = one.staying(one.gone + count).reshape(one.shape)
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
