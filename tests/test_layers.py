import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lepton_jax import layers
from lepton_jax.errors import UserError
from lepton_jax.layers import columns as column_sums
from lepton_jax.layers import convolve, platform, recurrent
from lepton_jax.layers.native import library
from lepton_jax.layers.product import product
from tests import LONG


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def training(batch, rate=None, axis=None):
  dropout = None if rate is None else jnp.float32(rate)
  return layers.Training(example=jnp.arange(batch), dropout=dropout, axis=axis)


def values_and_gradients(function):
  """Of a function of arrays: its value, and the gradients of a sum with a weight for each entry."""
  def total(*arrays):
    y = function(*arrays).astype(jnp.float32)
    # No weight cancels another, so sums in bfloat16 would be noticed.
    weights = 1.5 + jnp.cos(jnp.arange(y.size, dtype=jnp.float32))
    return jnp.sum(y * weights.reshape(y.shape))

  return lambda *arrays: (function(*arrays), jax.grad(total, tuple(range(len(arrays))))(*arrays))


def assert_near(mine, reference, tolerance):
  """All leaves, relative to the largest entry of each."""
  for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(reference), strict=True):
    one, other = (np.asarray(array, np.float32) for array in (one, other))
    atol = tolerance * max(1, np.abs(other).max())
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=atol)


CHOICES = ('xla', 'onednn') if not isinstance(library.status(), library.Missing) else ('xla',)
TOLERANCE = dict(float32=1e-4, bfloat16=0.05)


@settings(max_examples=40 if LONG else 5)
@given(choice=st.sampled_from(CHOICES), batch=st.integers(1, 19),
       sides=st.tuples(st.integers(5, 9), st.integers(5, 9)),
       channels=st.sampled_from([1, 2, 3, 6, 17]), features=st.sampled_from([1, 3, 16, 32]),
       grouping=st.sampled_from(['one', 'two', 'depthwise']),
       sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
       strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
       padding=st.sampled_from(['SAME', 'VALID']), bias=st.booleans(),
       mapped=st.sampled_from(['', 'x', 'w', 'xw']),
       dtype=st.sampled_from(['float32', 'bfloat16']))
@example(choice=CHOICES[-1], batch=19, sides=(9, 7), channels=3, features=16, grouping='one',
         sizes=(3, 3), strides=(1, 1), padding='SAME', bias=True, mapped='', dtype='float32')
@example(choice=CHOICES[-1], batch=3, sides=(9, 7), channels=6, features=32, grouping='one',
         sizes=(1, 1), strides=(1, 1), padding='SAME', bias=True, mapped='x', dtype='bfloat16')
def test_convolutions_equal_the_plain_one(choice, batch, sides, channels, features, grouping, sizes,
                                          strides, padding, bias, mapped, dtype):
  """Values and all gradients, by each library, over lanes of images, of kernels and of both."""
  groups = dict(one=1, two=2 if channels == 6 else 1, depthwise=channels)[grouping]
  features = channels if grouping == 'depthwise' else 2 * features
  shapes = dict(x=(batch, *sides, channels), w=(*sizes, channels // groups, features))
  x, w = (normal(i, *((2,) if name in mapped else ()), *shape).astype(dtype)
          for i, (name, shape) in enumerate(shapes.items()))
  arrays = (x, w, normal(2, features).astype(dtype)) if bias else (x, w)
  lanes = tuple(0 if name in mapped else None for name in 'xwb'[:len(arrays)])
  run = lambda function, arrays: jax.jit(jax.vmap(function, lanes) if mapped else function)(*arrays)

  def mine(x, w, b=None):
    return convolve.convolve(x, w, b, strides, padding, groups)

  def plain(x, w, b=None):
    pads = jax.lax.padtype_to_pads(x.shape[1:3], w.shape[:2], strides, padding)
    y = convolve.plain(x, w, strides, pads, groups)
    return y if b is None else y + b

  with platform.using(choice):
    found = run(values_and_gradients(mine), arrays)
  exact = [array.astype('float32') for array in arrays]
  assert_near(found, run(values_and_gradients(plain), exact), TOLERANCE[dtype])


@settings(max_examples=20 if LONG else 5)
@given(rows=st.lists(st.integers(1, 9), min_size=1, max_size=3), inputs=st.integers(1, 70),
       features=st.integers(1, 70), mapped=st.sampled_from(['', 'x', 'w', 'xw']),
       dtype=st.sampled_from(['float32', 'bfloat16']))
@example(rows=[300, 2], inputs=70, features=65, mapped='', dtype='float32')  # in several parts
@example(rows=[3], inputs=300, features=700, mapped='', dtype='float32')
def test_products_equal_the_plain_one(rows, inputs, features, mapped, dtype):
  shapes = dict(x=(*rows, inputs), w=(inputs, features))
  x, w = (normal(i, *((2,) if name in mapped else ()), *shape).astype(dtype)
          for i, (name, shape) in enumerate(shapes.items()))
  lanes = tuple(0 if name in mapped else None for name in 'xw')
  run = lambda function: jax.jit(jax.vmap(function, lanes) if mapped else function)(x, w)
  found = run(values_and_gradients(product))
  assert_near(found, run(values_and_gradients(lambda x, w: x @ w)), TOLERANCE[dtype])


def test_gradients_of_gradients_of_convolutions_and_products():
  """As a product with the Hessian takes them."""
  x, w, b, v = normal(0, 4, 6, 5, 3), normal(1, 3, 3, 3, 4), normal(2, 4), normal(3, 4, 2)

  def second(convolution, multiply):
    first = jax.grad(lambda *a: jnp.sum(jnp.sin(multiply(convolution(*a[:3]), a[3]))), (0, 1, 2, 3))
    total = lambda *a: sum(jnp.sum(jnp.sin(g)) for g in first(*a))
    return jax.grad(total, (0, 1, 2, 3))(x, w, b, v)

  pads = ((1, 1), (1, 1))
  mine = second(lambda x, w, b: convolve.convolve(x, w, b, (1, 1), 'SAME', 1), product)
  plain = second(lambda x, w, b: convolve.plain(x, w, (1, 1), pads, 1) + b, lambda x, w: x @ w)
  assert_near(mine, plain, 1e-4)


@pytest.mark.parametrize('shape', [(0, 6, 6, 3), (1, 6, 6, 3)])
def test_batches_of_none_and_of_one(shape):
  y = convolve.convolve(jnp.ones(shape), jnp.ones((3, 3, 3, 4)), jnp.ones(4), (1, 1), 'VALID', 1)
  np.testing.assert_array_equal(y, np.full((shape[0], 4, 4, 4), 28))


def test_float64_stays_float64():
  with jax.enable_x64(True):
    x, w = np.full((2, 5, 5, 3), 1 / 3), np.full((3, 3, 3, 4), 0.1)
    y = convolve.convolve(jnp.asarray(x), jnp.asarray(w), None, (1, 1), 'VALID', 1)
    assert y.dtype == jnp.float64
    np.testing.assert_allclose(y, 0.9, rtol=1e-15)


@pytest.mark.skipif(CHOICES == ('xla',), reason='no oneDNN here')
def test_what_onednn_cannot_do_is_an_error_that_names_the_shapes():
  x, w = jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 4, 8))  # a kernel for 4 channels
  words = r'convolution: image, kernel, result \[2,5,5,3\] \[3,3,4,8\]'
  with pytest.raises(Exception, match=words):
    jax.block_until_ready(convolve.by_onednn(x, w, None, ((1, 1), ((1, 1), (1, 1)), 1)))


@pytest.mark.skipif(CHOICES == ('xla',), reason='no oneDNN here')
def test_a_batch_split_over_devices_is_never_gathered():
  """The programs of convolutions, products and their gradients exchange sums of gradients alone."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ('data',),
                           axis_types=(jax.sharding.AxisType.Auto,))
  split, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
                  for axes in (('data',), ()))
  x, w, b, v = normal(0, 8, 6, 5, 3), normal(1, 3, 3, 3, 4), normal(2, 4), normal(3, 4, 2)

  def loss(x, w, b, v):
    return jnp.sum(jnp.sin(product(convolve.convolve(x, w, b, (1, 1), 'SAME', 1), v)))

  step = jax.jit(jax.grad(loss, (1, 2, 3)), in_shardings=(split, whole, whole, whole),
                 out_shardings=whole)
  text = step.lower(x, w, b, v).compile().as_text()
  assert 'all-reduce' in text
  assert not any(word in text for word in ('all-gather', 'all-to-all', 'collective-permute'))
  assert 'f32[4,6,5,3]' in text and 'f32[8,6,5,' not in text
  assert_near(step(x, w, b, v), jax.grad(loss, (1, 2, 3))(x, w, b, v), 1e-5)


class OfEveryKind(nn.Module):
  """A convolution, a norm, a recurrent and a dense layer."""

  @nn.compact
  def __call__(self, x):
    x = layers.make_norm('batch', name='norm')(layers.Conv(4)(x), None)
    x, _ = recurrent.Recurrent('lstm', 3)(x.reshape(x.shape[0], -1, 4))
    return layers.Dense(2)(x)


def test_exported_programs_hold_no_call_of_this_machine():
  module, x = OfEveryKind(), normal(1, 2, 5, 5, 3)
  variables = module.init(jax.random.key(0), x)
  function = jax.jit(lambda x: module.apply(variables, x))
  here = function(x)  # traced for this machine before it is exported
  exported = platform.export(function, x)
  assert 'custom_call' not in exported.mlir_module() and len(exported.platforms) == 3
  np.testing.assert_allclose(exported.call(x), here, atol=1e-5)


@pytest.mark.parametrize('choice', CHOICES)
def test_shapes_that_do_not_fit_are_errors_not_memory(choice):
  """What the library would read or write beyond an array's end raises before it is called."""
  ones, conv = jnp.ones, functools.partial(convolve.convolve, padding='SAME')
  layer = recurrent.Recurrent('lstm', 16)
  variables = layer.init(jax.random.key(0), ones((4, 7, 3)))
  wrong = dict(
      product=lambda: product(ones((3, 5)), ones((4, 7))),
      channels=lambda: conv(ones((2, 5, 5, 3)), ones((1, 1, 8, 4)), None, (1, 1), groups=1),
      no_group=lambda: conv(ones((2, 5, 5, 3)), ones((3, 3, 3, 4)), None, (1, 1), groups=0),
      groups=lambda: conv(ones((2, 5, 5, 4)), ones((3, 3, 2, 3)), None, (1, 1), groups=2),
      bias=lambda: conv(ones((2, 5, 5, 3)), ones((3, 3, 3, 8)), ones(4), (1, 1), groups=1),
      carry=lambda: layer.apply(variables, ones((64, 7, 3)), carry=(ones((2, 16)),) * 2))
  for name, call in wrong.items():
    with platform.using(choice), pytest.raises((TypeError, ValueError)):
      jax.block_until_ready(call())
      raise AssertionError(name)


@pytest.mark.parametrize('choice', CHOICES)
def test_a_bias_of_another_dtype_and_an_image_smaller_than_the_kernel(choice):
  x, w, b = normal(0, 2, 5, 5, 3), normal(1, 3, 3, 3, 4), jnp.arange(4, dtype=jnp.bfloat16)
  with platform.using(choice):
    y = convolve.convolve(x, w, b, (1, 1), 'SAME', 1)
    small = jax.grad(lambda w: convolve.convolve(x[:, :1, :1], w, None, (1, 1), 'VALID', 1).sum())
    np.testing.assert_array_equal(small(w), jnp.zeros_like(w))
  wanted = convolve.plain(x, w, (1, 1), ((1, 1), (1, 1)), 1) + jnp.arange(4.0)
  np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(CHOICES == ('xla',), reason='no oneDNN here')
def test_lanes_and_rows_over_several_mesh_axes_are_not_gathered():
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ('a', 'b'),
                           axis_types=(jax.sharding.AxisType.Auto,) * 2)
  spec = jax.sharding.PartitionSpec
  on = lambda *axes: jax.sharding.NamedSharding(mesh, spec(*axes))
  x, w, many = normal(0, 8, 6, 5, 3), normal(1, 3, 3, 3, 4), normal(2, 2, 3, 3, 3, 4)

  def check(function, shardings, *arrays):
    program = jax.jit(function, in_shardings=shardings).lower(*arrays).compile()
    assert not any(word in program.as_text() for word in ('all-gather', 'all-to-all'))
    assert_near(program(*jax.device_put(arrays, shardings)), function(*arrays), 1e-5)

  def loss(x, w):
    return jnp.sum(jnp.sin(convolve.convolve(x, w, None, (1, 1), 'SAME', 1)))

  check(jax.grad(loss, 1), (on(('a', 'b')), on()), x, w)
  kernels = lambda x, many: jax.vmap(lambda w: jax.grad(loss, 1)(x, w))(many)
  check(kernels, (on(('a', 'b')), on()), x, many)


def test_convolution_known_answer():
  """[1..9] with [1..9] plus bias 1: 285 + 1, correlation without flipping."""
  numbers = jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
  layer = layers.Conv(1, (3, 3), padding='VALID')
  params = dict(kernel=numbers.reshape(3, 3, 1, 1), bias=jnp.ones(1))
  assert layer.apply({'params': params}, numbers).item() == 286


@settings(max_examples=8)
@given(batch=st.integers(1, 3), height=st.integers(2, 9), width=st.integers(2, 9),
       channels=st.integers(1, 3), ties=st.booleans())
def test_max_pool_equals_flax_in_values_and_gradients(batch, height, width, channels, ties):
  x = normal(2, batch, height, width, channels)
  x = jnp.round(x) if ties else x
  reference = lambda x: nn.max_pool(x, (2, 2), strides=(2, 2))
  np.testing.assert_array_equal(layers.max_pool(x), reference(x))

  def gradient(pool):
    weights = jnp.arange(pool(x).size, dtype=x.dtype).reshape(pool(x).shape)
    return jax.jit(jax.grad(lambda x: jnp.sum(pool(x) * weights)))(x)

  np.testing.assert_array_equal(gradient(layers.max_pool), gradient(reference))


@pytest.mark.parametrize('shape', [(8, 5, 5, 3), (16, 7)])
def test_batch_norm_equals_flax(shape):
  x = normal(4, *shape) * 3 + 10
  mine, theirs = layers.make_norm('batch'), nn.BatchNorm(momentum=0.9)
  variables = mine.init(jax.random.key(0), x, None)
  got, state = mine.apply(variables, x, training(shape[0]), mutable=['batch_stats'])
  want, theirs_state = theirs.apply(variables, x, use_running_average=False,
                                    mutable=['batch_stats'])
  np.testing.assert_allclose(got, want, atol=1e-4)
  for name in ('mean', 'var'):
    np.testing.assert_allclose(state['batch_stats'][name], theirs_state['batch_stats'][name],
                               rtol=1e-4)
  got = mine.apply({**variables, **state}, x, None)
  want = theirs.apply({**variables, **state}, x, use_running_average=True)
  np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-4), ('bfloat16', 0.04)])
def test_batch_norm_of_two_lanes_is_that_of_each(dtype, tolerance):
  """Under vmap batch norm equals Flax's, one lane after the other, also from low precision.

  The statistics are in float32.
  """
  x = (normal(4, 2, 8, 5, 5, 3) * 3 + 10).astype(dtype)
  mine, theirs = layers.make_norm('batch'), nn.BatchNorm(momentum=0.9, dtype=dtype)
  variables = mine.init(jax.random.key(0), x[0], None)
  apply = lambda lane: mine.apply(variables, lane, training(8), mutable=['batch_stats'])
  got, state = jax.vmap(apply)(x)
  assert got.dtype == dtype and all(leaf.dtype == 'float32' for leaf in jax.tree.leaves(state))
  for lane in range(2):
    with jax.numpy_dtype_promotion('standard'):
      want, changed = theirs.apply(variables, x[lane], use_running_average=False,
                                   mutable=['batch_stats'])
    np.testing.assert_allclose(got[lane].astype('float32'), want.astype('float32'), atol=tolerance)
    for name in ('mean', 'var'):
      np.testing.assert_allclose(state['batch_stats'][name][lane], changed['batch_stats'][name],
                                 rtol=1e-4)


@pytest.mark.parametrize('mean', [0, 1e2, 1e4])
def test_batch_norm_far_from_zero_loses_what_its_input_lost(mean):
  """Values and the image's gradient are near those in float64.

  The error is some of the distances between two float32 numbers at the mean.
  """
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
  gradient = jax.grad(lambda x: jnp.sum(apply(x) * weight))(x)
  np.testing.assert_allclose(gradient, expected, atol=tolerance)


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
  two = layers.Training(example=jnp.array([4, 1]), dropout=jnp.float32(0.5))
  part = layers.Dropout().apply({}, x[:2], two, rngs={'dropout': key})
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


@settings(max_examples=20 if LONG else 10)
@given(rows=st.integers(1, 3000), columns=st.integers(1, 200), mean=st.sampled_from([0.0, 100.0]),
       lanes=st.booleans())
def test_moments_and_sums_of_columns_equal_float64(rows, columns, mean, lanes):
  x = np.random.default_rng(rows).normal(mean, 1, (2, rows, columns)).astype(np.float32)
  found = jax.vmap(column_sums.moments)(x) if lanes else column_sums.moments(jnp.asarray(x))
  wide, over = x.astype(np.float64), 1 if lanes else (0, 1)
  np.testing.assert_allclose(found[0], wide.mean(over), rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(found[1], wide.var(over), rtol=1e-5, atol=1e-6)
  if not lanes:
    factor, offset = jnp.ones(columns), jnp.zeros(columns)
    total = lambda x, f, o: jnp.sum(jnp.square(column_sums.scale_and_shift(x, f, o))) / 2
    dx, df, do = jax.grad(total, (0, 1, 2))(x, factor, offset)
    np.testing.assert_array_equal(dx, x)
    np.testing.assert_allclose(df, (wide ** 2).sum((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(do, wide.sum((0, 1)), rtol=1e-4, atol=1e-2)


def test_norm_of_all_leaves():
  """Known answer, over several stretches; and of each lane."""
  tree = dict(a=jnp.full(200_000, 0.5), b=jnp.full((3, 4), 2.0), c=jnp.zeros(()))
  expected = np.sqrt(200_000 * 0.25 + 12 * 4)
  np.testing.assert_allclose(column_sums.global_norm(tree), expected, rtol=1e-7)
  lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, 3 * leaf]), tree)
  norms = jax.vmap(column_sums.global_norm)(lanes)
  np.testing.assert_allclose(norms, [expected, 3 * expected], rtol=1e-7)
