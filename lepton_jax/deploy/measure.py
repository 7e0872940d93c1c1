"""What a packed file is worth: measured anew, beside general coders and its parent."""

import dataclasses
import io
import json
import lzma
import time

import numpy as np
from etils import epath

from lepton_jax import assemble, build_network, evaluation, files, folder, machine, metrics, trees
from lepton_jax.deploy import container, pack
from lepton_jax.errors import UserError

FILE, FACTS = 'network.lepton', 'packed.json'


def packed(place, **options):
  """Packs the run in a folder into it, measures the file, and returns the facts of packed.json."""
  place, trained = epath.Path(place).expanduser(), folder.load(str(place))
  began = time.monotonic()
  data = pack.pack(trained, **options)
  packing, began = time.monotonic() - began, time.monotonic()
  again = opened(data, trained.data)
  unpacking = time.monotonic() - began
  found = dict(name=trained.config.name(), measure=trained.data.measure, file=FILE,
               file_bytes=len(data), options=options,
               dense_bytes=4 * dense_parameters(trained), pack_seconds=packing,
               unpack_seconds=unpacking, **general_coders(data), processor=machine.processor(),
               git_revision=machine.git_revision())
  for split in ('validation', 'test'):
    found |= {f'{split}_{name}': value for name, value in again.measure(split).items()}
  temporary = place / f'{FILE}.partial'
  temporary.write_bytes(data)
  temporary.replace(place / FILE)
  files.write_atomically(place / FACTS, json.dumps(found, indent=2) + '\n')
  return found


def opened(data, examples):
  """The folder.Trained of a file's bytes, with the examples of a data set."""
  found = pack.unpack(data)
  splits = dataclasses.replace(found.data, splits=examples.splits, version=examples.version)
  return dataclasses.replace(found, data=splits)


def open_file(path, **overrides):
  """The folder.Trained of a packed file with the examples of the data set that it names.

  `overrides` replace options such as data_dir. Raises UserError for a bad file, and for data whose
  classes, words or shapes are others.
  """
  try:
    content = epath.Path(path).expanduser().read_bytes()
  except OSError as error:
    raise UserError(f'--artifact={path} cannot be read: {error}') from None
  found = pack.unpack(content)
  config = found.config.replace(**overrides)
  machine.start(config.run)
  examples = assemble.load_data(config)
  for what in ('classes', 'vocabulary', 'input_shape', 'columns'):
    if getattr(examples, what) != getattr(found.data, what):
      raise UserError(f'{path} was packed for other {what.replace("_", " ")} than {examples.name} '
                      f'has now')
  return opened(content, examples)


def dense_parameters(trained):
  """How many parameters the model has before any channel leaves it."""
  whole = build_network.make_network(trained.config, trained.data)
  return trees.count(pack.shapes_of(whole, trained.data))


def general_coders(data):
  """{coder: bytes} of a file whose levels, and nothing else, were coded by others."""
  _, (_, coded) = container.read_header(data)
  levels = levels_of(data)
  raw = b''.join(array.tobytes() for array in levels)
  beside = len(data) - len(coded)
  buffer = io.BytesIO()
  np.savez_compressed(buffer, *levels)
  found = dict(xz_bytes=beside + len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)),
               npz_bytes=beside + len(buffer.getvalue()))
  try:
    import zstandard
    found['zstd_bytes'] = beside + len(zstandard.ZstdCompressor(19).compress(raw))
  except ImportError:
    pass
  return found


def levels_of(data):
  """The levels of a file's arrays in the smallest whole numbers that hold them."""
  found = []
  for array in pack.coded_levels(data):
    most = np.abs(array).max(initial=0)
    found.append(array.astype(np.int8 if most < 128 else np.int16 if most < 32768 else np.int32))
  return found


def forgetting(before, after, split='test'):
  """What compression changed, class by class (arXiv:1911.05248); {} where there are no classes.

  Both are folder.Trained on the same examples. `disagree` is the share of examples that the two
  answer differently.
  """
  if before.data.stream or not before.data.classes or not before.data.size(split):
    return {}
  inputs, label = before.data.splits[split]
  (one, label), (other, _) = (evaluation.by_step(trained.outputs(inputs), np.asarray(label))
                              for trained in (before, after))
  old, new = metrics.probabilities(one), metrics.probabilities(other)
  change = {}
  for number, name in enumerate(before.data.classes):
    of_class = label == number
    if of_class.any():
      right = [float(np.mean(p[of_class].argmax(-1) == number)) for p in (old, new)]
      change[name] = right[1] - right[0]
  worst = min(change, key=change.get)
  return dict(accuracy_before=float(np.mean(old.argmax(-1) == label)),
              accuracy_after=float(np.mean(new.argmax(-1) == label)),
              disagree=float(np.mean(old.argmax(-1) != new.argmax(-1))),
              worst_class=worst, worst_class_change=change[worst], change_of_classes=change,
              calibration_error_before=metrics.calibration_error(old, label),
              calibration_error_after=metrics.calibration_error(new, label))
