"""Random changes of a batch on the device; every example has its own key, so devices do not matter.

Images are normalised already, f32[h, w, c]; what comes in from outside an image repeats its edge.
Texts are int32[time] tokens, 0 after the end.
"""

import dataclasses

import jax
import jax.numpy as jnp


def make_augment(options, num_classes, std):
  """A function (batch, key, strengths) -> batch with the augmentations of `config.Augment`.

  std: f32[channels], the deviation pixels were divided by (brightness is in shares of 255). Traced
  values in `strengths` take the place of the options of their names. Returns None where nothing is
  on. The label becomes f32[batch, classes] when examples are mixed.
  """
  if not options.on:
    return None

  def augment(batch, key, strengths):
    traced = {name: strengths[name] for name in options.on if name in strengths}
    now = dataclasses.replace(options, **traced)
    change_one, mix_one = one_by_one(options, now, std), mixer(options, now)
    keys = jax.vmap(lambda e: jax.random.fold_in(key, e))(batch['example'])
    batch = dict(batch, inputs=jax.vmap(change_one)(batch['inputs'], keys))
    if mix_one is not None:
      other_keys = jax.vmap(lambda k: jax.random.fold_in(k, 1_000))(keys)
      other = jax.vmap(change_one)(batch.pop('other_inputs'), other_keys)
      labels = [jax.nn.one_hot(batch[k], num_classes, dtype=other.dtype)
                for k in ('label', 'other_label')]
      del batch['other_label']
      mix_keys = jax.vmap(lambda k: jax.random.fold_in(k, 1_001))(keys)
      batch['inputs'], batch['label'] = jax.vmap(mix_one)(batch['inputs'], other, *labels, mix_keys)
    return batch

  return augment


def one_by_one(options, now, std):
  """A function (example, key) -> example of the changes on in `options`, as strong as in `now`."""
  def brighten(image, key):
    return brightness(image, key, now.augment_brightness * (255 / jnp.asarray(std, image.dtype)))

  def move(image, key):
    return affine(image, key, now.augment_rotate, now.augment_shift, now.augment_zoom)
  changes = [change for on, change in (
      (options.augment_flip, flip),
      (options.augment_crop, lambda image, key: crop(image, key, now.augment_crop)),
      (options.augment_rotate or options.augment_shift or options.augment_zoom, move),
      (options.augment_brightness, brighten),
      (options.augment_contrast, lambda image, key: contrast(image, key, now.augment_contrast)),
      (options.augment_word_dropout,
       lambda tokens, key: word_dropout(tokens, key, now.augment_word_dropout)),
      (options.augment_cutout, lambda image, key: cutout(image, key, now.augment_cutout)),
  ) if on]

  def change_one(example, key):
    for i, change in enumerate(changes):
      example = change(example, jax.random.fold_in(key, i))
    return example

  return change_one


def mixer(options, now):
  """A function (example, other, label, other label, key) -> (example, label) that mixes examples.

  It is None where `options` mix none.
  """
  mixes = [mix for on, mix in (
      (options.augment_mixup, lambda a, b, key: mixup(a, b, key, now.augment_mixup)),
      (options.augment_cutmix, lambda a, b, key: cutmix(a, b, key, now.augment_cutmix)),
  ) if on]

  def mix_one(image, other, label, other_label, key):
    # With both on, each example takes one of them.
    which = jax.random.randint(key, (), 0, len(mixes))
    results = [mix(image, other, jax.random.fold_in(key, i)) for i, mix in enumerate(mixes)]
    mixed, share = results[0]
    if len(results) > 1:
      mixed, share = jax.tree.map(lambda *r: jnp.stack(r)[which], *results)
    return mixed, share * label + (1 - share) * other_label

  return mix_one if mixes else None


def flip(image, key):
  """Mirrors left and right with probability 1/2."""
  return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def crop(image, key, pad):
  """Moves the image by up to `pad` whole pixels in each direction."""
  height, width, channels = image.shape
  padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode='edge')
  row, column = jax.random.randint(key, (2,), 0, 2 * pad + 1)
  return jax.lax.dynamic_slice(padded, (row, column, 0), (height, width, channels))


def affine(image, key, degrees, share, zoom):
  """Rotates, zooms and shifts the image in one bilinear resampling.

  It turns by up to `degrees`, zooms by a factor within 1 -+ zoom and shifts by up to `share` of the
  side.
  """
  height, width, _ = image.shape
  turn, scale, down, right = jax.random.uniform(key, (4,), image.dtype, -1, 1)
  angle, factor = turn * degrees * jnp.pi / 180, 1 + scale * zoom
  rows = jnp.arange(height, dtype=image.dtype)[:, None] - (height - 1) / 2 - down * share * height
  columns = jnp.arange(width, dtype=image.dtype)[None] - (width - 1) / 2 - right * share * width
  source_rows = (jnp.cos(angle) * rows - jnp.sin(angle) * columns) / factor + (height - 1) / 2
  source_columns = (jnp.sin(angle) * rows + jnp.cos(angle) * columns) / factor + (width - 1) / 2

  def sample(plane):
    places = [source_rows, source_columns]
    return jax.scipy.ndimage.map_coordinates(plane, places, order=1, mode='nearest')
  return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def brightness(image, key, amount):
  """Adds one value within -+ amount[channels] to all pixels."""
  return image + jax.random.uniform(key, (), image.dtype, -1, 1) * amount


def contrast(image, key, amount):
  """Scales the distance from the image's mean by a factor within 1 -+ amount."""
  mean = jnp.mean(image)
  return mean + (image - mean) * (1 + jax.random.uniform(key, (), image.dtype, -1, 1) * amount)


def _square(shape, key, height, width):
  """bool[h, w, 1]: a box of the given size whose centre is anywhere in the image."""
  row = jax.random.randint(jax.random.fold_in(key, 0), (), 0, shape[0])
  column = jax.random.randint(jax.random.fold_in(key, 1), (), 0, shape[1])

  def inside(place, centre, size):
    first = centre - size // 2
    return (place >= first) & (place < first + size)

  rows = inside(jnp.arange(shape[0])[:, None], row, height)
  columns = inside(jnp.arange(shape[1])[None], column, width)
  return rows[..., None] & columns[..., None]


def word_dropout(tokens, key, rate):
  """Replaces words by <unk>, number 1, as words of other texts will be (arXiv:1511.06349).

  tokens is int32[time], or int32[time, 1 + n] of words with their parts, which stay.
  """
  words = tokens if tokens.ndim == 1 else tokens[:, 0]
  words = jnp.where((words > 0) & jax.random.bernoulli(key, rate, words.shape), 1, words)
  return words if tokens.ndim == 1 else tokens.at[:, 0].set(words)


def cutout(image, key, size):
  """Sets a square of side `size` to the data set's mean (arXiv:1708.04552).

  It may lie partly outside at the borders.
  """
  size = jnp.asarray(size).astype(jnp.int32)
  return jnp.where(_square(image.shape, key, size, size), 0, image)


def mixup(image, other, key, alpha):
  """(blend, share of `image`), share ~ Beta(alpha, alpha) (arXiv:1710.09412)."""
  share = jax.random.beta(key, alpha, alpha, dtype=image.dtype)
  return share * image + (1 - share) * other, share


def cutmix(image, other, key, alpha):
  """(image with a box of `other`, share of `image` that is left) (arXiv:1905.04899).

  The box's area is drawn from Beta(alpha, alpha).
  """
  area = jax.random.beta(jax.random.fold_in(key, 2), alpha, alpha, dtype=image.dtype)
  sides = [jnp.round(jnp.sqrt(1 - area) * side).astype(int) for side in image.shape[:2]]
  box = _square(image.shape, key, *sides)
  return jnp.where(box, other, image), 1 - jnp.mean(box.astype(image.dtype))
