import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lepton_jax import layers
from lepton_jax.errors import UserError
from lepton_jax.layers import convolve


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def training(batch, rate=None, axis=None):
  return layers.Training(example=jnp.arange(batch), dropout=None if rate is None else jnp.float32(rate), axis=axis)


CONVOLUTIONS = dict(whole=lambda *arguments: convolve.dense(*arguments, 1), chunked=lambda *arguments: convolve.dense(*arguments, 8),
                    depthwise=convolve.depthwise, pointwise=lambda x, w, strides, padding: convolve.pointwise(x, w, strides))


@settings(max_examples=16)
@given(which=st.sampled_from(sorted(CONVOLUTIONS)), batch=st.integers(1, 19), sides=st.tuples(st.integers(5, 9), st.integers(5, 9)),
       channels=st.sampled_from([2, 3, 4, 17]), features=st.sampled_from([1, 3, 5, 16, 32]), sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
       stride=st.integers(1, 2), padding=st.sampled_from(['SAME', 'VALID']), mapped=st.booleans(), dtype=st.sampled_from(['float32', 'bfloat16']))
@example(which='chunked', batch=6, sides=(9, 7), channels=3, features=5, sizes=(5, 5), stride=1, padding='VALID', mapped=False, dtype='float32')
@example(which='whole', batch=3, sides=(6, 8), channels=4, features=16, sizes=(3, 3), stride=1, padding='SAME', mapped=True, dtype='bfloat16')
def test_convolutions_equal_the_plain_one(which, batch, sides, channels, features, sizes, stride, padding, mapped, dtype):
  """Values and both gradients, under vmap as well."""
  sizes = (1, 1) if which == 'pointwise' else sizes
  groups, shape = (channels, (*sizes, 1, channels)) if which == 'depthwise' else (1, (*sizes, channels, features))
  x, w = (n.astype(dtype) for n in (normal(0, 2, batch, *sides, channels), normal(1, 2, *shape)))
  strides, tolerance = (stride, stride), dict(float32=1e-4, bfloat16=0.05)[dtype]

  def both(function):
    value_and_gradients = lambda x, w: (function(x, w), jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a).astype(jnp.float32))), (0, 1))(x, w))
    found = jax.jit(jax.vmap(value_and_gradients))(x, w) if mapped else jax.jit(value_and_gradients)(x[0], w[0])
    return jax.tree.map(lambda array: np.asarray(array, np.float32), found)

  fast = both(lambda x, w: CONVOLUTIONS[which](x, w, strides, padding))
  plain = both(lambda x, w: convolve.plain(x, w, strides, padding, groups))
  for mine, reference in zip(jax.tree.leaves(fast), jax.tree.leaves(plain)):
    np.testing.assert_allclose(mine, reference, rtol=tolerance, atol=tolerance * max(1, np.abs(reference).max()))


def test_convolution_known_answer():
  """[1..9] with [1..9] plus bias 1: 285 + 1, correlation without flipping."""
  numbers = jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
  layer = layers.Conv(1, (3, 3), padding='VALID')
  params = dict(kernel=numbers.reshape(3, 3, 1, 1), bias=jnp.ones(1))
  assert layer.apply({'params': params}, numbers).item() == 286


@settings(max_examples=8)
@given(batch=st.integers(1, 3), height=st.integers(2, 9), width=st.integers(2, 9), channels=st.integers(1, 3), ties=st.booleans())
def test_max_pool_equals_flax_in_values_and_gradients(batch, height, width, channels, ties):
  x = normal(2, batch, height, width, channels)
  x = jnp.round(x) if ties else x
  reference = lambda x: nn.max_pool(x, (2, 2), strides=(2, 2))
  np.testing.assert_array_equal(layers.max_pool(x), reference(x))
  weigh = lambda f: lambda x: jnp.sum(f(x) * jnp.arange(f(x).size, dtype=x.dtype).reshape(f(x).shape))
  np.testing.assert_array_equal(jax.jit(jax.grad(weigh(layers.max_pool)))(x), jax.jit(jax.grad(weigh(reference)))(x))


@pytest.mark.parametrize('shape', [(8, 5, 5, 3), (16, 7)])
def test_batch_norm_equals_flax(shape):
  x = normal(4, *shape) * 3 + 10
  mine, theirs = layers.make_norm('batch'), nn.BatchNorm(momentum=0.9)
  variables = mine.init(jax.random.key(0), x, None)
  got, state = mine.apply(variables, x, training(shape[0]), mutable=['batch_stats'])
  want, theirs_state = theirs.apply(variables, x, use_running_average=False, mutable=['batch_stats'])
  np.testing.assert_allclose(got, want, atol=1e-4)
  for name in ('mean', 'var'):
    np.testing.assert_allclose(state['batch_stats'][name], theirs_state['batch_stats'][name], rtol=1e-4)
  np.testing.assert_allclose(mine.apply({**variables, **state}, x, None), theirs.apply({**variables, **state}, x, use_running_average=True), atol=1e-4)


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-4), ('bfloat16', 0.04)])
def test_batch_norm_of_two_lanes_is_that_of_each(dtype, tolerance):
  """Under vmap, and from low precision with statistics in float32: against Flax, one lane after the other."""
  x = (normal(4, 2, 8, 5, 5, 3) * 3 + 10).astype(dtype)
  mine, theirs = layers.make_norm('batch'), nn.BatchNorm(momentum=0.9, dtype=dtype)
  variables = mine.init(jax.random.key(0), x[0], None)
  got, state = jax.vmap(lambda lane: mine.apply(variables, lane, training(8), mutable=['batch_stats']))(x)
  assert got.dtype == dtype and all(leaf.dtype == 'float32' for leaf in jax.tree.leaves(state))
  for lane in range(2):
    with jax.numpy_dtype_promotion('standard'):
      want, changed = theirs.apply(variables, x[lane], use_running_average=False, mutable=['batch_stats'])
    np.testing.assert_allclose(got[lane].astype('float32'), want.astype('float32'), atol=tolerance)
    for name in ('mean', 'var'):
      np.testing.assert_allclose(state['batch_stats'][name][lane], changed['batch_stats'][name], rtol=1e-4)


@pytest.mark.parametrize('mean', [0, 1e2, 1e4])
def test_batch_norm_far_from_zero_loses_what_its_input_lost(mean):
  """Against float64, values and the image's gradient: some of the distance between two float32 numbers there."""
  tolerance = 1e-5 + 32 * np.spacing(np.float32(mean))
  x = normal(6, 64, 4, 4, 3) + mean
  layer, weight = layers.make_norm('batch'), normal(7, 64, 4, 4, 3)
  variables = layer.init(jax.random.key(0), x, None)
  apply = lambda x: layer.apply(variables, x, training(64), mutable=['batch_stats'])[0]
  wide = np.asarray(x, np.float64)
  centred = wide - wide.mean((0, 1, 2))
  scale = 1 / np.sqrt(centred.var((0, 1, 2)) + 1e-5)
  np.testing.assert_allclose(apply(x), centred * scale, atol=tolerance)
  w = np.asarray(weight, np.float64)
  expected = scale * (w - w.mean((0, 1, 2)) - centred * scale ** 2 * (w * centred).mean((0, 1, 2)))
  np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(apply(x) * weight))(x), expected, atol=tolerance)


def test_pool_shows_a_nan_also_where_a_gradient_is_wanted():
  x = jnp.array([1, jnp.nan, 2, 3]).reshape(1, 2, 2, 1)
  value, gradient = jax.value_and_grad(lambda x: layers.max_pool(x).sum())(x)
  assert np.isnan(layers.max_pool(x)).all() and np.isnan(value)
  np.testing.assert_array_equal(gradient.ravel(), [0, 1, 0, 0])


def test_dropout_keeps_the_mean_and_the_rate():
  x = jnp.ones((64, 1000))
  y = layers.Dropout().apply({}, x, training(64, 0.3), rngs={'dropout': jax.random.key(0)})
  assert abs(float(jnp.mean(y == 0)) - 0.3) < 0.01
  assert abs(float(jnp.mean(y)) - 1) < 0.02


def test_dropout_mask_follows_the_example_not_its_place():
  x, key = jnp.ones((6, 50)), jax.random.key(0)
  whole = layers.Dropout().apply({}, x, training(6, 0.5), rngs={'dropout': key})
  part = layers.Dropout().apply({}, x[:2], layers.Training(example=jnp.array([4, 1]), dropout=jnp.float32(0.5)), rngs={'dropout': key})
  np.testing.assert_array_equal(part, whole[jnp.array([4, 1])])


def test_layers_compute_in_the_dtype_of_their_input():
  x = normal(5, 2, 8, 8, 3).astype(jnp.bfloat16)
  for layer in (layers.Conv(4), layers.Dense(4)):
    variables = layer.init(jax.random.key(0), x)
    assert layer.apply(variables, x).dtype == jnp.bfloat16
    assert variables['params']['kernel'].dtype == jnp.float32


def test_an_image_smaller_than_the_kernel_is_an_error_for_people():
  with pytest.raises(UserError, match='--image_size'):
    layers.Conv(4, (5, 5), padding='VALID').init(jax.random.key(0), jnp.ones((1, 4, 4, 1)))
  with pytest.raises(UserError, match='1x9'):
    layers.max_pool(jnp.ones((1, 1, 9, 1)))
