"""Sweeps: grids, shared programs, executors that agree bit for bit, failures, claims, tables."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lepton_jax import assemble, outcomes, run, trees
from lepton_jax.config import Config, differing
from lepton_jax.errors import UserError
from lepton_jax.report import settings
from lepton_jax.sweep import claims, cohort, engine, grid, session, trials
from lepton_jax.train import loop, parallel


def results(configs):
  """What a trial came to, times apart."""
  kept = ('name', 'validation_loss', 'test_loss', 'parameters_sha256', 'steps', 'selected_step')
  return {c.name(): {k: outcomes.finished(c)[k] for k in kept} for c in configs}


def test_grid_is_the_product_with_seeds_together():
  configs = grid.product(Config(), dict(seed=[0, 1], l2=[0.0, 1e-4], model=['mlp', 'lenet5']))
  assert [(c.regularize.l2, c.architecture.model, c.training.seed) for c in configs] == [
      (l2, model, seed) for l2 in (0.0, 1e-4) for model in ('mlp', 'lenet5') for seed in (0, 1)]
  assert differing(configs) == ['model', 'l2', 'seed']
  assert len(grid.product(Config(), dict(l2=[0.0, 0.0]))) == 1


def test_strengths_and_seeds_share_programs_but_zero_does_not():
  lists = dict(l2=[0.0, 1e-4, 1e-3], learning_rate=[1e-3, 1e-2], seed=[0, 1],
               optimizer=['adam', 'sgd'])
  configs = grid.product(Config(), lists)
  assert [len(group) for group in trials.programs(configs)] == [4, 4, 8, 8]
  assert sum(len(group) for group in trials.programs(configs)) == len(configs)


def test_another_assembly_is_the_one_built_for_it(small):
  first = small.replace(dropout=0.3, l2=1e-4, prune_sparsity=0.5, quantize_weight_bits=4,
                        quantize_activation_bits=8)
  second = first.replace(seed=3, dropout=0.1, l2=1e-3, prune_sparsity=0.8, quantize_weight_bits=3)
  data = assemble.load_data(first)
  mine, theirs = assemble.build(first, data).another(second), assemble.build(second, data)
  for a, b in zip(jax.tree.leaves(mine.state), jax.tree.leaves(theirs.state), strict=True):
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(mine.batches.at(5)['inputs'], theirs.batches.at(5)['inputs'])


def test_executors_agree_with_each_other_and_with_a_single_run(base, tmp_path):
  """Bit for bit: a trial owns one device and runs one program, whoever starts it."""
  found = {}
  for executor in ('inline', 'devices', 'processes'):  # Ray: test_ray.py
    start = base.replace(runs_dir=str(tmp_path / executor), dropout=0.2)
    configs = grid.product(start, dict(l2=[1e-3, 1e-4]))
    costs = engine.sweep(configs, executor, workers=2, tell=lambda text: None)
    assert costs.trials == 2
    found[executor] = results(configs)
  assert found['inline'] == found['devices'] == found['processes']
  alone = configs[1].replace(runs_dir=str(tmp_path / 'alone'), parallel='jit')
  run.train(alone, quiet=True)
  assert results([alone])[alone.name()] == found['inline'][alone.name()]


def test_one_program_serves_a_grid_of_strengths(base):
  lists = dict(l2=[1e-3, 1e-4], learning_rate=[1e-3, 1e-2], seed=[0, 1])
  configs = grid.product(base.replace(dropout=0.2), lists)
  costs = engine.sweep(configs, tell=lambda text: None)
  assert (costs.trials, costs.programs) == (8, 1)
  assert engine.sweep(configs, tell=lambda text: None)[:2] == (0, 0)  # nothing is trained twice


def test_one_program_serves_sparsities_and_bit_widths(base, tmp_path):
  configs = grid.product(base.replace(quantize_activation_bits=8, prune_end=0.5),
                         dict(prune_sparsity=[0.5, 0.9], quantize_weight_bits=[3, 8]))
  assert engine.sweep(configs, tell=lambda text: None).programs == 1
  found = [outcomes.finished(c) for c in configs]
  assert [round(r['sparsity'], 2) for r in found] == [0.5, 0.5, 0.9, 0.9]
  sizes = [r['file_bytes'] for r in found]
  assert sizes[2] < sizes[0] < sizes[1] and sizes[2] < sizes[3] < sizes[1]
  alone = configs[3].replace(runs_dir=str(tmp_path / 'alone'), parallel='jit')
  run.train(alone, quiet=True)
  assert results([alone])[alone.name()] == results(configs)[alone.name()]


def test_no_collective_is_in_a_trial_s_program(base):
  assembly = assemble.build(base, assemble.load_data(base))
  for lanes in (1, 3):
    program = cohort.Program(assembly, lanes, 1)
    lane, batch = (assembly.state, np.ones((), bool)), assembly.batches.at(0)
    arguments = program.stack([lane] * lanes), program.stack([batch] * lanes)
    text = program.steps[1].lower(*arguments).compile().as_text()
    assert 'dot' in text or 'lepton_product' in text
    collectives = ('all-reduce', 'all-gather', 'collective-permute', 'all-to-all')
    assert not any(name in text for name in collectives)
  # Where devices share a batch there is one.
  layout = parallel.make_parallel('pmap', base.data.batch_size)
  step = layout.step(assembly.train_step(layout.axis))
  arguments = layout.put_state(assembly.state), layout.put_batch(batch)
  shared = step.lower(*arguments).compile().as_text()
  assert 'all-reduce' in shared


def open_trials(configs, lanes):
  data = assemble.load_data(configs[0])
  program = cohort.Program(assemble.build(configs[0], data), lanes, 1)
  return program, [cohort.Trial(c, program, outcomes.folder_of(c)) for c in configs]


def test_lanes_of_one_device_train_as_each_alone_and_a_diverged_one_stops_none(base, tmp_path):
  base = base.replace(optimizer='sgd', epochs=2)
  configs = grid.product(base, dict(learning_rate=[1e-2, 1e30, 3e-2]))
  program, lanes = open_trials(configs, 4)
  cohort.train(program, lanes)
  for trial in lanes:
    trial.close()
  assert 'loss = nan' in lanes[1].failed.error or 'inf' in lanes[1].failed.error
  # The parameters are those before the step that failed.
  params = jax.device_get(lanes[1].state.params)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
  for place in (0, 2):
    alone = configs[place].replace(runs_dir=str(tmp_path / 'alone'), parallel='jit')
    loss = run.train(alone, quiet=True)['validation_loss']
    assert lanes[place].result['validation_loss'] == pytest.approx(loss, rel=1e-4)


def test_a_failed_trial_is_recorded_and_the_others_go_on(base):
  configs = grid.product(base.replace(optimizer='sgd'), dict(learning_rate=[1e30, 1e-2]))
  configs.append(base.replace(batch_size=10_000))
  lines = []
  costs = engine.sweep(configs, tell=lines.append)
  assert costs.trials == 1 and outcomes.finished(configs[1])
  failed = outcomes.failure(configs[0])
  assert 'at step' in failed['error'] and failed['traceback'] == ''
  assert 'there are only' in outcomes.failure(configs[2])['error']
  assert sum('failed' in text for text in lines) == 2
  assert not list(outcomes.folder_of(configs[1]).glob('.claim'))


def test_processes_train_a_failing_trial_once(base):
  configs, lines = grid.product(base.replace(optimizer='sgd'), dict(learning_rate=[1e30, 1e-2])), []
  costs = engine.sweep(configs, 'processes', workers=2, tell=lines.append)
  assert len(lines) == 2 and sum('failed' in text for text in lines) == 1 and costs[:2] == (1, 1)


def test_results_of_other_data_are_refused(base, tmp_path):
  table = tmp_path / 't.csv'

  def write(factor):
    rows = '\n'.join(f'{x},{factor * x}' for x in range(60))
    table.write_text('size,price\n' + rows)
  config = base.replace(model='linear', width=None, dataset=f'csv:{table}', target='price',
                        task='regression', batch_size=8)
  write(2)
  engine.sweep([config], tell=lambda text: None)
  write(3)
  with pytest.raises(UserError, match='begun on other data'):
    engine.sweep(grid.product(config, dict(l2=[0.0, 1e-3])), tell=lambda text: None)


def test_a_trial_needs_a_validation_part(base):
  config = base.replace(validation_fraction=0)
  engine.sweep([config], tell=lambda text: None)
  assert '--validation_fraction' in outcomes.failure(config)['error']


def test_only_what_is_asked_for_is_written(base):
  engine.sweep([base], tell=lambda text: None)
  names = sorted(p.name for p in outcomes.folder_of(base).iterdir())
  assert names == ['config.json', 'data.json', 'metrics.jsonl', 'result.json']


def test_patience_stops_a_trial_alone(base, tmp_path):
  base = base.replace(epochs=6, patience=1)
  configs = grid.product(base, dict(learning_rate=[1e-3, 1e-9]))
  program, lanes = open_trials(configs, 2)
  cohort.train(program, lanes)
  for trial in lanes:
    trial.close()
  assert lanes[1].result['steps'] < lanes[0].result['steps'] == lanes[0].assembly.total_steps


class StopAtSecondLook(loop.StopSignal):
  """A stop that arrives between the check of an epoch and that of its first step."""

  looks = 0

  @property
  def arrived(self):
    self.looks += 1
    return 'SIGTERM' if self.looks > 1 else None

  @arrived.setter
  def arrived(self, value):
    del value


def test_a_stop_before_the_first_step_of_an_epoch_saves(base):
  program, (trial,) = open_trials([base], 1)
  with pytest.raises(loop.Interrupted):
    cohort.train(program, [trial], StopAtSecondLook())
  trial.close()
  assert trial.failed is None and (outcomes.folder_of(base) / 'checkpoints' / '0').exists()
  assert engine.sweep([base], tell=lambda text: None).trials == 1


def test_an_error_in_a_cohort_spares_the_trials_that_are_finished(base, monkeypatch):
  configs = grid.product(base, dict(learning_rate=[1e-3, 1e-2]))
  with session.Session(base.run, False, lambda text: None) as opened:
    worker = opened.workers[0]
    done, other = worker._open(configs)
    cohort.train(done.program, [done])

    def fail(*_):
      raise RuntimeError('out of memory')

    monkeypatch.setattr(cohort, 'train', fail)
    worker._train([done, other], None)
  assert done.failed is None and outcomes.finished(configs[0])['steps'] == done.assembly.total_steps
  assert 'out of memory' in other.failed.error and 'out of memory' in str(
      outcomes.failure(configs[1]))


def test_the_program_that_was_not_used_longest_makes_room(base, monkeypatch):
  monkeypatch.setattr(session, 'KEPT', 2)
  one, two, three = grid.product(base, dict(width=[0.1, 0.2, 0.3]))
  with session.Session(base.run, False, lambda text: None) as opened:
    worker = opened.workers[0]
    first = worker.program(one)
    for config in (two, one, three):
      worker.program(config)
    assert list(worker._kept) == [one.program(), three.program()]
    assert worker.program(one) is first


def hold(folder, ready):
  claim = claims.take(folder)
  ready.set()
  time.sleep(60)
  claim.release()


def test_a_claim_is_held_by_one_and_dies_with_its_process(tmp_path):
  context = multiprocessing.get_context('spawn')
  ready = context.Event()
  other = context.Process(target=hold, args=(tmp_path / 'trial', ready))
  other.start()
  assert ready.wait(30) and claims.take(tmp_path / 'trial') is None
  os.kill(other.pid, signal.SIGKILL)
  other.join()
  mine = claims.take(tmp_path / 'trial')
  assert mine is not None and claims.take(tmp_path / 'trial') is None
  mine.release()
  claims.take(tmp_path / 'trial').release()


def forked():
  """Real processes without importing JAX in each."""
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['tests.conftest', 'lepton_jax.sweep.cohort'])
  return context


def sweeping(configs, cache, said=None):
  """What a process of its own does: the whole sweep."""
  os.environ['XDG_CACHE_HOME'] = cache
  costs = engine.sweep(configs, tell=lambda text: None)
  if said is not None:
    said.put(costs.trials)


def table(configs):
  """The rows of the table without their times."""
  rows = settings.rows([(c, outcomes.finished(c)) for c in configs])
  return [{k: v for k, v in row.items() if k != 'seconds'} for row in rows]


def test_a_killed_sweep_ends_in_the_table_of_one_that_was_not(base, tmp_path):
  """kill -9 while trials are under way; each next process goes on."""
  lists = dict(l2=[1e-4, 1e-3], seed=[0, 1, 2, 3])
  whole, killed = (grid.product(base.replace(runs_dir=str(tmp_path / name), epochs=3), lists)
                   for name in ('whole', 'killed'))
  engine.sweep(whole, tell=lambda text: None)
  finished = lambda: sum(outcomes.finished(c) is not None for c in killed)

  def last_row():
    rows = (tmp_path / 'killed').glob('*/metrics.jsonl')
    return max((path.stat().st_mtime_ns for path in rows), default=0)
  rng = random.Random(3)
  for _ in range(5):
    arguments = (killed, os.environ['XDG_CACHE_HOME'])
    process, before = forked().Process(target=sweeping, args=arguments), last_row()
    process.start()
    while process.is_alive() and last_row() == before:  # until this process trains
      time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.1))
    assert process.is_alive()
    process.kill()
    process.join()
  assert finished() < len(killed)
  engine.sweep(killed, tell=lambda text: None)
  assert table(killed) == table(whole)


def test_two_sweeps_share_a_folder(base):
  configs = grid.product(base, dict(seed=list(range(6))))
  said = forked().Queue()
  both = [forked().Process(target=sweeping, args=(configs, os.environ['XDG_CACHE_HOME'], said))
          for _ in range(2)]
  for process in both:
    process.start()
  assert sum(said.get(timeout=120) for _ in both) == 6
  for process in both:
    process.join()
  assert all(outcomes.finished(c) for c in configs)


def test_a_stopped_sweep_saves_the_trial_it_was_training(tmp_path):
  arguments = [sys.executable, '-m', 'experiments.regularization_sweep', '--model=mlp',
               '--dataset=digits', '--epochs=300', '--l2=1e-4,1e-3', f'--runs_dir={tmp_path}']
  process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  while not any(path.read_text().count('\n') >= 3 for path in tmp_path.glob('*/metrics.jsonl')):
    assert process.poll() is None
    time.sleep(0.05)
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate()
  assert process.returncode == 130 and 'repeat the same command' in errors
  steps = [int(p.name) for p in tmp_path.glob('*/checkpoints/[0-9]*')]
  assert len(steps) == 1 and steps[0] > 0 and not list(tmp_path.glob('*/result.json'))


def test_what_a_sweep_cannot_do_is_refused_before_it_begins(base):
  with pytest.raises(UserError, match='--fold=0,1,2'):
    trials.check([base.replace(folds=3)])
  for options in (dict(rerun=True), dict(parallel='sharded')):
    with pytest.raises(UserError, match=f'--{min(options)}'):
      trials.check([base.replace(**options)])
  with pytest.raises(UserError, match='--l2=-1'):
    grid.product(base, dict(l2=[0.0, -1.0]))


def test_results_do_not_depend_on_who_trained_before(base):
  """A trial that follows others in their program starts as fresh as the first."""
  configs = grid.product(base, dict(seed=[0, 1, 2]))
  engine.sweep(configs, tell=lambda text: None)
  alone = configs[2].replace(runs_dir=base.run.runs_dir + '/alone')
  engine.sweep([alone], tell=lambda text: None)
  assert results([alone]) == results(configs[2:])
  result = json.loads((outcomes.folder_of(alone) / 'result.json').read_text())
  first = results(configs)[configs[0].name()]
  assert result['parameters_sha256'] != first['parameters_sha256']
  state = assemble.build(alone, assemble.load_data(alone)).state
  assert trees.count(state.params) == outcomes.finished(alone)['num_parameters']
