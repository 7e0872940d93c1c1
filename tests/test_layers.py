import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax import layers
from lepton_jax.errors import UserError
from lepton_jax.layers import convolve


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def training(batch, rate=None, axis=None):
  return layers.Training(example=jnp.arange(batch), dropout=None if rate is None else jnp.float32(rate), axis=axis)


@settings(max_examples=8, deadline=None)
@given(batch=st.integers(1, 19), side=st.integers(5, 9), channels=st.integers(1, 4), features=st.integers(1, 5), kernel=st.integers(1, 5),
       stride=st.integers(1, 2), padding=st.sampled_from(['SAME', 'VALID']))
def test_chunked_convolution_equals_the_plain_one(batch, side, channels, features, kernel, stride, padding):
  x, w = normal(0, batch, side, side, channels), normal(1, kernel, kernel, channels, features)
  strides = (stride, stride)
  plain = lambda x, w: convolve.plain(x, w, strides, padding, 1)
  fast = lambda x, w: convolve.chunked(x, w, strides, padding)
  np.testing.assert_array_equal(fast(x, w), plain(x, w))
  loss = lambda f: lambda x, w: jnp.sum(jnp.sin(f(x, w)))
  for mine, reference in zip(jax.grad(loss(fast), (0, 1))(x, w), jax.grad(loss(plain), (0, 1))(x, w)):
    np.testing.assert_allclose(mine, reference, rtol=1e-4, atol=1e-4)


def test_chunked_convolution_under_vmap():
  x, w = normal(0, 3, 5, 6, 6, 2), normal(1, 3, 3, 3, 2, 4)
  loss = lambda f: lambda x, w: jnp.sum(jnp.sin(f(x, w)))
  fast = jax.vmap(jax.grad(loss(lambda x, w: convolve.chunked(x, w, (1, 1), 'SAME')), 1))(x, w)
  plain = jax.vmap(jax.grad(loss(lambda x, w: convolve.plain(x, w, (1, 1), 'SAME', 1)), 1))(x, w)
  np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=1e-4)


def test_convolution_known_answer():
  """[1..9] with [1..9] plus bias 1: 285 + 1, correlation without flipping."""
  numbers = jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
  layer = layers.Conv(1, (3, 3), padding='VALID')
  params = dict(kernel=numbers.reshape(3, 3, 1, 1), bias=jnp.ones(1))
  assert layer.apply({'params': params}, numbers).item() == 286


@settings(max_examples=8, deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(2, 9), width=st.integers(2, 9), channels=st.integers(1, 3), ties=st.booleans())
def test_max_pool_equals_flax_in_values_and_gradients(batch, height, width, channels, ties):
  x = normal(2, batch, height, width, channels)
  x = jnp.round(x) if ties else x
  reference = lambda x: nn.max_pool(x, (2, 2), strides=(2, 2))
  np.testing.assert_array_equal(layers.max_pool(x), reference(x))
  weigh = lambda f: lambda x: jnp.sum(f(x) * jnp.arange(f(x).size, dtype=x.dtype).reshape(f(x).shape))
  np.testing.assert_array_equal(jax.grad(weigh(layers.max_pool))(x), jax.grad(weigh(reference))(x))


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
