"""One run, from a configuration to a finished folder: train or resume, or cross-validate."""

import json
import time

import jax
import numpy as np
from etils import epath

from lepton_jax import (
  assemble,
  cluster,
  evaluation,
  files,
  finish,
  linear,
  machine,
  other_runs,
  post_training,
  speed,
  trees,
)
from lepton_jax import folder as folder_lib
from lepton_jax import strengths as strengths_lib
from lepton_jax.errors import UserError
from lepton_jax.layers import platform
from lepton_jax.train import checkpoint, loop, profile
from lepton_jax.train import parallel as parallel_lib
from lepton_jax.train import record as record_lib

SEEN_WITHIN = 60  # seconds until a folder that another machine made must show


def train(config, quiet=False):
  """Trains what a configuration asks for and returns its result.

  Writes `runs_dir/name/`: config.json, metrics.jsonl, checkpoints/, weights/, pictures, and
  result.json last. Without --rerun, a finished run folder is only read. Raises UserError on bad
  input, train.loop.NotFinite and train.loop.Interrupted.
  """
  folder = epath.Path(config.run.runs_dir).expanduser() / config.name()
  files.check_store(config.run.runs_dir)
  profile.check(config.run)
  if cluster.expected(config.run):  # then they decide together, and wait for each other's data
    machine.start(config.run)
    # Where a machine keeps its data is its own affair.
    own = dict(process_index=-1, data_dir='', manual_dir='', cache_dir='', compilation_cache='')
    cluster.check_same(dict(config.replace(**own).flat(), git_revision=machine.git_revision()))
  finished = cluster.from_first(lambda: folder_lib.read_result(folder))
  if finished is not None and not config.run.rerun:
    if folder_lib.begun_on(folder) is not None:
      folder_lib.check_data(folder, assemble.load_data(config).version)
    return finished
  if config.data.folds and config.data.fold is None:
    return cross_validate(config, folder, quiet)
  return train_one(config, folder, quiet)


def train_one(config, folder, quiet=False):
  """Trains one split in `folder`, from its newest whole checkpoint if any; returns the result."""
  data = assemble.load_data(config)
  machine.start(config.run)
  first = cluster.first()
  quiet = quiet or not first
  assembly = assemble.build(config, data, **other_runs.read(config, data))
  mode, devices = speed.devices(config.run.parallel, config.run.devices, config.data.batch_size,
                                jax.default_backend())
  layout = parallel_lib.make_parallel(mode, config.data.batch_size, devices)
  calls = speed.calls_of(config, assembly)
  if first:
    open_folder(config, folder, data)
  find_folder(config, folder)
  if not quiet:
    print(describe(config, assembly, layout, mode, calls), flush=True)

  network = assembly.network
  tell = (lambda text: None) if quiet else print
  state, checkpoints = resume(assembly, layout, folder, config.run.keep_checkpoints, tell)
  # A copy for evaluation: each step donates the buffers of the state, strengths included.
  hparams = layout.put_state(strengths_lib.strengths(config, network.compression))
  meter = evaluation.Meter(network, data, layout, hparams)
  record = record_lib.Record(folder, int(state.step), config.run.tensorboard and not quiet,
                             quiet=not first)
  progress = record_lib.Progress(assembly.total_steps, int(state.step), config.name(), quiet)
  began = time.monotonic()
  try:
    if config.optimization.solver == 'closed_form':
      state = layout.put_state(linear.solve(assembly))
    elif config.quantize.quantize_after:
      state = layout.put_state(post_training.quantize(assembly))
    else:
      with profile.hooks(config.run.profile, folder / 'profile', first) as extra:
        state = fit(assembly, layout, calls, state, checkpoints, record, progress,
                    lambda s: meter(s.evaluated, 'validation'), extra)
  finally:
    progress.close()
    record.close()
    checkpoints.close()

  elapsed = time.monotonic() - began
  return finish.finish(config, assembly, folder, state, record.rows, elapsed, meter)


def open_folder(config, folder, data):
  """Makes or finds the run folder, and writes its config.json and data.json.

  With --rerun a folder that is finished, or was begun on other data, is removed first. Raises
  UserError if the run was begun on other data, and for a folder that cannot be made.
  """
  if config.run.rerun and folder.exists():
    finished = folder_lib.read_result(folder) is not None
    if finished or folder_lib.begun_on(folder) != data.version:
      folder.rmtree()
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f'--runs_dir={config.run.runs_dir}: cannot make the folder {folder}: '
                    f'{error.strerror or error}') from None
  files.write_atomically(folder / 'config.json', config.to_keep().to_json())
  folder_lib.check_data(folder, data.version)
  files.write_atomically(folder / folder_lib.DATA, json.dumps(data.facts()) + '\n')


def find_folder(config, folder):
  """Waits until the first of several processes has made the run folder.

  Raises UserError if this process does not see it: checkpoints are written by all of them.
  """
  cluster.meet()
  for _ in range(SEEN_WITHIN):
    if folder_lib.begun_on(folder) is not None:
      return
    time.sleep(1)  # a network's file system may show it late
  raise UserError(f'--runs_dir={config.run.runs_dir}: process {jax.process_index()} does not see '
                  f'{folder}, which process 0 made; several processes need a folder that all their '
                  f'machines share, or gs://BUCKET/PATH')


def resume(assembly, layout, folder, keep, tell):
  """(state, Checkpoints): the initial state, or that of the newest whole checkpoint in `folder`."""
  checkpoints = checkpoint.Checkpoints(folder / 'checkpoints', keep)
  state = layout.put_state(assembly.state)
  at = cluster.from_first(lambda: checkpoints.latest(tell))
  if cluster.first():
    checkpoints.discard_after(at)
  cluster.meet()
  if at is not None:
    state = checkpoints.restore(at, state)
    tell(f'resuming {folder} at step {at}')
  return state, checkpoints


def fit(assembly, layout, calls, state, checkpoints, record, progress, validate, hooks):
  """Compiles the step and trains to the end; returns the last state.

  `hooks` are loop.Hooks before those of the assembly.
  """
  config, train_step = assembly.config, assembly.train_step(layout.axis)

  def batch_at(step, count):
    found = [assembly.batches.at(step + i, layout.rows) for i in range(count)]
    return layout.put_batch(found[0]) if count == 1 else layout.put_batches(found)

  compression = assembly.network.compression
  try:
    with loop.AgreedStop() if cluster.connected() else loop.StopSignal() as stop:
      return loop.fit(
          state, step_fns={n: layout.step(train_step, n) for n in {1, calls}}, batch_at=batch_at,
          batch_size=config.data.batch_size, total_steps=assembly.total_steps,
          steps_per_epoch=assembly.batches.steps_per_epoch,
          hooks=hooks + assembly.make_hooks(layout.put_examples, layout.rows, layout.predict),
          evaluate=validate, selectable_from=assembly.selectable_from,
          patience=config.training.patience,
          save=lambda s: checkpoints.save(int(s.step), s), save_every=config.run.checkpoint_every,
          record=record, progress=progress,
          describe=lambda s: compression.describe(s.params, s.held), stop=stop)
  except loop.NotFinite as error:
    last = checkpoints.latest(lambda text: None)
    kept = 'no checkpoint had been written yet'
    if last is not None:
      kept = f'the last good checkpoint is step {last}'
    raise loop.NotFinite(f'{error}: training stopped; {kept}. '
                         f'A lower --learning_rate or --clip_norm=1 may help') from None


def cross_validate(config, folder, quiet=False):
  """Trains each fold in its own folder; returns means and standard deviations of measurements."""
  if cluster.first():
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomically(folder / 'config.json', config.to_keep().to_json())
  results = []
  for fold in range(config.data.folds):
    one = config.replace(fold=fold, runs_dir=str(folder))
    inside = folder / f'fold-{fold}'
    done = cluster.from_first(lambda inside=inside: folder_lib.read_result(inside))
    results.append(done if done and not config.run.rerun else train_one(one, inside, quiet))
  summary = dict(name=config.name(), folds=config.data.folds)
  for name in results[0]:
    if name.startswith(('test_', 'validation_')):
      values = np.array([r[name] for r in results], np.float64)
      summary.update({name: float(values.mean()), f'{name}_sd': float(values.std(ddof=1))})
  same = ('num_parameters', 'steps', 'examples_per_second', 'seed', 'versions', 'device', 'devices',
          'convolution', 'git_revision')
  summary.update({name: results[0][name] for name in same})
  summary['train_seconds'] = sum(r['train_seconds'] for r in results)
  if cluster.first():
    files.write_atomically(folder / folder_lib.RESULT, json.dumps(summary, indent=2) + '\n')
  return summary


def describe(config, assembly, layout, mode, calls):
  """The line that opens a run."""
  data = assembly.dataset
  sizes = ' / '.join(f'{data.size(s):,}' for s in ('train', 'validation', 'test'))
  convolutions = platform.describe(config.run.convolution, config.architecture.dtype)
  return (f'{config.name()}: {trees.count(assembly.state.params):,} parameters, '
          f'{data.name} {sizes} examples, {assembly.total_steps:,} steps, {calls} a call, '
          f'{mode} on {layout.devices} {jax.default_backend()} device(s), '
          f'convolutions by {convolutions}')
