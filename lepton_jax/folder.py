"""Run folders, read back: result, configuration, weights, a network ready to predict."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lepton_jax import (
  assemble,
  build_network,
  cluster,
  evaluation,
  files,
  layer_values,
  machine,
  metrics,
  registry,
  trees,
)
from lepton_jax import config as config_lib
from lepton_jax import strengths as strengths_lib
from lepton_jax.data import dataset, text
from lepton_jax.errors import UserError
from lepton_jax.train import checkpoint, parallel

RESULT, DATA, WIDTHS = 'result.json', 'data.json', 'widths.json'
PARTS = ('params', 'learned', 'held', 'model_state')  # of saved weights


def read_result(folder):
  """The result of a finished run folder, or None; raises UserError where it is damaged."""
  return files.read_json(epath.Path(folder) / RESULT)


def begun_on(folder):
  """The version of the data that the run in a folder was begun on; None where no run was."""
  return described_data(folder).get('version')


def described_data(folder):
  """The `Dataset.facts` of the data in a run folder; {} where no run was begun."""
  return files.read_json(epath.Path(folder).expanduser() / DATA) or {}


def check_data(folder, version):
  """Raises UserError if the run in a folder was begun on another version of its data."""
  begun = begun_on(folder)
  if begun not in (None, version):
    raise UserError(f'{folder} was begun on other data (version {begun}, now {version}); '
                    f'--rerun or another --runs_dir starts over')


def read_config(folder):
  """The configuration of a run folder; raises UserError if it is none."""
  path = epath.Path(folder).expanduser() / 'config.json'
  if not path.exists():
    raise UserError(f'{folder} is not a run folder: it has no config.json')
  return config_lib.Config.from_json(path.read_text(), source=str(path))


def read_weights(folder):
  """({'params', 'learned', 'held', 'model_state'}, step) of a finished run.

  Raises UserError for anything else, damage included.
  """
  read_config(folder)
  path = epath.Path(folder).expanduser()
  store = checkpoint.Checkpoints(path / 'weights')
  problems = []
  step = store.latest(problems.append)
  if step is None:
    if (path / 'fold-0').exists():
      raise UserError(f'{folder} is a cross-validation; '
                      f'name one of its folds, such as {folder}/fold-0')
    if problems:
      raise UserError(f'{folder} holds no whole weights: {"; ".join(problems)}; '
                      f'train it with --rerun to write them again')
    if read_result(path) is not None:
      raise UserError(f'{folder} is finished but kept no weights; '
                      f'train it with --save_weights and another --runs_dir')
    raise UserError(f'{folder} holds no finished weights; run it to its end first')
  return dict(dict.fromkeys(PARTS, {}), **store.restore_named(step)), step


def write_widths(folder, widths):
  """Notes the layers that are narrower than the model's own, {path: output features}."""
  if widths:
    files.write_atomically(epath.Path(folder) / WIDTHS, json.dumps(widths) + '\n')


def read_widths(folder):
  """{path: output features} of the layers that lost channels in a run; {} where none did."""
  found = files.read_json(epath.Path(folder).expanduser() / WIDTHS) or {}
  if not all(type(width) is int and width > 0 for width in found.values()):
    raise UserError(f'{folder}/{WIDTHS} is damaged: it maps paths to whole numbers above 0')
  return found


@dataclasses.dataclass(frozen=True)
class Trained:
  """A finished run, ready to predict. `data` is its data set, `network` its forward pass."""
  config: config_lib.Config
  data: object
  network: object
  weights: dict
  hparams: dict

  def __repr__(self):
    return f'<{self.config.name()}: {trees.count(self.weights["params"]):,} parameters>'

  @functools.cached_property
  def layout(self):
    """One device, or those of all processes that are connected."""
    mode = 'sharded' if cluster.connected() else 'jit'
    return parallel.make_parallel(mode, self.config.data.batch_size)

  def _placed(self):
    return self.layout.put_state(self.weights), self.layout.put_state(self.hparams)

  def outputs(self, inputs):
    """Outputs f32[n, outputs] of the network, logits for classes.

    `inputs` [n, ...] are raw, as the data set gives them, or a list of texts.
    """
    inputs = self.read(inputs)
    labels = np.zeros(len(inputs), np.int32)
    data = dataclasses.replace(self.data, splits=dict(given=(inputs, labels)))
    predict = self.layout.predict(self.network.predict)
    return evaluation.predictions(predict, *self._placed(), data, 'given',
                                  self.config.data.batch_size, self.layout)[0]

  def read(self, inputs):
    """Raw inputs as an array: texts in the numbers that the network was trained on.

    Raises UserError for texts that the network does not read as words, and for one without a word.
    """
    if isinstance(inputs, str):
      raise UserError('what is read is a list of texts, not one text')
    if not len(inputs) or not isinstance(inputs[0], str):
      return inputs
    if not self.data.vocabulary or self.data.stream:
      raise UserError(f'{self.config.name()} reads no texts as words; give it arrays as '
                      f'{self.data.name} has them')
    tokenizer = text.tokenizer_of(self.config.data, self.data.labels_steps)
    return text.encode(inputs, tokenizer.numbers(self.data.vocabulary, self.config.data.max_length))

  def measure(self, split):
    """{measurement: number} on a split, as after training."""
    weights, hparams = self._placed()
    measured = evaluation.Meter(self.network, self.data, self.layout, hparams)(weights, split)
    return {name: value for name, value in measured.items() if name != 'score'}

  def predict(self, inputs):
    """Class numbers int[n]; in regression f64[n] or f64[n, targets] in the target's units."""
    return self.answers(inputs, self.outputs(inputs))

  def answers(self, inputs, outputs):
    """The same from the network's outputs for these inputs."""
    if self.network.objective.regression:
      values = self.network.scaling.values(inputs, outputs)
      return values[:, 0] if values.shape[1] == 1 else values
    return metrics.probabilities(outputs).argmax(-1)

  def activations(self, inputs):
    """{layer: f32[n, ...]} that layers with parameters answer to raw inputs [n, ...].

    Layers are named by their paths, such as 'conv1'. A non-linearity that the model applies to an
    answer comes after it. What is inside a recurrent layer is in `gates`.
    """
    return jax.device_get(self._look(layer_values.activations, inputs))

  def gates(self, inputs):
    """{layer: {gate: f32[n, time, units]}} of recurrent layers for raw inputs [n, time, ...].

    An LSTM has the gates input, forget, cell and output, a GRU reset, update and new; cell and new
    are the values that come in, between -1 and 1. A layer that reads backward has its own first
    step first. Steps that come after the end of a text mean nothing.
    """
    return jax.device_get(self._look(layer_values.gates, inputs))

  def _look(self, function, inputs):
    weights = self.weights
    if self.data.stream:  # running text is read from an empty state
      carry = self.network.carry(len(inputs))
      weights = dict(weights, model_state=dict(weights['model_state'], carry=carry))
    look = self._looking.setdefault(function, jax.jit(functools.partial(function, self.network)))
    return look(weights, jnp.asarray(self.read(inputs)), self.hparams)

  @functools.cached_property
  def _looking(self):
    """{function of layer_values: it compiled}."""
    return {}

  @property
  def kernels(self):
    """{name: f32 array} of the kernels that count, masked and rounded as the run says."""
    counted = self.network.compression.counted(self.weights, self.hparams)
    return {name: np.array(leaf) for name, leaf in trees.named(counted['params']).items()
            if trees.is_kernel(name)}

  def with_kernels(self, changed):
    """A copy with other arrays for some kernels, {name: array}; this network stays as it is.

    Methods of compression of the run act on them anew: what it masked stays zero. Raises UserError
    for a name or a shape that the network does not have.
    """
    own = {name: leaf for name, leaf in trees.named(self.weights['params']).items()
           if trees.is_kernel(name)}
    for name, array in changed.items():
      if name not in own:
        raise UserError(registry.unknown('kernel', name, tuple(own)))
      if np.shape(array) != own[name].shape:
        raise UserError(f'{name} has shape {own[name].shape}; what was given has '
                        f'{np.shape(array)}')
    new = {name: jnp.asarray(array, own[name].dtype) for name, array in changed.items()}
    params = trees.map_named(lambda name, leaf: new.get(name, leaf), self.weights['params'])
    return dataclasses.replace(self, weights=dict(self.weights, params=params))


def load(folder, examples=True, **overrides):
  """The Trained run in a folder; `overrides` replace configuration fields such as data_dir.

  Without `examples` the data set is not read: its splits are empty, and the network predicts.
  """
  config = read_config(folder).replace(**overrides).check()
  if examples:
    data = assemble.load_data(config)
    check_data(folder, data.version)
  else:
    data = dataset.without_examples(described_data(folder))
  machine.start(config.run)
  weights = jax.tree.map(jnp.asarray, read_weights(folder)[0])
  network = build_network.finished(config, data, weights, read_widths(folder))
  hparams = strengths_lib.strengths(config, network.compression)
  return Trained(config, data, network, weights, hparams)
