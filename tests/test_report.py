"""Tables of sweeps over their seeds, reports of folders, and the README's tables."""

import pathlib
import subprocess
import sys

import pytest

from lepton_jax.config import Config
from lepton_jax.report import sweeps
from lepton_jax.sweep import engine, grid

ROOT = pathlib.Path(__file__).parents[1]


def trial(l2, seed, validation, test):
  result = dict(validation_accuracy=validation, test_accuracy=test, num_parameters=10, estimated_bytes=40, train_seconds=1.0, seed=seed)
  return Config().replace(l2=l2, seed=seed), result


def test_table_is_over_seeds_and_shows_test_of_the_best_alone():
  trials = [trial(l2, seed, v, t) for l2, v0, t in ((0.0, 0.5, 0.9), (1e-4, 0.7, 0.6)) for seed, v in enumerate((v0, v0 + 0.02, v0 + 0.04))]
  rows = sweeps.rows(trials)
  assert [row['l2'] for row in rows] == [1e-4, 0.0] and [row['seeds'] for row in rows] == [3, 3]
  assert rows[0]['validation_accuracy'] == pytest.approx(0.72) and rows[0]['validation_accuracy_sd'] == pytest.approx(0.02)
  assert rows[0]['validation_accuracy_ci95'] == pytest.approx(4.302653 * 0.02 / 3 ** 0.5, abs=1e-5)  # t of 2 degrees of freedom
  assert rows[0]['test_accuracy'] == pytest.approx(0.6) and rows[1]['test_accuracy'] == ''
  assert [row['test_accuracy'] for row in sweeps.rows(trials, all_tests=True)] == [pytest.approx(0.6), pytest.approx(0.9)]


def test_front_keeps_what_nothing_beats_in_both():
  points = [(4, 0.9), (1, 0.5), (2, 0.7), (3, 0.6), (2, 0.8), (5, 0.9)]
  assert sweeps.front(points) == [(1, 0.5), (2, 0.8), (4, 0.9)]


def test_report_of_a_folder_has_every_form(base, tmp_path):
  configs = grid.product(base, dict(l2=[0.0, 1e-3], learning_rate=[1e-3, 3e-3], seed=[0, 1]))
  engine.sweep(configs, tell=lambda text: None)
  rows = sweeps.write(sweeps.read(base.run.runs_dir), tmp_path / 'report')
  assert len(rows) == 4 and {row['seeds'] for row in rows} == {2}
  names = {path.name for path in (tmp_path / 'report').iterdir()}
  assert {'report.md', 'table.csv', 'table.tex'} | {f'{n}.{e}' for n in ('learning_curves', 'settings', 'heat_map') for e in ('png', 'pdf')} == names
  assert (tmp_path / 'report' / 'table.tex').read_text().count(r'\\') == 5
  text = (tmp_path / 'report' / 'report.md').read_text()
  assert text.count('±') >= 5 and 'heat_map.png' in text


def test_readme_tables_are_the_committed_results():
  done = subprocess.run([sys.executable, '-m', 'experiments.report', '--check'], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
