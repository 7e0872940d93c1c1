"""Sweeps: the grid, shared programs, executors that agree bit for bit, failures, claims, tables over seeds."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lepton_jax import assemble, run, trees
from lepton_jax.config import Config
from lepton_jax.errors import UserError
from lepton_jax.report import sweeps
from lepton_jax.sweep import claims, cohort, engine, grid


@pytest.fixture
def base(small, tmp_path):
  return small.replace(runs_dir=str(tmp_path), save_weights=False, checkpoint_every=0, epochs=1, width=0.25)


def results(configs):
  """What a trial came to, times apart."""
  kept = ('name', 'validation_loss', 'test_loss', 'parameters_sha256', 'steps', 'selected_step')
  return {c.name(): {k: engine.finished(c)[k] for k in kept} for c in configs}


def test_grid_is_the_product_with_seeds_together():
  configs = grid.product(Config(), dict(seed=[0, 1], l2=[0.0, 1e-4], model=['mlp', 'lenet5']))
  assert [(c.regularize.l2, c.architecture.model, c.training.seed) for c in configs] == [
      (l2, model, seed) for l2 in (0.0, 1e-4) for model in ('mlp', 'lenet5') for seed in (0, 1)]
  assert grid.swept(configs) == ['model', 'l2', 'seed']
  assert len(grid.product(Config(), dict(l2=[0.0, 0.0]))) == 1


def test_strengths_and_seeds_share_programs_but_zero_does_not():
  configs = grid.product(Config(), dict(l2=[0.0, 1e-4, 1e-3], learning_rate=[1e-3, 1e-2], seed=[0, 1], optimizer=['adam', 'sgd']))
  assert [len(group) for group in engine.programs(configs)] == [4, 4, 8, 8]
  assert sum(len(group) for group in engine.programs(configs)) == len(configs)


def test_another_assembly_is_the_one_built_for_it(small):
  first = small.replace(dropout=0.3, l2=1e-4, prune_sparsity=0.5, quantize_weight_bits=4, quantize_activation_bits=8)
  second = first.replace(seed=3, dropout=0.1, l2=1e-3, prune_sparsity=0.8, quantize_weight_bits=3)
  data = assemble.load_data(first)
  mine, theirs = assemble.build(first, data).another(second), assemble.build(second, data)
  for a, b in zip(jax.tree.leaves(mine.state), jax.tree.leaves(theirs.state), strict=True):
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(mine.batches.at(5)['inputs'], theirs.batches.at(5)['inputs'])


def test_executors_agree_with_each_other_and_with_a_single_run(base, tmp_path):
  """Bit for bit: a trial owns one device and runs one program, whoever starts it."""
  found = {}
  for executor in engine.EXECUTORS:
    configs = grid.product(base.replace(runs_dir=str(tmp_path / executor), dropout=0.2), dict(l2=[1e-3, 1e-4], seed=[0, 1]))
    costs = engine.sweep(configs, executor, workers=2, tell=lambda text: None)
    assert costs.trials == 4
    found[executor] = results(configs)
  assert found['inline'] == found['devices'] == found['processes']
  alone = configs[2].replace(runs_dir=str(tmp_path / 'alone'), parallel='jit')
  run.train(alone, quiet=True)
  assert results([alone])[alone.name()] == found['inline'][alone.name()]


def test_one_program_serves_a_grid_of_strengths(base):
  configs = grid.product(base.replace(dropout=0.2), dict(l2=[1e-3, 1e-4], learning_rate=[1e-3, 1e-2], seed=[0, 1]))
  costs = engine.sweep(configs, tell=lambda text: None)
  assert (costs.trials, costs.programs) == (8, 1)
  assert engine.sweep(configs, tell=lambda text: None)[:2] == (0, 0)  # nothing is trained twice


def test_no_collective_is_in_a_trial_s_program(base):
  assembly = assemble.build(base, assemble.load_data(base))
  for lanes in (1, 3):
    program = cohort.Program(assembly, lanes, 1)
    lane, batch = (assembly.state, np.ones((), bool)), assembly.batches.at(0)
    text = program.steps[1].lower(program.stack([lane] * lanes), program.stack([batch] * lanes)).compile().as_text()
    assert 'dot' in text and not any(name in text for name in ('all-reduce', 'all-gather', 'collective-permute', 'all-to-all'))


def open_trials(configs, lanes):
  data = assemble.load_data(configs[0])
  program = cohort.Program(assemble.build(configs[0], data), lanes, 1)
  return program, [cohort.Trial(c, program, engine.folder_of(c)) for c in configs]


def test_lanes_of_one_device_train_as_each_alone_and_a_diverged_one_stops_none(base, tmp_path):
  base = base.replace(optimizer='sgd', epochs=2)
  configs = grid.product(base, dict(learning_rate=[1e-2, 1e30, 3e-2]))
  program, trials = open_trials(configs, 4)
  cohort.train(program, trials)
  for trial in trials:
    trial.close()
  assert 'loss = nan' in trials[1].failed.error or 'inf' in trials[1].failed.error
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(trials[1].state.params)))  # as before the step that failed
  for place in (0, 2):
    alone = configs[place].replace(runs_dir=str(tmp_path / 'alone'), parallel='jit')
    assert trials[place].result['validation_loss'] == pytest.approx(run.train(alone, quiet=True)['validation_loss'], rel=1e-4)


def test_a_failed_trial_is_recorded_and_the_others_go_on(base):
  configs = grid.product(base.replace(optimizer='sgd'), dict(learning_rate=[1e30, 1e-2])) + [base.replace(batch_size=10_000)]
  lines = []
  costs = engine.sweep(configs, tell=lines.append)
  assert costs.trials == 1 and engine.finished(configs[1])
  assert 'at step' in engine.failure(configs[0])['error'] and engine.failure(configs[0])['traceback'] == ''
  assert 'there are only' in engine.failure(configs[2])['error']
  assert sum('failed' in text for text in lines) == 2
  assert not list(engine.folder_of(configs[1]).glob('.claim'))


def test_only_what_is_asked_for_is_written(base):
  engine.sweep([base], tell=lambda text: None)
  assert sorted(p.name for p in engine.folder_of(base).iterdir()) == ['config.json', 'data.json', 'metrics.jsonl', 'result.json']


def test_patience_stops_a_trial_alone(base, tmp_path):
  base = base.replace(epochs=6, patience=1)
  configs = grid.product(base, dict(learning_rate=[1e-3, 1e-9]))
  program, trials = open_trials(configs, 2)
  cohort.train(program, trials)
  for trial in trials:
    trial.close()
  assert trials[1].result['steps'] < trials[0].result['steps'] == trials[0].assembly.total_steps


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


def command(folder, *arguments):
  return [sys.executable, '-m', 'experiments.regularization_sweep', '--model=mlp', '--dataset=digits', '--width=0.25', '--epochs=4',
          '--l2=1e-4,1e-3', '--seed=0,1,2', f'--runs_dir={folder}', *arguments]


def table(folder):
  """The table without its times."""
  return [line.rpartition(',')[0] for line in (folder / 'table.csv').read_text().splitlines()]


def test_a_killed_sweep_ends_in_the_table_of_one_that_was_not(tmp_path):
  subprocess.run(command(tmp_path / 'whole'), check=True, capture_output=True)
  kept = tmp_path / 'killed'
  for _ in range(2):
    done = len(list(kept.glob('*/result.json')))
    process = subprocess.Popen(command(kept), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(kept.glob('*/result.json'))) == done:
      time.sleep(0.005)
    process.kill()
    process.wait()
  assert 2 <= len(list(kept.glob('*/result.json'))) < 6
  said = subprocess.run(command(kept), check=True, capture_output=True, text=True).stdout
  assert 'finished already' in said and table(kept) == table(tmp_path / 'whole')


def test_a_stopped_sweep_saves_the_trial_it_was_training(tmp_path):
  arguments = command(tmp_path, '--epochs=300', '--l2=1e-4', '--seed=0', '--width=1')
  process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  while not any(path.read_text().count('\n') >= 3 for path in tmp_path.glob('*/metrics.jsonl')):
    assert process.poll() is None
    time.sleep(0.05)
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate()
  assert process.returncode == 130 and 'repeat the same command' in errors
  steps = [int(p.name) for p in tmp_path.glob('*/checkpoints/[0-9]*')]
  assert len(steps) == 1 and steps[0] > 0 and not list(tmp_path.glob('*/result.json'))


def test_two_sweeps_share_a_folder(tmp_path):
  both = [subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, text=True) for _ in range(2)]
  said = [process.communicate()[0] for process in both]
  trained = [int(next(line for line in text.splitlines() if 'trials trained' in line).split()[0]) for text in said]
  assert sum(trained) == 6 and [p.returncode for p in both] == [0, 0]


def trial(l2, seed, validation, test):
  result = dict(validation_accuracy=validation, test_accuracy=test, num_parameters=10, train_seconds=1.0, seed=seed)
  return Config().replace(l2=l2, seed=seed), result


def test_table_is_over_seeds_and_shows_test_of_the_best_alone():
  trials = [trial(l2, seed, v, t) for l2, v0, t in ((0.0, 0.5, 0.9), (1e-4, 0.7, 0.6)) for seed, v in enumerate((v0, v0 + 0.02, v0 + 0.04))]
  rows = sweeps.rows(trials)
  assert [row['l2'] for row in rows] == [1e-4, 0.0] and [row['seeds'] for row in rows] == [3, 3]
  assert rows[0]['validation_accuracy'] == pytest.approx(0.72) and rows[0]['validation_accuracy_sd'] == pytest.approx(0.02)
  assert rows[0]['validation_accuracy_ci95'] == pytest.approx(4.302653 * 0.02 / 3 ** 0.5, abs=1e-5)  # t of 2 degrees of freedom
  assert rows[0]['test_accuracy'] == pytest.approx(0.6) and rows[1]['test_accuracy'] == ''
  assert [row['test_accuracy'] for row in sweeps.rows(trials, all_tests=True)] == [pytest.approx(0.6), pytest.approx(0.9)]


def test_what_a_sweep_cannot_do_is_refused_before_it_begins(base):
  with pytest.raises(UserError, match='--fold=0,1,2'):
    engine.check([base.replace(folds=3)])
  with pytest.raises(UserError, match='local folder'):
    engine.check([base.replace(runs_dir='gs://bucket/runs')])
  with pytest.raises(UserError, match='--l2=-1'):
    grid.product(base, dict(l2=[0.0, -1.0]))


def test_results_do_not_depend_on_who_trained_before(base):
  """A trial that follows others in their program starts as fresh as the first."""
  configs = grid.product(base, dict(seed=[0, 1, 2]))
  engine.sweep(configs, tell=lambda text: None)
  alone = configs[2].replace(runs_dir=base.run.runs_dir + '/alone')
  engine.sweep([alone], tell=lambda text: None)
  assert results([alone]) == results(configs[2:])
  assert json.loads((engine.folder_of(alone) / 'result.json').read_text())['parameters_sha256'] != results(configs)[configs[0].name()]['parameters_sha256']
  assert trees.count(assemble.build(alone, assemble.load_data(alone)).state.params) == engine.finished(alone)['num_parameters']
