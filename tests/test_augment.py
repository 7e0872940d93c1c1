import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.config import Config
from lepton_jax.data import augment

ON = dict(augment_flip=True, augment_crop=2, augment_rotate=20.0, augment_shift=0.1,
          augment_zoom=0.2, augment_brightness=0.2, augment_contrast=0.3, augment_cutout=4,
          augment_mixup=0.5, augment_cutmix=1.0)


def batch(size=8, side=10, channels=3):
  keys = jax.random.split(jax.random.key(0), 2)
  images = jax.random.normal(keys[0], (2, size, side, side, channels))
  return dict(inputs=images[0], label=jnp.arange(size) % 4, other_inputs=images[1],
              other_label=(jnp.arange(size) + 1) % 4,
              example=jnp.arange(size, dtype=jnp.int32))


def make(**options):
  change = augment.make_augment(Config().replace(**options).augment, 4, np.ones(3, np.float32) * 60)
  return change and functools.partial(change, strengths={})


@pytest.mark.parametrize('name', ON)
def test_each_changes_images_by_example_key_alone(name):
  change = make(**{name: ON[name]})
  data = batch()
  if name not in ('augment_mixup', 'augment_cutmix'):
    data = {k: v for k, v in data.items() if not k.startswith('other')}
  whole = change(dict(data), jax.random.key(1))
  assert not np.array_equal(whole['inputs'], data['inputs'])
  rows = jnp.array([5, 2])
  part = change({k: v[rows] for k, v in data.items()}, jax.random.key(1))
  for name in whole:
    np.testing.assert_allclose(part[name], whole[name][rows], atol=1e-6)
  other = change(dict(data), jax.random.key(2))
  assert not np.array_equal(whole['inputs'], other['inputs'])


def test_off_is_absent():
  assert make() is None


def test_all_together_keep_shapes_and_label_mass():
  out = make(**ON)(batch(), jax.random.key(3))
  assert out['inputs'].shape == (8, 10, 10, 3) and set(out) == {'inputs', 'label', 'example'}
  np.testing.assert_allclose(out['label'].sum(-1), np.ones(8), rtol=1e-6)
  assert np.all(np.isfinite(out['inputs']))


def test_flip_mirrors_about_half():
  image = jnp.arange(12.0).reshape(2, 6, 1)
  out = jax.vmap(lambda k: augment.flip(image, k))(jax.random.split(jax.random.key(0), 1000))
  mirrored = np.all(np.asarray(out) == np.asarray(image[:, ::-1]), (1, 2, 3))
  assert 450 < mirrored.sum() < 550
  assert np.all(mirrored | np.all(np.asarray(out) == np.asarray(image), (1, 2, 3)))


def test_crop_moves_whole_pixels_and_repeats_the_edge():
  image = jnp.arange(25.0).reshape(5, 5, 1)
  padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode='edge')
  places = {padded[r:r + 5, c:c + 5].tobytes() for r in range(3) for c in range(3)}
  out = jax.vmap(lambda k: augment.crop(image, k, 1))(jax.random.split(jax.random.key(0), 200))
  assert {np.asarray(o).tobytes() for o in out} == places


def test_affine_without_change_is_the_identity():
  image = batch()['inputs'][0]
  moved = augment.affine(image, jax.random.key(0), 0.0, 0.0, 0.0)
  np.testing.assert_allclose(moved, image, atol=1e-5)


def test_cutout_erases_at_most_its_square():
  image = jnp.ones((12, 12, 1))
  keys = jax.random.split(jax.random.key(0), 50)
  zeros = [int((augment.cutout(image, k, 4) == 0).sum()) for k in keys]
  assert max(zeros) == 16 and min(zeros) >= 4


def test_mixes_are_what_their_share_says():
  a, b = jnp.zeros((20, 20, 1)), jnp.ones((20, 20, 1))
  for key in jax.random.split(jax.random.key(0), 20):
    mixed, share = augment.mixup(a, b, key, 1.0)
    np.testing.assert_allclose(mixed, np.full_like(mixed, 1 - share), rtol=1e-6)
    pasted, share = augment.cutmix(a, b, key, 1.0)
    np.testing.assert_allclose(jnp.mean(pasted), 1 - share, atol=1e-6)
