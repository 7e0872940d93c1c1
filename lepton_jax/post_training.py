"""Quantisation after training: from the weights of another run and a few training batches.

Ranges of inputs are calibrated, steps of kernels are those of least squared error. Then layer by
layer, in the order in which they are called, kernels are rounded and biases corrected, so that a
layer makes up for what the layers before it changed. Last, batch statistics are estimated anew.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lepton_jax import equalization, layer_facts, layers, trees
from lepton_jax.compress.method import Compression, part
from lepton_jax.compress.quantize import method, sites, weights
from lepton_jax.errors import UserError
from lepton_jax.layers import norm, watch

STRETCH, LOWEST = 1.2, -0.1  # of AdaRound's sigmoid, so that it reaches 0 and 1


def check(config):
  """Raises UserError for options that do not go with --quantize_after, or only with it."""
  if not config.quantize.quantize_after:
    for name, usual in (('quantize_equalize', False), ('quantize_rounding', 'nearest')):
      if (given := getattr(config.quantize, name)) != usual:
        raise UserError(f'--{name}={given} goes with --quantize_after')
    return
  if not config.training.init_from:
    raise UserError('--quantize_after needs --init_from=RUN, whose weights it rounds')
  if config.quantize.quantize_weights != 'lsq':
    raise UserError('--quantize_after keeps a step for each channel; it takes '
                    '--quantize_weights=lsq')
  if config.optimization.ema_decay or config.optimization.swa_start:
    raise UserError('--quantize_after trains nothing that could be averaged: no --ema_decay, no '
                    '--swa_start')
  quantize = config.quantize
  if not quantize.quantize_weight_bits and not quantize.quantize_layers:
    raise UserError('--quantize_after rounds kernels: --quantize_weight_bits or --quantize_layers '
                    'says to how many bits')
  if config.prune.prune_sparsity or config.prune.prune_layers:
    raise UserError('--quantize_after does not prune; start it from a pruned run')
  if config.factorize.factorize_rank or config.factorize.factorize_energy:
    raise UserError('--quantize_after does not factorise; start it from a factorised run')


def quantize(assembly):
  """The first state with rounded kernels; reads --quantize_calibration training batches, no others.

  Each of several processes computes all of it, and the same.
  """
  network, options, state = assembly.network, assembly.config.quantize, assembly.state
  batches = [jax.device_put(one) for one in equally_long([
      assembly.batches.at(i) for i in range(options.quantize_calibration)])]
  reached = [name for name in trees.kernels(state.params) if not name.endswith('embedding')]
  owners = frozenset(map(sites.owner, reached))
  plain = dataclasses.replace(network, compression=Compression())
  look = inputs_of(plain, owners)
  if options.quantize_equalize:
    state = equalized(plain, assembly.dataset, state, batches, look)
  state = with_best_steps(state)
  for hook in assembly.make_hooks(jax.device_put, slice(None), jax.jit):
    state = hook(state, 0)
  exact = dict(state.trained, held=state.held)
  called = modules(plain, exact, state.model_state, batches[0], owners)
  read = [jax.device_get(look(exact, state, batch)) for batch in batches]
  read_rounded = inputs_of(network, owners)
  for site in called:
    if f'{site}/kernel' in reached and site in read[0]:
      now = dict(state.trained, held=state.held)
      changed = [np.asarray(read_rounded(now, state, batch)[site]) for batch in batches]
      state = with_layer(state, site, called[site], exact['params'], options,
                         np.concatenate([one[site] for one in read]), np.concatenate(changed))
  if 'batch_stats' in state.model_state:
    state = with_statistics(network, state, batches, plain, exact)
  return state


def equally_long(batches):
  """Batches of texts padded to the longest of them; others as they are."""
  longest = max(batch['inputs'].shape[1] for batch in batches)

  def padded(batch):
    more = longest - batch['inputs'].shape[1]
    if not more:
      return batch
    by_step = batch['label'].ndim == 2  # a step without a label has -1
    label = np.pad(batch['label'], ((0, 0), (0, more)), constant_values=-1) if by_step else (
        batch['label'])
    ends = [(0, 0), (0, more)] + [(0, 0)] * (batch['inputs'].ndim - 2)
    return dict(batch, inputs=np.pad(batch['inputs'], ends), label=label)

  return [padded(batch) for batch in batches]


def equalized(network, dataset, state, batches, look):
  """The state with channels made alike; `look` gives what layers read."""
  exact = dict(state.trained, held=state.held)
  seen = [look(exact, state, batch) for batch in batches]
  largest = {site: np.max([np.abs(one[site]).max(tuple(range(one[site].ndim - 1)))
                           for one in seen], 0) for site in seen[0]}
  named = trees.named(state.params)
  inputs = network.scaled(batches[0])['inputs']
  forward = jax.jit(lambda params: network.forward(
      dict(exact, params=trees.map_named(lambda name, _: params[name], state.params)),
      state.model_state, inputs, state.hparams)[0])
  groups = layer_facts.coupled(network, state.params, state.model_state, dataset).groups
  new = equalization.equalized(named, groups, largest, lambda params: np.asarray(forward(params)))
  params = trees.map_named(lambda name, leaf: jnp.asarray(new[name], leaf.dtype), state.params)
  return state.replace(params=params)


def rounded_kernels(state):
  """Names of the kernels that have a step, in the order of their bits in `hparams`."""
  learned = state.learned[method.NAME]
  return [name for name in trees.named(state.params)
          if f'{method.KERNELS}/{name}/log_step' in learned]


def with_best_steps(state):
  """The state with steps of least squared error for all kernels."""
  learned = dict(state.learned[method.NAME])
  params = trees.named(state.params)
  for i, name in enumerate(rounded_kernels(state)):
    key = f'{method.KERNELS}/{name}/log_step'
    axes = tuple(axis for axis, size in enumerate(learned[key].shape) if size == 1)
    largest = weights.largest_level(state.hparams['weight_bits'][i])
    learned[key] = jnp.log(weights.mse_scale(params[name], largest, axes))
  return state.replace(learned=dict(state.learned, **{method.NAME: learned}))


def inputs_of(network, owners):
  """A compiled (weights, state, batch) -> {site: what its layer reads, [examples, ...]}."""
  def sow(module, path, x):
    module.sow('intermediates', 'read', jnp.moveaxis(x, getattr(module, 'batch_axis', 0), 0))
    return x

  @jax.jit
  def read(given, state, batch):
    counted = network.compression.counted(given, state.hparams)
    batch = network.scaled(batch)
    with watch.inputs(owners, sow):
      _, seen = network.forward(counted, state.model_state, batch['inputs'], state.hparams,
                                collect=('intermediates',))
    found = trees.named(seen['intermediates'])
    # A layer inside a scan sowed [time, examples, ...], as one array.
    return {name.removesuffix('/read/0'): leaf for name, leaf in found.items()
            if name.endswith('/read/0')}

  return read


def modules(network, given, model_state, batch, owners):
  """{site: the layer, on its own}, in the order in which they are called."""
  found, kernels = {}, trees.named(given['params'])

  def note(module, path, x):
    # As wide as it is, which may be narrower than its model asks for.
    features = kernels[f'{path}/kernel'].shape[-1]
    found.setdefault(path, module.clone(parent=None, name=None, features=features))
    return x

  batch = network.scaled(batch)
  with watch.inputs(owners, note):
    jax.eval_shape(lambda: network.forward(given, model_state, batch['inputs'], {})[0])
  return found


def with_layer(state, site, module, exact, options, read, changed):
  """The state with one layer's kernel on its levels and its bias corrected.

  `read` and `changed` are what the layer reads without and with rounding before it.
  """
  own = layer_of(exact, site)
  place = rounded_kernels(state)
  if f'{site}/kernel' not in place:
    return state
  arrays = part(state.learned[method.NAME], f'{method.KERNELS}/{site}/kernel')
  bits = state.hparams['weight_bits'][place.index(f'{site}/kernel')]
  largest, step = weights.largest_level(bits), jnp.exp(arrays['log_step'])
  kernel = jnp.clip(jnp.round(own['kernel'] / step), -largest, largest) * step
  if options.quantize_rounding == 'adaround':
    wanted = jax.jit(lambda x: module.apply({'params': own}, x))
    kernel = adaround(module, own, step, largest, read, changed, wanted,
                      options.quantize_rounding_steps)
  new = dict(own, kernel=kernel)
  if 'bias' in own:
    mean = jax.jit(lambda own, x: jnp.mean(module.apply({'params': own}, x).reshape(
        -1, own['bias'].size), 0))
    new['bias'] = own['bias'] + mean(own, read) - mean(new, changed)
  params = trees.map_named(
      lambda name, leaf: new[name.rpartition('/')[2]] if sites.owner(name) == site else leaf,
      state.params)
  return state.replace(params=params)


def layer_of(params, site):
  """The parameters of the layer at a path."""
  return {name.rpartition('/')[2]: leaf for name, leaf in trees.named(params).items()
          if sites.owner(name) == site}


def adaround(module, own, step, largest, read, changed, wanted, steps, batch=32):
  """A kernel with entries rounded up or down as keeps the layer's answers (arXiv:2004.10568).

  Minimises the squared error of the answers to `changed` against those to `read`, after a fifth of
  the steps plus a term that drives every entry's share of the way up to 0 or 1; Adam at 1e-2 on
  random batches.
  """
  below = jnp.floor(own['kernel'] / step)
  share = jnp.clip(own['kernel'] / step - below, 1e-3, 1 - 1e-3)
  start = jax.scipy.special.logit((share - LOWEST) / STRETCH)
  there = own['kernel'] != 0  # zeros may be pruned weights, which stay
  upward = lambda v: jnp.where(there, jnp.clip(jax.nn.sigmoid(v) * STRETCH + LOWEST, 0, 1), 0)
  on_levels = lambda up: jnp.clip(below + up, -largest, largest) * step
  optimizer = optax.adam(1e-2)
  scale = 1 / jnp.maximum(jnp.mean(jnp.square(wanted(read[:batch]))), 1e-12)

  def loss(v, x, y, sharpness, pressure):
    answer = module.apply({'params': dict(own, kernel=on_levels(upward(v)))}, x)
    undecided = jnp.mean(1 - jnp.abs(2 * upward(v) - 1) ** sharpness)
    return scale * jnp.mean(jnp.square(answer - y)) + pressure * undecided

  @jax.jit
  def update(v, opt_state, x, y, *schedule):
    gradient = jax.grad(loss)(v, x, y, *schedule)
    with jax.numpy_dtype_promotion('standard'):  # optax raises floats to integer step counts
      updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(v, updates), opt_state

  v, opt_state, rng = start, optimizer.init(start), np.random.default_rng(0)
  for i in range(steps):
    chosen = rng.integers(0, len(read), min(batch, len(read)))
    schedule = np.float32(20 - 18 * i / steps), np.float32(0.01 * (5 * i >= steps))
    v, opt_state = update(v, opt_state, changed[chosen], wanted(read[chosen]), *schedule)
  return on_levels(jnp.round(upward(v)))


def with_statistics(network, state, batches, plain, exact):
  """The state with running averages that follow what rounding changed.

  Means move by the difference that rounding makes on the batches, variances by the ratio. The
  batches' own statistics would be those of few examples, which cost more than eight bits do.
  """
  now = dict(state.trained, held=state.held)
  before = statistics(plain, exact, state, batches)
  after = statistics(network, now, state, batches)

  def moved(name, old, was, new):
    if name.endswith('var'):
      return old * (new + norm.BatchNorm.epsilon) / (was + norm.BatchNorm.epsilon)
    return old + new - was

  found = trees.map_named(moved, state.model_state['batch_stats'], before, after)
  return state.replace(model_state=dict(state.model_state, batch_stats=found))


def statistics(network, given, state, batches):
  """The batches' own mean and variance, averaged, of every batch norm."""
  momentum = norm.BatchNorm.momentum

  @jax.jit
  def own(given, state, batch):
    counted = network.compression.counted(given, state.hparams)
    batch = network.scaled(batch)
    empty = dict(state.model_state, batch_stats=jax.tree.map(jnp.zeros_like,
                                                             state.model_state['batch_stats']))
    _, changed = network.forward(counted, empty, batch['inputs'], state.hparams,
                                 layers.Training(example=batch['example']))
    # A running average that began at nothing holds this share of the batch.
    return jax.tree.map(lambda leaf: leaf / (1 - momentum), changed['batch_stats'])

  found = [own(given, state, batch) for batch in batches]
  return jax.tree.map(lambda *leaves: functools.reduce(jnp.add, leaves) / len(leaves), *found)
