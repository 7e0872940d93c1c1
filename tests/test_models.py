
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import layers, models, trees
from lepton_jax.data import dataset as dataset_lib
from lepton_jax.layers import recurrent
from lepton_jax.registry import MODELS
from tests import LONG

# Trainable parameters: (input, outputs) the architecture is published for, and their number.
GOLDEN = {
    'linear': ((28, 28, 1), 10, 7_850), 'mlp': ((28, 28, 1), 10, 118_282),
    'lenet_300_100': ((28, 28, 1), 10, 266_610), 'lenet5': ((28, 28, 1), 10, 431_080),
    'cnn_mnist': ((28, 28, 1), 10, 421_642), 'cnn_cifar': ((32, 32, 3), 10, 122_570),
    'cnn_64': ((64, 64, 3), 10, 3_938_570), 'cnn_binary': ((150, 150, 3), 1, 4_828_481),
    'conv2': ((32, 32, 3), 10, 4_301_642), 'conv4': ((32, 32, 3), 10, 2_425_930),
    'conv6': ((32, 32, 3), 10, 2_262_602), 'resnet8': ((32, 32, 3), 10, 78_186),
    'resnet20': ((32, 32, 3), 10, 269_722), 'resnet32': ((32, 32, 3), 10, 464_154),
    'resnet44': ((32, 32, 3), 10, 658_586), 'resnet56': ((32, 32, 3), 10, 853_018),
    'resnet18': ((32, 32, 3), 10, 11_173_962),
    'mobilenet_v1': ((224, 224, 3), 1000, 4_231_976), 'ds_cnn': ((49, 10, 1), 12, 23_756),
    'elman_classifier': ((28, 28, 1), 10, 21_386), 'gru_classifier': ((28, 28, 1), 10, 61_962),
    'lstm_classifier': ((28, 28, 1), 10, 81_674), 'bilstm_classifier': ((28, 28, 1), 10, 163_338),
    'elman_tagger': ((28, 28, 1), 10, 21_386), 'gru_tagger': ((28, 28, 1), 10, 61_962),
    'lstm_tagger': ((28, 28, 1), 10, 81_674), 'bilstm_tagger': ((28, 28, 1), 10, 163_338),
    'elman_regressor': ((28, 28, 1), 1, 20_225), 'gru_regressor': ((28, 28, 1), 1, 60_801),
    'lstm_regressor': ((28, 28, 1), 1, 80_513), 'bilstm_regressor': ((28, 28, 1), 1, 161_025),
    'text_cnn': ((40,), 2, 1_434_502), 'lstm_lm': ((40,), 65, 349_569),
}
# The same blocks many times over: one of them says as much about gradients and rounding.
SHALLOW = dict.fromkeys(('resnet20', 'resnet32', 'resnet44', 'resnet56'), dict(depth=1))
# So do a quarter of the channels of those that have most.
SHALLOW |= dict(resnet18=dict(depth=1, width=0.25), conv6=dict(width=0.25),
                cnn_binary=dict(width=0.25))
# The others are these with more or fewer of the same layers; they would test the same twice.
DISTINCT = [name for name in MODELS.names() if name not in (
    'resnet32', 'resnet44', 'resnet56', 'mobilenet_v1', 'conv2', 'conv4', 'cnn_64')]
# Those of a class that one or two others stand for: laws of compression hold for all models, which
# are made of the same layers; LEPTON_LONG_TESTS=1 asks every one. A new model is always asked.
ALIKE = ('bilstm_regressor', 'bilstm_tagger', 'cnn_binary', 'cnn_cifar', 'cnn_mnist', 'conv6',
         'elman_classifier', 'elman_regressor', 'elman_tagger', 'gru_classifier', 'gru_regressor',
         'gru_tagger', 'lenet_300_100', 'linear', 'lstm_classifier', 'lstm_regressor',
         'lstm_tagger', 'mlp', 'resnet18', 'resnet20', 'text_cnn')
FAMILIES = [name for name in DISTINCT if LONG or name not in ALIKE]
# Models that read tokens, and how many words they know.
VOCABULARY = {'text_cnn': 10_000, 'lstm_lm': 65}
# Images as small as each architecture bears, so that gradients are quick.
SMALL = {'lenet5': 16, 'cnn_cifar': 18, 'cnn_64': 8, 'cnn_binary': 22}


def has_cells(name):
  """Whether a model has recurrent layers."""
  return any(kind in name for kind in recurrent.KINDS)


def make(name, shape, outputs, **options):
  if name in VOCABULARY:
    options['vocabulary'] = VOCABULARY[name]
  module = MODELS.get(name)(outputs=outputs, **options)
  x = jnp.zeros((1, *shape), jnp.int32 if name in VOCABULARY else jnp.float32)
  return module, jax.eval_shape(lambda: module.init(jax.random.key(0), x, None))


def random_like(shapes):
  """Arrays for a tree of shapes; initialisers would spend seconds compiling for a deep network."""
  rng = np.random.default_rng(0)

  def draw(name, leaf):
    if name.endswith('var'):
      return np.ones(leaf.shape, leaf.dtype)
    return rng.normal(0, 0.2, leaf.shape).astype(leaf.dtype)
  return jax.tree.map(jnp.asarray, trees.map_named(draw, shapes))


def tiny_dataset(name, shape, classes, count=8):
  """A Dataset of random examples that a model can read: images, tokens, or running text."""
  rng = np.random.default_rng(0)
  names, unit = tuple(map(str, range(classes))), np.ones(1, np.float32)
  label = np.arange(count, dtype=np.int32) % classes
  common = dict(name='tiny', version='1', classes=names, columns=(),
                mean=np.full(shape[-1:], 128, np.float32), std=np.full(shape[-1:], 70, np.float32))
  if name == 'lstm_lm':
    stream = rng.integers(0, classes, 400).astype(np.int32)
    parts = (stream, stream)
    common |= dict(mean=unit, std=unit, vocabulary=names, stream=True)
  elif name in VOCABULARY:
    words = tuple(map(str, range(20)))
    parts = (rng.integers(1, 20, (count, 12), np.int32), label)
    common |= dict(mean=unit, std=unit, vocabulary=words)
  elif name.endswith('_regressor'):
    parts = (rng.integers(0, 256, (count, *shape), np.uint8),
             rng.normal(size=count).astype(np.float32))
    common |= dict(classes=())
  else:
    labels = np.repeat(label[:, None], shape[0], 1) if name.endswith('_tagger') else label
    parts = (rng.integers(0, 256, (count, *shape), np.uint8), labels)
  return dataset_lib.Dataset(splits=dict.fromkeys(('train', 'validation', 'test'), parts), **common)


@pytest.mark.parametrize('name', MODELS.names())
def test_every_model_has_its_golden_number_of_parameters(name):
  shape, outputs, count = GOLDEN[name]
  assert trees.count(make(name, shape, outputs)[1]['params']) == count


def test_resnet18_for_large_images_is_the_published_one():
  assert trees.count(make('resnet18', (224, 224, 3), 1000)[1]['params']) == 11_689_512


def test_mobilenet_width_factor():
  # arXiv:1704.04861 table 6: 0.5 MobileNet-224 has 1.3 million parameters.
  assert trees.count(make('mobilenet_v1', (224, 224, 3), 1000, width=0.5)[1]['params']) == 1_331_592


@pytest.mark.parametrize('name', FAMILIES)
def test_every_parameter_gets_a_gradient_and_the_head_is_named(name):
  side, outputs = SMALL.get(name, 8), 2
  tokens = name in VOCABULARY
  options = dict(SHALLOW.get(name, {}), **({'vocabulary': 6} if tokens else {}))
  module = MODELS.get(name)(outputs=outputs, **options)
  if tokens:
    x = jnp.arange(32, dtype=jnp.int32).reshape(4, 8) % 6
  else:
    x = jax.random.normal(jax.random.key(1), (4, side, side, 1))
  variables = random_like(jax.eval_shape(lambda: module.init(jax.random.key(0), x, None)))
  training = layers.Training(example=jnp.arange(4))

  def loss(params):
    logits, _ = module.apply({**variables, 'params': params}, x, training,
                             mutable=['batch_stats', 'carry'])
    return jnp.sum(jnp.sin(logits + jnp.arange(logits.shape[-1], dtype=jnp.float32))), logits

  gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
  shapes = dict(tagger=(4, side, outputs), lm=(4, 8, 6))
  assert logits.shape == shapes.get(name.rpartition('_')[2], (4, outputs))
  assert models.HEAD in variables['params']
  # The mean cancels a bias before batch normalisation; its gradient is zero but for rounding.
  still = [n for n, g in trees.named(gradient).items() if not np.any(np.asarray(g) != 0)]
  assert not still


def test_options_change_the_architecture():
  count = lambda name, **options: trees.count(make(name, (32, 32, 3), 10, **options)[1]['params'])
  assert count('resnet20', depth=5) == count('resnet32')
  assert count('mlp', depth=3) > count('mlp') > count('mlp', width=0.5)
  names = trees.named(make('resnet8', (32, 32, 3), 10, norm='none')[1]['params'])
  assert not any('norm' in n for n in names)


def test_the_benchmark_times_the_same_networks_as_plain_flax_has():
  from experiments.peers import plain_flax, race

  def count(module, x, mode):
    init = lambda: module.init(jax.random.key(0), x, mode)['params']
    return trees.count(jax.eval_shape(init))
  for name, theirs in plain_flax.NETWORKS.items():
    words = len(race.SHAPES[name]) == 1
    x = jnp.zeros((1, *race.SHAPES[name]), jnp.int32 if words else jnp.float32)
    options = dict(outputs=2, vocabulary=10_000) if words else dict(outputs=10)
    ours = MODELS.get(name)(**options)
    assert count(ours, x, None) == count(theirs, x, False), name
