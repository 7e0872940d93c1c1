"""One run from a configuration to a finished folder: train, resume, cross-validate, read back."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import subprocess
import time

from etils import epath

from lepton_jax import assemble, config as config_lib, trees
from lepton_jax.errors import UserError

PACKAGES = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
RESULT = 'result.json'


def train(config, quiet=False):
  """Trains what a configuration asks for and returns its result; a finished run folder is only read.

  Writes `runs_dir/name/`: config.json, metrics.jsonl, checkpoints/, weights/, pictures, and
  result.json last. Raises UserError on bad input, train.loop.NotFinite and train.loop.Interrupted.
  """
  folder = epath.Path(config.run.runs_dir).expanduser() / config.name()
  if config.run.rerun and folder.exists() and not config.data.folds:
    folder.rmtree()
  finished = read_result(folder)
  if finished is not None and not config.run.rerun:
    return finished
  if config.data.folds and not config.data.fold:
    return cross_validate(config, folder, quiet)
  return train_one(config, folder, quiet)


def train_one(config, folder, quiet=False):
  """Trains one split in `folder`, from its newest whole checkpoint if there is one."""
  data = assemble.load_data(config)
  start_jax(config)
  import jax
  from lepton_jax.train import checkpoint, loop, parallel as parallel_lib, record as record_lib

  first = jax.process_index() == 0
  quiet = quiet or not first
  tell = (lambda text: None) if quiet else print
  initial = read_weights(config.training.init_from)[0] if config.training.init_from else None
  assembly = assemble.build(config, data, initial)
  closed = config.optimization.solver == 'closed_form'
  if closed:
    check_closed_form(config)
  layout = parallel_lib.make_parallel(config.run.parallel, config.data.batch_size, config.run.devices)
  state = layout.put_state(assembly.state)

  if first:
    folder.mkdir(parents=True, exist_ok=True)
    record_lib.write_atomically(folder / 'config.json', config.to_json())
  checkpoints = checkpoint.Checkpoints(folder / 'checkpoints', config.run.keep_checkpoints)
  at = checkpoints.latest(tell)
  if first:
    checkpoints.discard_after(at)
  if at is not None:
    state = checkpoints.restore(at, state)
    tell(f'resuming {folder} at step {at}')
  step_fn = layout.step(assembly.train_step(layout.axis))
  predict = layout.predict(assembly.network.predict)
  record = record_lib.Record(folder, at or 0, config.run.tensorboard and not quiet, quiet=not first)
  if not quiet:
    print(describe(config, assembly, layout), flush=True)
  progress = record_lib.Progress(assembly.total_steps, at or 0, config.name(), quiet)

  def measure(state_or_weights, split):
    weights = getattr(state_or_weights, 'evaluated', state_or_weights)
    return evaluate_split(assembly.network, predict, weights, state.hparams, data, split, config.data.batch_size, layout)

  def validate(state):
    return measure(state, 'validation') if data.size('validation') else {}

  began = time.monotonic()
  try:
    with loop.StopSignal() as stop:
      if closed:
        state, seconds, timed = solve_closed_form(assembly, state), 0.0, 0
      else:
        state, seconds, timed = loop.fit(
            state, step_fn=step_fn, batch_at=lambda step: layout.put_batch(assembly.batches.at(step, layout.rows)),
            total_steps=assembly.total_steps, steps_per_epoch=assembly.batches.steps_per_epoch,
            hooks=assembly.make_hooks(layout.put_examples, layout.rows, layout.predict), evaluate=validate,
            selectable_from=assembly.selectable_from, patience=config.training.patience,
            save=lambda s: checkpoints.save(int(s.step), s), save_every=config.run.checkpoint_every,
            record=record, progress=progress, describe=lambda s: describe_state(assembly.network, s), stop=stop)
  except loop.NotFinite as error:
    last = checkpoints.latest(lambda text: None)
    kept = f'the last good checkpoint is step {last}' if last is not None else 'no checkpoint had been written yet'
    raise loop.NotFinite(f'{error}: training stopped; {kept}. A lower --learning_rate or --clip_norm=1 may help') from None
  finally:
    progress.close()
    record.close()
    checkpoints.close()

  use_best = config.training.select == 'best' and state.best and int(state.best['step'])
  weights = state.best['weights'] if use_best else state.evaluated
  checkpoint.Checkpoints(folder / 'weights', 2).save(int(state.step), weights)
  result = dict(
      name=config.name(), **{f'test_{k}': v for k, v in (measure(weights, 'test') if data.size('test') else {}).items() if k != 'score'},
      **{f'validation_{k}': v for k, v in (measure(weights, 'validation') if data.size('validation') else {}).items() if k != 'score'},
      num_parameters=trees.count(state.params), steps=int(state.step), epochs=int(state.step) / assembly.batches.steps_per_epoch,
      selected_step=int(state.best['step']) if use_best else int(state.step),
      train_seconds=record.rows[-1]['seconds'] if record.rows else time.monotonic() - began,
      examples_per_second=timed * config.data.batch_size / seconds if seconds else None,
      **describe_compression(assembly.network, weights, state.hparams),
      **(linear_coefficients(assembly.network, data, weights) if config.architecture.model == 'linear' and data.task == 'regression' else {}),
      parameters_sha256=trees.digest(state.trained), seed=config.training.seed, dataset_sha256=data.fingerprint(), **environment())
  if first:
    if config.run.pictures:
      from lepton_jax.report import pictures
      if record.rows:
        pictures.learning_curves(record.rows, folder / 'learning_curves.png', config.name())
    record_lib.write_atomically(folder / RESULT, json.dumps(result, indent=2) + '\n')
  return result


def cross_validate(config, folder, quiet=False):
  """Trains every fold in a folder of its own and returns mean and standard deviation of their measurements."""
  import numpy as np
  from lepton_jax.train import record as record_lib
  results = []
  for fold in range(config.data.folds):
    one = config.replace(fold=fold, runs_dir=str(folder))
    inside = folder / f'fold-{fold}'
    done = None if config.run.rerun else read_result(inside)
    results.append(done or train_one(one, inside, quiet))
  summary = dict(name=config.name(), folds=config.data.folds)
  for name in results[0]:
    if name.startswith(('test_', 'validation_')):
      values = np.array([r[name] for r in results], np.float64)
      summary.update({name: float(values.mean()), f'{name}_sd': float(values.std(ddof=1))})
  summary.update({name: results[0][name] for name in ('num_parameters', 'seed', 'versions', 'device', 'git_revision')})
  summary['train_seconds'] = sum(r['train_seconds'] for r in results)
  record_lib.write_atomically(folder / 'config.json', config.to_json())
  record_lib.write_atomically(folder / RESULT, json.dumps(summary, indent=2) + '\n')
  return summary


def evaluate_split(network, predict, weights, hparams, data, split, batch_size, layout):
  """{measurement: float} of weights on a whole split, every example counted once; 'score' ranks epochs."""
  logits, label = predictions(predict, weights, hparams, data, split, batch_size, layout)
  return measurements(network, logits, label, hparams)


def predictions(predict, weights, hparams, data, split, batch_size, layout):
  """Logits f32[n, outputs] and labels [n] of a split, in its order."""
  import numpy as np
  from lepton_jax.data import batches
  inputs, label = data.splits[split]
  parts = []
  for batch in batches.passes(inputs, label, batch_size, layout.rows):
    parts.append(predict(weights, layout.put_examples(batch['inputs']), hparams))
    if len(parts) > 8:
      parts[-9] = np.asarray(parts[-9])  # a few batches stay in flight, the rest need not stay on the device
  return np.concatenate([np.asarray(p) for p in parts])[:len(label)], np.asarray(label)


def measurements(network, logits, label, hparams):
  """Mean loss, and accuracy or RMSE and MAE in the target's units, over all examples in float64."""
  import jax.numpy as jnp
  import numpy as np
  batch = dict(label=jnp.asarray(label))
  if network.loss == 'mse':
    batch['label'] = (batch['label'] - network.target[0]) / network.target[1]
  mean = lambda values: float(np.mean(np.asarray(values), dtype=np.float64))
  plain = {k: v for k, v in hparams.items() if k != 'label_smoothing'}
  loss = mean(network.loss_per_example(jnp.asarray(logits), batch, plain))
  if network.loss == 'mse':
    error = np.asarray(logits[:, 0], np.float64) * network.target[1] + network.target[0] - label
    return dict(loss=loss, rmse=float(np.sqrt(np.mean(error ** 2))), mae=float(np.mean(np.abs(error))), score=-loss)
  accuracy = mean(network.measure(jnp.asarray(logits), batch))
  return dict(loss=loss, accuracy=accuracy, score=accuracy)


def check_closed_form(config):
  """Raises UserError unless least squares is what the options describe."""
  if config.architecture.model != 'linear' or config.optimization.loss != 'mse':
    raise UserError('--solver=closed_form solves --model=linear --loss=mse only')
  for name in ('l1', 'l2', 'prune_sparsity', 'quantize_weight_bits', 'quantize_activation_bits'):
    if config.flat()[name]:
      raise UserError(f'--solver=closed_form knows no --{name}')


def solve_closed_form(assembly, state):
  """The state with the least-squares solution on the training part (minimum norm where it is not unique)."""
  import jax.numpy as jnp
  import numpy as np
  network, (inputs, label) = assembly.network, assembly.dataset.splits['train']
  x = (np.asarray(inputs, np.float64).reshape(len(label), -1) - np.tile(network.mean, np.prod(inputs.shape[1:-1], dtype=int))) / np.tile(network.std, np.prod(inputs.shape[1:-1], dtype=int))
  y = (np.asarray(label, np.float64) - network.target[0]) / network.target[1]
  solution = np.linalg.lstsq(np.concatenate([x, np.ones((len(x), 1))], 1), y, rcond=None)[0]
  head = state.params['head']
  params = dict(state.params, head=dict(kernel=jnp.asarray(solution[:-1, None], head['kernel'].dtype), bias=jnp.asarray(solution[-1:], head['bias'].dtype)))
  return state.replace(params=params)


def linear_coefficients(network, data, weights):
  """Slopes and intercept of a linear regression in the units of the table."""
  import numpy as np
  head = weights['params']['head']
  slopes = np.asarray(head['kernel'][:, 0], np.float64) * network.target[1] / network.std
  intercept = float(network.target[0] + network.target[1] * float(head['bias'][0]) - slopes @ network.mean)
  return dict(intercept=intercept, coefficients=dict(zip(data.columns, map(float, slopes))))


def describe_state(network, state):
  """More columns for an epoch's row."""
  from lepton_jax.compress.prune import masks
  return dict(sparsity=masks.sparsity(state.params, network.prunable)) if network.prunable else {}


def describe_compression(network, weights, hparams):
  """Sparsity and bits of the final arrays, and what each kernel got or why not.

  `sparsity` counts zeros of the trained kernels; `rounded_sparsity` after quantisation, which rounds
  small weights to zero as well.
  """
  from lepton_jax.compress.prune import masks
  from lepton_jax.compress.quantize import sites
  config, kernels = network.config, trees.kernels(weights['params'])
  prunable = network.prunable or kernels
  excluded = trees.matching(config.quantize.quantize_exclude, kernels, 'quantize_exclude')
  rows = sites.report(kernels, config.quantize.quantize_weight_bits, config.quantize.quantize_activation_bits, excluded,
                      network.sites, config.quantize.quantize_exclude)
  rounded = network.round_kernels(weights, hparams)
  return dict(sparsity=masks.sparsity(weights['params'], prunable), rounded_sparsity=masks.sparsity(rounded['params'], prunable),
              quantized_kernels=sum('reason' not in row for row in rows), kernels=rows)


def read_result(folder):
  """The result of a finished run folder, or None."""
  path = epath.Path(folder) / RESULT
  return json.loads(path.read_text()) if path.exists() else None


def read_config(folder):
  """The configuration of a run folder; raises UserError if it is none."""
  path = epath.Path(folder).expanduser() / 'config.json'
  if not path.exists():
    raise UserError(f'{folder} is not a run folder: it has no config.json')
  return config_lib.Config.from_json(path.read_text(), source=str(path))


def read_weights(folder):
  """({'params', 'quant', 'model_state'}, step) of a finished run; raises UserError for anything else, damage included."""
  from lepton_jax.train import checkpoint
  read_config(folder)
  store = checkpoint.Checkpoints(epath.Path(folder).expanduser() / 'weights')
  problems = []
  step = store.latest(problems.append)
  if step is None:
    raise UserError(f'{folder} holds no finished weights{": " + "; ".join(problems) if problems else ""}; run it to its end first')
  return dict(dict(params={}, quant={}, model_state={}), **store.restore_named(step)), step


@dataclasses.dataclass(frozen=True)
class Trained:
  """A finished run, ready to predict. `data` is its data set, `network` its forward pass."""
  config: config_lib.Config
  data: object
  network: object
  weights: dict
  hparams: dict

  def logits(self, inputs, batch_size=None):
    """f32[n, outputs] for raw inputs [n, ...] as the data set gives them; in regression, values in the target's units."""
    import numpy as np
    from lepton_jax.train import parallel
    layout = parallel.make_parallel('jit', 1)
    split = dict(inputs=(inputs, np.zeros(len(inputs), np.int32)))
    holder = dataclasses.replace(self.data, splits=split)
    outputs, _ = predictions(layout.predict(self.network.predict), self.weights, self.hparams, holder, 'inputs',
                             batch_size or self.config.data.batch_size, layout)
    return outputs * self.network.target[1] + self.network.target[0] if self.network.loss == 'mse' else outputs


def load(folder, **overrides):
  """The Trained run in a folder; `overrides` replace configuration fields such as data_dir."""
  import jax.numpy as jnp
  import jax
  config = read_config(folder).replace(**overrides).check()
  data = assemble.load_data(config)
  start_jax(config)
  weights, _ = read_weights(folder)
  network = assemble.make_network(config, data)
  network = assemble.with_compression(network, weights['params'], weights['model_state'], data)
  return Trained(config, data, network, jax.tree.map(jnp.asarray, weights), assemble.strengths(config, network))


def start_jax(config):
  """Settings that must precede the first use of a device: virtual devices, the cache of compiled programs."""
  import jax
  if config.run.cpu_devices:
    with contextlib.suppress(RuntimeError):  # devices are in use already; --devices complains if they are too few
      jax.config.update('jax_num_cpu_devices', config.run.cpu_devices)
  where = config.run.compilation_cache
  if where != 'off':
    home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update('jax_compilation_cache_dir', str(pathlib.Path(where).expanduser() if where else pathlib.Path(home) / 'lepton_jax' / 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def describe(config, assembly, layout):
  """The line that opens a run."""
  import jax
  data = assembly.dataset
  sizes = ' / '.join(f'{data.size(s):,}' for s in ('train', 'validation', 'test'))
  del layout
  return (f'{config.name()}: {trees.count(assembly.state.params):,} parameters, {data.name} {sizes} examples, '
          f'{assembly.total_steps:,} steps, {config.run.parallel} on {jax.device_count()} {jax.default_backend()} device(s)')


def environment():
  """Versions, device, git revision and time, for result.json."""
  import jax
  return dict(versions={p: importlib.metadata.version(p) for p in PACKAGES}, device=jax.devices()[0].device_kind, devices=jax.device_count(),
              git_revision=_git_revision(), finished=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'))


def _git_revision():
  """The commit of this source, with '-dirty' if files differ from it; None outside git."""
  here = pathlib.Path(__file__).parent
  try:
    return subprocess.run(['git', '-C', str(here), 'describe', '--always', '--dirty', '--abbrev=12'], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None
