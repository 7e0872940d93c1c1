"""Checkpoints that are whole or not there: orbax writes them, a sha256 of every file seals them."""

import hashlib
import json

import jax
import numpy as np
from etils import epath

from lepton_jax import cluster, files, trees

SEAL = 'sha256.json'


class Checkpoints:
  """The checkpoints below one folder, by step.

  A checkpoint counts once its seal, the hashes of all its files, is written. An interrupted save
  has none and is passed over; a changed byte breaks it and is reported.
  """

  def __init__(self, folder, keep=2):
    folder = epath.Path(folder)
    # Orbax takes no relative path.
    self._folder = folder if folder.is_absolute() else folder.resolve()
    self._keep, self._manager = keep, None

  def steps(self):
    """Steps with a folder, sealed or not, newest first."""
    if not self._folder.exists():
      return []
    return sorted((int(p.name) for p in self._folder.iterdir() if p.name.isdigit()), reverse=True)

  def save(self, step, state):
    """Writes and seals the state of a step; one that is there already stays.

    Each of several processes calls it and writes its part.
    """
    folder = self._folder / str(step)
    if not cluster.from_first(lambda: self.problem(step)):
      return
    if cluster.first() and folder.exists():  # of an earlier process that could not seal it
      folder.rmtree()
    cluster.meet()
    if self._manager is None:
      import orbax.checkpoint as ocp
      policy = ocp.checkpoint_managers.LatestN(self._keep)
      self._manager = ocp.CheckpointManager(self._folder, options=ocp.CheckpointManagerOptions(
          preservation_policy=policy, enable_async_checkpointing=False, create=True))
      self._arguments = ocp.args.StandardSave
    self._manager.save(step, args=self._arguments(_flat(state)), force=True)
    self._manager.wait_until_finished()
    if cluster.first():
      files.write_atomically(folder / SEAL, json.dumps(_hashes(folder)))
    cluster.meet()

  def problem(self, step):
    """What is wrong with a checkpoint, in words, or '' for a whole one."""
    folder = self._folder / str(step)
    try:
      sealed = json.loads((folder / SEAL).read_text())
    except FileNotFoundError:
      return f'{folder} was not finished'
    except ValueError:
      return f'{folder / SEAL} is damaged'
    found = _hashes(folder)
    for file in sorted(sealed.keys() | found.keys() if isinstance(sealed, dict) else ()):
      if sealed.get(file) != found.get(file):
        if file not in found:
          state = 'is missing'
        elif file not in sealed:
          state = 'does not belong there'
        else:
          state = 'is damaged'
        return f'{folder / file} {state}'
    return '' if isinstance(sealed, dict) and sealed else f'{folder / SEAL} is damaged'

  def latest(self, report=print):
    """The newest whole checkpoint's step, or None; `report` is told of each that is passed over."""
    for step in self.steps():
      problem = self.problem(step)
      if not problem:
        return step
      report(f'checkpoint passed over: {problem}')
    return None

  def discard_after(self, step):
    """Removes checkpoints later than `step` (None: all), and unfinished saves.

    An unfinished save would be in a new save's way.
    """
    for folder in list(self._folder.iterdir()) if self._folder.exists() else ():
      if not folder.name.isdigit() or step is None or int(folder.name) > step:
        folder.rmtree()

  def restore(self, step, template):
    """The state saved at `step`, with the structure, dtypes and placement of `template`."""
    import orbax.checkpoint as ocp
    wanted = _flat(template)
    with ocp.StandardCheckpointer() as reader:
      shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
      saved = reader.restore(self._folder / str(step) / 'default', shapes)
    return jax.tree.unflatten(jax.tree.structure(template), [saved[name] for name in wanted])

  def restore_named(self, step):
    """The tree of dictionaries of numpy arrays saved at `step`, its shape unknown beforehand."""
    import orbax.checkpoint as ocp
    path = self._folder / str(step) / 'default'
    # Without a place for each array orbax wants the devices, of all processes, that wrote it.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with ocp.StandardCheckpointer() as reader:
      shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
                for name, leaf in ocp.StandardCheckpointHandler().metadata(path).tree.items()}
      saved = reader.restore(path, shapes)
    return trees.nest({name.replace('.', '/'): np.asarray(leaf) for name, leaf in saved.items()})

  def close(self):
    if self._manager is not None:
      self._manager.close()


def _flat(tree):
  """{'params.conv1.kernel': leaf}, in tree order: one level, whatever optax nests."""
  return {name.replace('/', '.'): leaf for name, leaf in trees.named(tree).items()}


def _hashes(folder, prefix=''):
  """{relative path: sha256} of every file below a folder, local or remote, but the seal."""
  hashes = {}
  for path in folder.iterdir():
    if path.is_dir():
      hashes.update(_hashes(path, f'{prefix}{path.name}/'))
    elif SEAL not in path.name:  # nor is its draft
      hashes[prefix + path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
  return hashes
