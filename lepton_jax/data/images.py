"""Images to arrays."""

import numpy as np

from lepton_jax.errors import UserError


def resize(image, size):
  """A PIL image, antialiased, as uint8[size, size, channels]; it keeps its channels (1 or 3)."""
  from PIL import Image
  array = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
  return array[..., None] if array.ndim == 2 else array


def resize_all(images, size):
  """uint8[n, h, w, c] to uint8[n, size, size, c]; size 0 or their own leaves them as they are."""
  if not size or images.shape[1:3] == (size, size):
    return images
  from PIL import Image
  grey = images.shape[-1] == 1
  return np.stack([resize(Image.fromarray(i[..., 0] if grey else i), size) for i in images])


def stack(images, what):
  """A list of uint8[h, w, c] as one array; raises UserError where their sizes differ."""
  shapes = {i.shape for i in images}
  if len(shapes) > 1:
    raise UserError(
        f'{what}: images have different sizes, such as {sorted(shapes)[:3]}; pass --image_size')
  return np.stack(images)
