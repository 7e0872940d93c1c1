"""A way of compressing as one value, and the ordered list of them that a run has.

The train step, the state, evaluation and the report go through the list and know no method by name.
"""

import contextlib
import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import trees
from lepton_jax.layers import watch


class Method(typing.NamedTuple):
  """One way of compressing: pure functions, built once from options and a Setting.

  `params`, `learned` and `held` below are {name: array} of the whole network, of what the method
  trains with the weights, and of what it keeps beside them. `hparams` are the traced strengths.

  Attributes:
    name: where its arrays stand in the state, and its facts in result.json.
    reaches: options of a run -> {kernel: facts}, what happens to each kernel, or the reason why
      nothing does.
    weights: (params, learned, held, hparams) -> params that count.
    steps: like `weights` -> {kernel: distance of its levels}, of kernels on evenly spaced ones.
    rounds: whether `weights` puts kernels on levels. Noise comes before such methods, and
      penalties see the kernels without them.
    init: (params, hparams) -> (learned, held) before the first step.
    strengths: options of a run -> {name: value} for hparams.
    sites: paths of the layers whose inputs it changes.
    inputs: (site, x, entries of x an example has, learned, held, hparams) -> x.
    grid: (site, learned, held, hparams) -> (scale, level of zero, highest level) that `inputs`
      rounds to, all 0 while it leaves inputs alone; None where it does something else, or where
      gradients pass elsewhere than at levels that are not clipped.
    penalty: (params, learned, held, hparams) -> scalar that the loss gets, of kept params.
    finish: (params, held) -> params without what an update may not change.
    after: (params, gradients of them, held) -> held after an update; None where it keeps none.
    hooks: (options, Tools) -> [(due, change)]: `change(state, step)` gives the state before the
      steps for which `due(step)` is true.
    settled: the first step whose weights may be chosen as the best.
    keeps: whether a run goes on with what it learned and holds in the run that it starts from.
    removes: whether channels that it made zero leave the network after the last step.
    describe: (params, held) -> {name: number}, for the row of an epoch and for result.json.
  """
  name: str
  reaches: typing.Callable
  weights: typing.Callable
  steps: typing.Callable = lambda params, learned, held, hparams: {}
  rounds: bool = False
  init: typing.Callable = lambda params, hparams: ({}, {})
  strengths: typing.Callable = lambda options: {}
  sites: frozenset = frozenset()
  inputs: typing.Callable | None = None
  grid: typing.Callable | None = None
  penalty: typing.Callable | None = None
  finish: typing.Callable = lambda params, held: params
  after: typing.Callable | None = None
  hooks: typing.Callable = lambda options, tools: []
  settled: int = 0
  keeps: bool = False
  removes: bool = False
  describe: typing.Callable = lambda params, held: {}


class Setting(typing.NamedTuple):
  """What a method may know of the network that it is built for.

  Attributes:
    kernels: {name: array or shape} of all kernels, in tree order.
    frozen: names of those that are not trained.
    reading: () -> paths of the layers that read floating-point inputs; it traces the network.
    coupling: () -> the coupling.Coupling of its channels; it traces the network.
    total_steps, steps_per_epoch: of the run.
    kept: whether what methods learned in another run is kept.
    zeros: names of kernels that hold zeros of another run, which have to stay.
    ticket: {name: kernel} of another run, which say what is pruned here; empty: the run's own do.
  """
  kernels: dict
  frozen: frozenset = frozenset()
  reading: typing.Callable = frozenset
  coupling: typing.Callable | None = None
  total_steps: int = 1
  steps_per_epoch: int = 1
  kept: bool = False
  zeros: frozenset = frozenset()
  ticket: dict = {}


class Tools(typing.NamedTuple):
  """What hooks may use; the functions belong to the program, so trials share what they compile.

  Attributes:
    batch: step -> the training batch of that step, on the device.
    observe: (state, batch) -> {site: Seen} of the inputs that layers read.
    counted: state -> the tree of parameters that count.
    loss: (params that count, state, batch) -> mean loss, to be differentiated.
    outputs: (params that count, state, batch) -> answers to inputs of ones.
    once: (name, function of arrays) -> it compiled, the same at each call with that name.
  """
  batch: typing.Callable
  observe: typing.Callable
  counted: typing.Callable
  loss: typing.Callable
  outputs: typing.Callable
  once: typing.Callable


@dataclasses.dataclass(frozen=True)
class Compression:
  """The methods of a run, in the order in which they change the weights.

  `weights` below is {'params', 'learned', 'held'} and what else a run saves; the last two have one
  entry for each method that has arrays.
  """
  methods: tuple = ()

  def init(self, params, hparams, earlier=None):
    """(learned, held) of all methods before the first step.

    `earlier` has 'learned' and 'held' of another run, which stay where methods keep them.
    """
    named, found = trees.named(params), {}
    for method in self.methods:
      arrays = method.init(named, hparams)
      if method.keeps and earlier:
        arrays = tuple(own | {name: leaf for name, leaf in theirs.items()
                              if name in own and own[name].shape == leaf.shape}
                       for own, theirs in zip(arrays, arrays_of(method, earlier)))
      found[method.name] = arrays
    return tuple({name: arrays[i] for name, arrays in found.items() if arrays[i]} for i in (0, 1))

  def kept(self, weights, hparams):
    """Weights without what methods removed, not yet rounded: what penalties see."""
    return self._through(weights, hparams, rounds=False)

  def rounded(self, weights, hparams):
    """Kept weights on the levels that they have."""
    return self._through(weights, hparams, rounds=True)

  def counted(self, weights, hparams):
    """The weights that count: kept, then rounded."""
    return self.rounded(self.kept(weights, hparams), hparams)

  def _through(self, weights, hparams, rounds):
    params = trees.named(weights['params'])
    for method in self.methods:
      if method.rounds == rounds:
        learned, held = arrays_of(method, weights)
        params = params | method.weights(params, learned, held, hparams)
    return dict(weights, params=trees.map_named(lambda name, _: params[name], weights['params']))

  def steps(self, weights, hparams):
    """{kernel: distance of its levels} of kept weights that are evenly spaced once rounded."""
    named, found = trees.named(weights['params']), {}
    for method in self.methods:
      found |= method.steps(named, *arrays_of(method, weights), hparams)
    return found

  @contextlib.contextmanager
  def reading(self, weights, hparams):
    """A context in which layers read what the methods make of their inputs."""
    with contextlib.ExitStack() as stack:
      for method in self.methods:
        if method.sites:
          read, grid = _reader(method, weights, hparams)
          stack.enter_context(watch.inputs(method.sites, read, pure=True, grid=grid))
      yield

  @property
  def sites(self):
    """Paths of the layers whose inputs are changed."""
    return frozenset().union(*(method.sites for method in self.methods))

  def penalty(self, weights, hparams):
    """What all methods add to the loss, of kept weights; 0 where none does."""
    named = trees.named(weights['params'])
    return sum(method.penalty(named, *arrays_of(method, weights), hparams)
               for method in self.methods if method.penalty is not None)

  def finish(self, params, held):
    """Parameters after an update, without what it may not change."""
    named = trees.named(params)
    for method in self.methods:
      named = named | method.finish(named, held.get(method.name, {}))
    return trees.map_named(lambda name, _: named[name], params)

  def after(self, params, gradients, held):
    """`held` after an update."""
    for method in self.methods:
      if method.after is not None:
        own = method.after(trees.named(params), trees.named(gradients), held[method.name])
        held = held | {method.name: own}
    return held

  def strengths(self, options):
    """{name: value} of all methods."""
    return {name: value for method in self.methods
            for name, value in method.strengths(options).items()}

  def hooks(self, options, tools):
    """[(due, change)] of all methods."""
    return [hook for method in self.methods for hook in method.hooks(options, tools)]

  @property
  def settled(self):
    """The first step whose weights may be chosen as the best."""
    return max((method.settled for method in self.methods), default=0)

  def describe(self, params, held):
    """Numbers for the row of an epoch and for result.json."""
    named = trees.named(params)
    found = {}
    for method in self.methods:
      found |= method.describe(named, trees.named(held.get(method.name, {})))
    return found

  def kernels(self, names, options):
    """One dictionary a kernel: what every method does with it, or why it does nothing."""
    rows = {name: dict(kernel=name) for name in names}
    for method in self.methods:
      for name, row in method.reaches(options).items():
        rows[name] |= row
    return list(rows.values())


def arrays_of(method, weights):
  """(learned, held) of a method, {name: array} each, however deep a checkpoint nests them."""
  return tuple(trees.named(weights[kind].get(method.name, {})) for kind in ('learned', 'held'))


def part(arrays, prefix):
  """{'b': array} of all {'prefix/b': array}."""
  start = f'{prefix}/'
  return {name.removeprefix(start): array for name, array in arrays.items()
          if name.startswith(start)}


def under(prefix, arrays):
  """{'prefix/b': array} of {'b': array}."""
  return {f'{prefix}/{name}': array for name, array in arrays.items()}


def _reader(method, weights, hparams):
  learned, held = arrays_of(method, weights)

  def read(module, path, x):
    # Layers say where the batch is, if it is not in front, so that entries count one example's.
    entries = x.size // max(x.shape[getattr(module, 'batch_axis', 0)], 1)
    return method.inputs(path, x, entries, learned, held, hparams)

  grid = method.grid and (lambda path: method.grid(path, learned, held, hparams))
  return read, grid


def placed(value, like):
  """A host's value as an array of the dtype of another and where that lies, on all its devices."""
  host = np.asarray(value, like.dtype)
  if not like.committed:  # to a device; JAX would tell programs of such arrays apart
    return jnp.asarray(host)
  return jax.make_array_from_callback(host.shape, like.sharding, host.__getitem__)


def replaced(state, name, learned=None, held=None):
  """A TrainState with other arrays of one method, in the moving average as well."""
  if held is not None:
    state = state.replace(held=dict(state.held, **{name: held}))
  if learned is not None:
    state = state.replace(learned=dict(state.learned, **{name: learned}))
    if state.ema:
      copied = jax.tree.map(jnp.copy, learned)
      ema = dict(state.ema, learned=dict(state.ema['learned'], **{name: copied}))
      state = state.replace(ema=ema)
  return state
