"""A trained network as one small file, and back, ready to predict."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import build_network, folder, layer_facts, trees
from lepton_jax import config as config_lib
from lepton_jax import strengths as strengths_lib
from lepton_jax.compress import coupling as coupling_lib
from lepton_jax.compress.quantize import method as quantize
from lepton_jax.data import dataset as dataset_lib
from lepton_jax.deploy import container, levels
from lepton_jax.errors import UserError
from lepton_jax.layers import norm

KEPT = ('architecture', 'data')  # concerns of which a file notes what is not the default
LARGEST_OPTION, DEEPEST = 1_000_000, 200
# Options that say how large a network is, with the most, and those that say nothing of it.
SIZES = dict.fromkeys(('width', 'depth', 'hidden', 'embedding', 'vocabulary_size', 'image_size',
                       'window', 'horizon', 'sequence_length'), LARGEST_OPTION)
SIZES |= dict(batch_size=65_536)  # places of running text that are read at once
ELSEWHERE = ('data_dir', 'cache_dir', 'manual_dir')
INPUTS = ('uint8', 'int32', 'float32')
# Facts of a data set by short names, and what they are where a file does not say.
FACTS = dict(inputs='i', label='l', classes='c', mean='m', std='s', vocabulary='v', columns='n',
             targets='t', target_mean='a', target_std='b', stream='r', name='d')
ABSENT = dict(label=['int32'], vocabulary=[], columns=[], targets=[], target_mean=0.0,
              target_std=1.0, stream=False, classes=[])


def pack(trained, bits=8, number_bits=8, rate=0.0):
  """The bytes of a file for a folder.Trained.

  Kernels that are on levels keep them; others are rounded to 2^bits - 1 of each output. Biases are
  rounded to `number_bits`, other numbers to float16; with 0 bits both stay as they are. With a
  `rate` above 0 weights take a lower level where that saves bits (levels.cheaper). So a packed
  network is to be measured anew.
  """
  network = trained.network
  kept = network.compression.kept(trained.weights, trained.hparams)
  counted = network.compression.rounded(kept, trained.hparams)
  exact = {name: np.asarray(leaf, np.float32) for name, leaf in trees.named(kept['params']).items()}
  params = {name: np.asarray(leaf, np.float32) for name, leaf in
            trees.named(counted['params']).items()}
  state = {name: np.asarray(leaf, np.float32) for name, leaf in
           trees.named(trained.weights['model_state']).items()}
  folded(params, state)
  params = swept(network, trained.data, params, state)
  rows = network.compression.kernels([n for n in params if trees.is_kernel(n)], trained.config)
  config = as_packed(trained.config, rows, trained.data.stream)
  header = dict(o=config, f=facts(trained.data, config), w=network.widths)
  packed, steps = [], network.compression.steps(kept, trained.hparams)
  rounded = {row['kernel'] for row in rows if 'weight_bits' in row}
  for name, leaf in params.items():
    if trees.is_kernel(name):
      found = levels.of_steps(leaf, np.asarray(steps[name])) if name in steps else (
          levels.of_kernel(leaf, bits, name in rounded))
      packed.append(levels.cheaper(found, exact[name], rate))
    else:
      few = number_bits if name.endswith('bias') else 0
      packed.append(levels.of_numbers(leaf, few if number_bits else None))
  packed += [levels.of_numbers(leaf, 0 if number_bits else None) for leaf in state.values()]
  if network.compression.sites:
    ranges = [float(leaf) for kind in ('learned', 'held')
              for leaf in ranges_of(trained.weights[kind]).values()]
    packed.append(container.Packed(container.FLOAT32, np.array(ranges, np.float32)))
  return container.write({name: part for name, part in header.items() if part}, packed)


def unpack(data, most=container.MOST):
  """The folder.Trained of a file's bytes; its splits are empty. Raises UserError for bad files.

  Arrays of more than `most` bytes are refused; reading takes up to three times that, beside the
  description of the network, which is bounded in container.py.
  """
  bare, trees_of, rest = described(data, most)
  params, state, learned, held = trees_of
  count = len(trees.named((learned, held)))
  arrays = container.read_arrays(rest, array_shapes(trees_of), most)
  weights = dict(zip(('params', 'model_state'), filled((params, state), arrays)))
  weights['learned'], weights['held'] = filled(
      (learned, held), list(arrays[-1]) if count else [])
  return dataclasses.replace(bare, weights=jax.tree.map(jnp.asarray, weights))


def coded_levels(data):
  """[i32 array] of the levels in a file's bytes."""
  _, trees_of, rest = described(data, container.MOST)
  return [packed.levels for packed in container.read_packed(rest, array_shapes(trees_of))
          if packed.levels is not None]


def described(data, most):
  """(folder.Trained without weights, its four trees of shapes, what is left to read)."""
  header, rest = container.read_header(data, most)
  config = read_config(header.get('o', {}))
  dataset = read_facts(header.get('f', {}), config)
  widths = header.get('w', {})
  if not (isinstance(widths, dict) and all(
      type(width) is int and 0 < width <= LARGEST_OPTION for width in widths.values())):
    raise UserError('the packed file is damaged: its widths are no numbers')
  network = build_network.make_network(config, dataset, widths)
  try:
    variables = jax.eval_shape(build_network.make_init(network, dataset), jax.random.key(0))
    if widths:
      check_widths(network, variables['params'], dataset)
  except UserError:
    raise
  except Exception as error:  # whatever JAX and Flax say of shapes that cannot be
    told = str(error).splitlines()[0]
    raise UserError(f'the packed file is damaged: no such network ({told})') from None
  params = variables['params']
  state = {name: leaf for name, leaf in variables.items() if name not in ('params', 'carry')}
  network = build_network.compressed(network, dataset, params, state)
  hparams = strengths_lib.strengths(config, network.compression)
  learned, held = jax.eval_shape(network.compression.init, params, hparams)
  return (folder.Trained(config, dataset, network, {}, hparams), (params, state, learned, held),
          rest)


def check_widths(network, params, dataset):
  """Raises UserError where widths are of layers that there are not, or the answers are too many."""
  paths = {name.rpartition('/')[0] for name in trees.named(params)}
  paths |= {path.removesuffix('/up') for path in paths}  # of a factorised layer that is narrower
  unknown = [path for path in network.widths if path not in paths]
  whole = build_network.make_network(network.config, dataset)
  shapes = (jax.eval_shape(lambda n=n: n.init(
      jax.random.key(0), n.example_inputs(dataset))[0]).shape for n in (network, whole))
  if unknown or len(set(shapes)) > 1:
    raise UserError(f'the packed file is damaged: its widths {network.widths} are not of this '
                    f'network')


def array_shapes(trees_of):
  """Shapes of the arrays of a file in their order."""
  params, state, learned, held = trees_of
  count = len(trees.named((learned, held)))
  return [leaf.shape for tree in (params, state) for leaf in trees.named(tree).values()] + (
      [(count,)] * bool(count))


def filled(tree, arrays):
  """A tree of shapes with arrays in its order, each of the shape's dtype."""
  leaves, structure = jax.tree.flatten(tree)
  values = [np.asarray(array, leaf.dtype).reshape(leaf.shape)
            for leaf, array in zip(leaves, arrays)]
  return jax.tree.unflatten(structure, values)


def swept(network, data, params, state):
  """Params with zeros in all channels that nothing reads, until there are no more; same answers."""
  coupling = layer_facts.coupled(network, trees.nest(params), trees.nest(state), data)
  shapes = {name: leaf.shape for name, leaf in params.items()}
  while True:
    alive = dict(params)
    for group in coupling.groups.values():
      masks = coupling_lib.without(group, coupling_lib.unread(group, alive), shapes)
      alive |= {name: np.where(mask, alive[name], 0) for name, mask in masks.items()}
    if all(np.array_equal(alive[name], params[name]) for name in params):
      return params
    params = alive


def folded(params, state):
  """Puts the running averages of batch norms into their scales and biases, in place."""
  for name in list(state):
    kind, _, rest = name.partition('/')
    path, _, leaf = rest.rpartition('/')
    if kind != 'batch_stats' or leaf != 'var':
      continue
    mean, var = state[f'{kind}/{path}/mean'], state[name]
    factor = params[f'{path}/scale'] / np.sqrt(var + np.float32(norm.BatchNorm.epsilon))
    params[f'{path}/bias'] = params[f'{path}/bias'] - mean * factor
    params[f'{path}/scale'] = factor
    state[f'{kind}/{path}/mean'] = np.zeros_like(mean)
    state[name] = np.full_like(var, np.float32(1 - norm.BatchNorm.epsilon))


def as_packed(config, rows, stream):
  """{option: value} of those that are not the default; `rows` say whose inputs are rounded."""
  default = config_lib.Config()
  # What running text measures depends on in how many places it is read at once.
  elsewhere = ELSEWHERE if stream else (*ELSEWHERE, 'batch_size')
  found = {name: value for group in KEPT for name, value in
           dataclasses.asdict(getattr(config, group)).items()
           if name not in elsewhere and (
               name == 'model' or value != getattr(getattr(default, group), name))}
  if config.optimization.loss:
    found['loss'] = config.optimization.loss
  asked = {row['kernel']: (row.get('activation_bits', 0), row.get('gate_bits', 0)) for row in rows
           if 'activation_bits' in row or 'gate_bits' in row}
  if not asked:
    return found
  reading = [row for row in rows if 'floating-point' not in row.get('activation_reason', '')]
  bits, _ = next(iter(asked.values()))
  if set(asked.values()) == {(bits, 0)} and len(asked) == len(reading):
    found['quantize_activation_bits'] = bits
  else:
    found['quantize_layers'] = ';'.join(f'^{name}$=0/{bits}' + (f'/{gate}' if gate else '')
                                        for name, (bits, gate) in asked.items())
  if config.quantize.quantize_inputs != default.quantize.quantize_inputs:
    found['quantize_inputs'] = config.quantize.quantize_inputs
  return found


def shapes_of(network, data):
  return jax.eval_shape(build_network.make_init(network, data), jax.random.key(0))['params']


def ranges_of(arrays):
  """{name: number} of the ranges of inputs among what the quantisation learned or holds."""
  own = trees.named(arrays.get(quantize.NAME, {}))
  return {name: leaf for name, leaf in own.items() if name.startswith(f'{quantize.RANGES}/')}


def facts(data, config):
  """What the network has to know of its data set, as short as JSON can say it."""
  given = data.facts()
  numbers = tuple(map(str, range(len(given['classes']))))
  if tuple(given['classes']) == numbers:
    given['classes'] = len(numbers)
  if data.stream:  # its characters are its classes
    given['classes'] = []
  if data.vocabulary and not any('\n' in word for word in data.vocabulary):
    given['vocabulary'] = '\n'.join(data.vocabulary)
  for name in ('mean', 'std', 'target_mean', 'target_std'):
    given[name] = shortest(given[name])
  absent = ABSENT | dict(name=config.get('dataset', config_lib.Config().data.dataset))
  given = {name: list(one) if isinstance(one, tuple) else one for name, one in given.items()}
  return {short: given[name] for name, short in FACTS.items()
          if name not in absent or given[name] != absent[name]}


def shortest(number):
  """A float32, or lists of them, with as few digits as tell it apart."""
  if isinstance(number, list):
    return [shortest(one) for one in number]
  return float(np.format_float_positional(np.float32(number), unique=True))


def read_config(options):
  """The Config of a file; raises UserError for options that a file cannot have."""
  if not isinstance(options, dict):
    raise UserError('the packed file is damaged: its options are none')
  for name, value in options.items():
    allowed = name in config_lib.FIELDS and (
        config_lib.FIELDS[name][0] in (*KEPT, 'quantize') or name == 'loss')
    allowed = allowed and name not in ELSEWHERE
    large = name in SIZES and isinstance(value, (int, float)) and not abs(value) <= SIZES[name]
    if not allowed or large or (name == 'depth' and isinstance(value, int) and value > DEEPEST):
      raise UserError(f'the packed file is damaged: option {name!r} is {value!r}')
  values = {name: config_lib.coerce(name, value) for name, value in options.items()}
  return config_lib.Config().replace(**values).check()


def read_facts(given, config):
  """The Dataset, without examples, that a file describes."""
  try:
    found = {name: given.get(short, ABSENT.get(name)) for name, short in FACTS.items()}
    if isinstance(found['classes'], int):
      if not 0 <= found['classes'] <= LARGEST_OPTION:
        raise ValueError('classes')
      found['classes'] = list(map(str, range(found['classes'])))
    if isinstance(found['vocabulary'], str):
      if found['vocabulary'].count('\n') >= LARGEST_OPTION:
        raise ValueError('vocabulary')
      found['vocabulary'] = found['vocabulary'].split('\n')
    if found['stream']:
      found['classes'] = found['vocabulary']
    found |= dict(name=found['name'] or config.data.dataset, version='')
    for name in ('inputs', 'label'):
      dtype, *shape = found[name]
      if dtype not in INPUTS or not all(
          type(side) is int and 0 < side <= LARGEST_OPTION for side in shape):
        raise ValueError(name)
    for name in ('classes', 'vocabulary', 'columns'):
      if not all(isinstance(word, str) for word in found[name]):
        raise ValueError(name)
    if not all(type(target) is int and 0 <= target < len(found['columns'])
               for target in found['targets']):
      raise ValueError('targets')
    for mean, deviation, of in (('mean', 'std', 'inputs'), ('target_mean', 'target_std', 'label')):
      low, high = (np.asarray(found[name], np.float64) for name in (mean, deviation))
      if not (np.isfinite(low).all() and np.isfinite(high).all() and (high > 0).all()
              and low.shape == high.shape and low.size in (1, found[of][-1])):
        raise ValueError(mean)
    return dataset_lib.without_examples(found)
  except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
    raise UserError(f'the packed file is damaged: it describes no data ({error})') from None
