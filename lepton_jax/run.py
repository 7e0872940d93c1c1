"""One run from a configuration to a finished folder: train, resume, cross-validate, read back."""

import json
import time

from etils import epath

from lepton_jax import assemble, evaluation, linear, machine, trees
from lepton_jax import folder as folder_lib


def train(config, quiet=False):
  """Trains what a configuration asks for and returns its result; a finished run folder is only read.

  Writes `runs_dir/name/`: config.json, metrics.jsonl, checkpoints/, weights/, pictures, and
  result.json last. Raises UserError on bad input, train.loop.NotFinite and train.loop.Interrupted.
  """
  folder = epath.Path(config.run.runs_dir).expanduser() / config.name()
  if config.run.rerun and folder.exists() and not config.data.folds:
    folder.rmtree()
  finished = folder_lib.read_result(folder)
  if finished is not None and not config.run.rerun:
    return finished
  if config.data.folds and not config.data.fold:
    return cross_validate(config, folder, quiet)
  return train_one(config, folder, quiet)


def train_one(config, folder, quiet=False):
  """Trains one split in `folder`, from its newest whole checkpoint if there is one."""
  data = assemble.load_data(config)
  machine.start(config.run)
  import jax

  from lepton_jax.train import checkpoint, loop
  from lepton_jax.train import parallel as parallel_lib
  from lepton_jax.train import record as record_lib

  first = jax.process_index() == 0
  quiet = quiet or not first
  tell = (lambda text: None) if quiet else print
  initial = folder_lib.read_weights(config.training.init_from)[0] if config.training.init_from else None
  assembly = assemble.build(config, data, initial)
  closed = config.optimization.solver == 'closed_form'
  if closed:
    linear.check(config)
  layout = parallel_lib.make_parallel(config.run.parallel, config.data.batch_size, config.run.devices)
  state = layout.put_state(assembly.state)
  hparams = layout.put_state(assemble.strengths(config, assembly.network))  # the state's own are given up at each step

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
    return evaluation.evaluate_split(assembly.network, predict, weights, hparams, data, split, config.data.batch_size, layout)

  def validate(state):
    return measure(state, 'validation') if data.size('validation') else {}

  began = time.monotonic()
  try:
    with loop.StopSignal() as stop:
      if closed:
        state, seconds, timed = linear.solve(assembly, state), 0.0, 0
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
      **describe_compression(assembly.network, weights, hparams),
      **(linear.coefficients(assembly.network, data, weights) if config.architecture.model == 'linear' and data.task == 'regression' else {}),
      parameters_sha256=trees.digest(state.trained), seed=config.training.seed, dataset_sha256=data.fingerprint(), **machine.facts())
  if first:
    if config.run.pictures:
      from lepton_jax.report import pictures
      if record.rows:
        pictures.learning_curves(record.rows, folder / 'learning_curves.png', config.name())
    record_lib.write_atomically(folder / folder_lib.RESULT, json.dumps(result, indent=2) + '\n')
  return result


def cross_validate(config, folder, quiet=False):
  """Trains every fold in a folder of its own and returns mean and standard deviation of their measurements."""
  import numpy as np

  from lepton_jax.train import record as record_lib
  results = []
  for fold in range(config.data.folds):
    one = config.replace(fold=fold, runs_dir=str(folder))
    inside = folder / f'fold-{fold}'
    done = None if config.run.rerun else folder_lib.read_result(inside)
    results.append(done or train_one(one, inside, quiet))
  summary = dict(name=config.name(), folds=config.data.folds)
  for name in results[0]:
    if name.startswith(('test_', 'validation_')):
      values = np.array([r[name] for r in results], np.float64)
      summary.update({name: float(values.mean()), f'{name}_sd': float(values.std(ddof=1))})
  summary.update({name: results[0][name] for name in ('num_parameters', 'seed', 'versions', 'device', 'git_revision')})
  summary['train_seconds'] = sum(r['train_seconds'] for r in results)
  record_lib.write_atomically(folder / 'config.json', config.to_json())
  record_lib.write_atomically(folder / folder_lib.RESULT, json.dumps(summary, indent=2) + '\n')
  return summary


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


def describe(config, assembly, layout):
  """The line that opens a run."""
  import jax
  data = assembly.dataset
  sizes = ' / '.join(f'{data.size(s):,}' for s in ('train', 'validation', 'test'))
  del layout
  return (f'{config.name()}: {trees.count(assembly.state.params):,} parameters, {data.name} {sizes} examples, '
          f'{assembly.total_steps:,} steps, {config.run.parallel} on {jax.device_count()} {jax.default_backend()} device(s)')


