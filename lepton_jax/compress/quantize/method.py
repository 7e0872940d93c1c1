"""Quantisation-aware training as a method of compression: kernels and inputs on levels."""

import functools

import jax.numpy as jnp

from lepton_jax import registry, trees
from lepton_jax.compress import rules
from lepton_jax.compress.method import Method, part, placed, replaced, under
from lepton_jax.compress.quantize import inputs, sites
from lepton_jax.compress.straight_through import scaled_gradient
from lepton_jax.errors import UserError
from lepton_jax.layers import platform
from lepton_jax.precision import at_least_single

NAME, KERNELS, RANGES = 'quantize', 'kernels', 'ranges'
BEGIN = 0.25  # share of a run from random weights before its inputs are rounded


def make(config, setting):
  """The Method of a configuration; None where nothing is rounded."""
  options = config.quantize
  weight_bits, input_bits = bits(options, setting)
  if not weight_bits and not input_bits:
    return None
  quantizer = registry.WEIGHT_QUANTIZERS.get(options.quantize_weights)()
  reader = registry.INPUT_QUANTIZERS.get(options.quantize_inputs)()
  dtype = at_least_single(config.architecture.dtype)
  shared = {name: axes(name, kernel.ndim, options.quantize_granularity, setting.reading())
            for name, kernel in setting.kernels.items()}
  kernel_place = {name: i for i, name in enumerate(weight_bits)}
  site_place = {site: i for i, site in enumerate(input_bits)}

  def init(params, hparams):
    learned = {}
    for name, i in kernel_place.items():
      own = quantizer.init(params[name], hparams['weight_bits'][i], shared[name])
      learned |= under(f'{KERNELS}/{name}', own)
    ends = [f'{site}/{end}' for site in input_bits for end in ('low', 'high')]
    if reader.learned:
      learned |= under(RANGES, {end: jnp.ones((), dtype) for end in ends})
    return learned, under(RANGES, {end: jnp.zeros((), dtype) for end in ends})

  def weights(params, learned, held, hparams):
    changed = {}
    for name, i in kernel_place.items():
      kernel, own = params[name], part(learned, f'{KERNELS}/{name}')
      new = quantizer.apply(kernel, hparams['weight_bits'][i], shared[name], own)
      # What was pruned stays zero where zero is not a level.
      changed[name] = new if quantizer.keeps_zero else jnp.where(kernel == 0, 0, new)
    return params | changed

  def steps(params, learned, held, hparams):
    if quantizer.step is None:
      return {}
    return {name: quantizer.step(params[name], hparams['weight_bits'][i], shared[name],
                                 part(learned, f'{KERNELS}/{name}'))
            for name, i in kernel_place.items()}

  def range_of(site, learned, held, hparams):
    ends = part(held, f'{RANGES}/{site}')
    if reader.learned:
      # What is trained is a factor of each calibrated end. Adaptive optimizers move all parameters
      # by about the learning rate, which is much for a narrow range and little for a wide one.
      # Plain gradient descent moves the end as if it were trained itself.
      factors = part(learned, f'{RANGES}/{site}')
      ends = {end: value * scaled_gradient(factors[end], 1 / jnp.where(value == 0, 1, value) ** 2)
              for end, value in ends.items()}
    return ends['low'], ends['high'], hparams['input_bits'][site_place[site]]

  def is_set(site, learned, held, hparams):
    ends = part(held, f'{RANGES}/{site}')
    return ends['high'] > ends['low']

  def read(site, x, entries, *arrays):
    if platform.as_graph() and reader.apply in inputs.ON_GRID:
      levels = inputs.grid(*range_of(site, *arrays))
      return platform.operator('rounded', inputs.rounded, x, *levels)
    low, high, bits = range_of(site, *arrays)
    low, high = inputs.trained_for(x, low, high)
    # Nothing is rounded, nor clipped, before a range is set.
    return jnp.where(is_set(site, *arrays), reader.apply(x, low, high, bits, entries), x)

  def grid(site, *arrays):
    found = inputs.grid(*range_of(site, *arrays))
    return tuple(jnp.where(is_set(site, *arrays), one, 0) for one in found)

  return Method(
      name=NAME, reaches=functools.partial(reached, setting), init=init, keeps=True,
      weights=weights, steps=steps, rounds=True, sites=frozenset(input_bits), inputs=read,
      grid=grid if reader.apply in inputs.BY_GRID else None,
      strengths=functools.partial(strengths, setting),
      settled=first_rounded(config, setting) if input_bits else 0,
      hooks=functools.partial(hooks, reader, setting) if input_bits else lambda *_: [])


def bits(options, setting):
  """({kernel: bits}, {site: bits}) of what is rounded; raises UserError where that is nothing."""
  names = tuple(setting.kernels)
  excluded = trees.matching(options.quantize_exclude, names, 'quantize_exclude')
  ruled = rules.parse(options.quantize_layers, names, 'quantize_layers', widths)
  usual = (options.quantize_weight_bits, options.quantize_activation_bits,
           options.quantize_gate_bits)
  weight_bits, input_bits, gate_bits = {}, {}, {}
  for name in names:
    weight, read, gate = (general if own is None else own for own, general in zip(
        ruled.get(name, (None,) * 3), usual))
    if name in excluded:
      continue
    if weight:
      weight_bits[name] = weight
    if read and sites.owner(name) in setting.reading():
      input_bits[sites.owner(name)] = read
    if gate:
      gate_bits |= dict.fromkeys(inside(name, setting), gate)
  if options.quantize_gate_bits and not gate_bits:
    raise UserError(f'--quantize_gate_bits={options.quantize_gate_bits}: there is no recurrent '
                    f'layer whose gates could be rounded, or it is excluded')
  input_bits |= gate_bits
  asked = options.quantize_weight_bits or options.quantize_activation_bits or ruled
  if asked and not weight_bits and not input_bits:
    raise UserError(f'--quantize_exclude={options.quantize_exclude!r} '
                    f'--quantize_layers={options.quantize_layers!r} leave no kernel to quantise')
  quantizer = registry.WEIGHT_QUANTIZERS.get(options.quantize_weights)()
  only = quantizer.bits
  if max(weight_bits.values(), default=0) > quantizer.most:
    raise UserError(f'--quantize_weights={options.quantize_weights} takes {quantizer.most} bits at '
                    f'most')
  wrong = {name: found for name, found in weight_bits.items() if found == 1 if only != 1}
  wrong |= {name: found for name, found in weight_bits.items() if only not in (None, found)}
  if wrong:
    name, found = next(iter(wrong.items()))
    raise UserError(f'--quantize_weights={options.quantize_weights} takes '
                    f'{only or "2 or more"} bits; {name} has {found}')
  return weight_bits, input_bits


def inside(name, setting):
  """Sites inside the cell that owns a kernel."""
  return [site for site in sites.within(name) if site in setting.reading()]


def widths(text):
  """(weight, input, gate bits) of a rule's value 'W/A/G', 'W/A' or 'W'; None where it says nothing.
  """
  values = [int(word) for word in text.split('/')]
  if len(values) > 3 or any(not 0 <= value <= 16 for value in values) or 1 in values[1:]:
    raise ValueError('write W, W/A or W/A/G, bits of weights, inputs and gates: 0 (off) or 1 to '
                     '16, inputs 2 to 16, gates too')
  return (*values, None, None)[:3]


def axes(name, rank, granularity, reading):
  """The axes over which a kernel shares one scale.

  A table of vectors that serves as the output layer too has its outputs along the first axis.
  """
  if granularity == 'tensor':
    return tuple(range(rank))
  if name.endswith('embedding') and sites.owner(name) in reading:
    return tuple(range(1, rank))
  return tuple(range(rank - 1))


def reached(setting, config):
  """{kernel: the bits of its weights and of its layer's inputs, or the reason it has none}."""
  options = config.quantize
  weight_bits, input_bits = bits(options, setting)
  excluded = trees.matching(options.quantize_exclude, setting.kernels, 'quantize_exclude')
  whole = registry.WEIGHT_QUANTIZERS.get(options.quantize_weights)().whole
  found = {}
  for name in setting.kernels:
    if name in excluded:
      found[name] = dict(reason=f'excluded by --quantize_exclude={options.quantize_exclude}')
      continue
    row = dict(reason='no weight bits were asked for')
    if name in weight_bits:
      row = dict(weight_bits=weight_bits[name], quantizer=options.quantize_weights,
                 granularity='tensor' if whole else options.quantize_granularity)
    site = sites.owner(name)
    if site in input_bits:
      row |= dict(activation_bits=input_bits[site], activation_quantizer=options.quantize_inputs)
    elif site not in setting.reading():
      row |= dict(activation_reason='its layer has no floating-point input')
    else:
      row |= dict(activation_reason='no activation bits were asked for')
    within = inside(name, setting)
    if within and within[0] in input_bits:
      row |= dict(gate_bits=input_bits[within[0]])
    elif within:
      row |= dict(gate_reason='no gate bits were asked for')
    found[name] = row
  return found


def strengths(setting, config):
  """The bits of each kernel and of each site, as vectors: all widths share a program."""
  weight_bits, input_bits = bits(config.quantize, setting)
  found = dict(weight_bits=list(weight_bits.values()), input_bits=list(input_bits.values()))
  return {name: values for name, values in found.items() if values}


def first_rounded(config, setting):
  """The step from which inputs are rounded.

  Weights that began at random make larger and larger inputs for a while; ranges that are set before
  clip them, and a recurrent network hardly recovers from that.
  """
  if setting.kept or config.quantize.quantize_after:  # ranges come from another run, or at once
    return 0
  begin = config.quantize.quantize_begin
  if begin is None:
    begin = 0.0 if config.training.init_from else BEGIN
  return min(round(begin * setting.total_steps), setting.total_steps - 1)


def hooks(reader, setting, config, tools):
  """The setting of ranges, when rounding begins.

  Ranges that are not trained are set anew at each epoch from there on. Trained ones that another
  run left are kept.
  """
  options, first = config.quantize, first_rounded(config, setting)
  _, input_bits = bits(options, setting)

  def left_by_another_run(site, arrays):
    low, high = (float(arrays[f'{RANGES}/{site}/{end}']) for end in ('low', 'high'))
    return setting.kept and reader.learned and high > low

  def calibrate(state, step):
    chosen = [site for site in input_bits if not left_by_another_run(site, state.held[NAME])]
    if not chosen:
      return state
    seen = inputs.observed([tools.observe(state, tools.batch(step + i))
                            for i in range(options.quantize_calibration)])
    arrays = state.held[NAME]
    new = dict(arrays)
    for site in chosen:
      old = part(arrays, f'{RANGES}/{site}')
      before = (float(old['low']), float(old['high'])) if step > first else None
      low, high = reader.calibrate(seen[site], input_bits[site], before)
      if options.quantize_zero == 'symmetric':
        low, high = inputs.symmetric(low, high)
      ends = dict(low=placed(low, old['low']), high=placed(high, old['high']))
      new |= under(f'{RANGES}/{site}', ends)
    state = replaced(state, NAME, held=new)
    if not reader.learned:
      return state
    learned = state.learned[NAME]
    ends = [f'{RANGES}/{site}/{end}' for site in chosen for end in ('low', 'high')]
    whole = {name: placed(1, learned[name]) for name in ends}
    return replaced(state, NAME, learned=learned | whole)

  def due(step):
    anew = not reader.learned and step > first and step % setting.steps_per_epoch == 0
    return step == first or anew

  return [(due, calibrate)]
