"""Tables of sweeps over their seeds, reports of folders, and the README's tables."""

import pathlib
import subprocess
import sys

import pytest

from experiments.tables import study
from lepton_jax.config import Config
from lepton_jax.report import settings, studies, sweeps
from lepton_jax.sweep import engine, grid

ROOT = pathlib.Path(__file__).parents[1]


def trial(l2, seed, validation, test):
  result = dict(measure='accuracy', validation_accuracy=validation, test_accuracy=test,
                num_parameters=10, file_bytes=40, train_seconds=1.0, seed=seed)
  return Config().replace(l2=l2, seed=seed), result


def test_table_is_over_seeds_and_shows_test_of_the_best_alone():
  trials = [trial(l2, seed, v, t) for l2, v0, t in ((0.0, 0.5, 0.9), (1e-4, 0.7, 0.6))
            for seed, v in enumerate((v0, v0 + 0.02, v0 + 0.04))]
  rows = settings.rows(trials)
  assert [row['l2'] for row in rows] == [1e-4, 0.0] and [row['seeds'] for row in rows] == [3, 3]
  assert rows[0]['validation_accuracy'] == pytest.approx(0.72)
  assert rows[0]['validation_accuracy_sd'] == pytest.approx(0.02)
  # 4.302653 is Student's t of 2 degrees of freedom.
  assert rows[0]['validation_accuracy_ci95'] == pytest.approx(4.302653 * 0.02 / 3 ** 0.5, abs=1e-5)
  assert rows[0]['test_accuracy'] == pytest.approx(0.6) and rows[1]['test_accuracy'] == ''
  tests = [row['test_accuracy'] for row in settings.rows(trials, all_tests=True)]
  assert tests == [pytest.approx(0.6), pytest.approx(0.9)]


def test_a_setting_that_lacks_a_seed_is_not_the_best():
  trials = [trial(0.0, seed, 0.90, 0.8) for seed in range(3)] + [trial(1e-4, 0, 0.99, 0.7)]
  found = [(row['l2'], row['seeds'], row['test_accuracy']) for row in settings.rows(trials)]
  assert found == [(0.0, 3, pytest.approx(0.8)), (1e-4, 1, '')]


def test_front_keeps_what_nothing_beats_in_both():
  points = [(4, 0.9), (1, 0.5), (2, 0.7), (3, 0.6), (2, 0.8), (5, 0.9)]
  assert settings.front(points) == [(1, 0.5), (2, 0.8), (4, 0.9)]


def test_report_of_a_folder_has_every_form(base, tmp_path):
  configs = grid.product(base, dict(l2=[0.0, 1e-3], learning_rate=[1e-3, 3e-3], seed=[0, 1]))
  engine.sweep(configs, tell=lambda text: None)
  (_, rows), = sweeps.write(sweeps.read(base.run.runs_dir)[0], tmp_path / 'report')
  assert len(rows) == 4 and {row['seeds'] for row in rows} == {2}
  names = {path.name for path in (tmp_path / 'report').iterdir()}
  pictures = {f'{name}.{ending}' for name in ('learning_curves', 'settings', 'heat_map')
              for ending in ('png', 'pdf')}
  tables = {'table.csv', 'trials.csv', 'table.tex', 'differences.tex'}
  assert {'report.md', 'report.html'} | tables | pictures == names
  assert (tmp_path / 'report' / 'table.tex').read_text().count(r'\\') == 5
  text = (tmp_path / 'report' / 'report.md').read_text()
  assert text.count('±') >= 5 and 'heat_map.png' in text


def test_each_data_set_has_a_report_of_its_own_and_failures_are_named(base, tmp_path):
  configs = [base, base.replace(learning_rate=3e-3),
             base.replace(dataset='mnist5k', train_limit=64)]
  engine.sweep(configs, tell=lambda text: None)
  (tmp_path / 'cross-validation').mkdir()
  (tmp_path / 'cross-validation' / 'result.json').write_text('{"folds": 3}')
  broken = base.replace(batch_size=10_000)
  engine.sweep([broken], tell=lambda text: None)
  found, others, without = sweeps.read(tmp_path)
  assert [path.name for path in others] == ['cross-validation']
  assert [config for config, _ in without] == [broken]
  written = sweeps.write(found, tmp_path / 'report', without=without)
  assert {folder.name: len(rows) for folder, rows in written} == {'digits': 2, 'mnist5k': 1}
  assert all(rows[0]['test_accuracy'] != '' for _, rows in written)
  text = (tmp_path / 'report' / 'digits' / 'report.md').read_text()
  # The column that tells who failed is there.
  assert broken.name() in text and 'batch size' in text and 'only 1294' in text


def test_folds_repeat_a_setting_as_seeds_do():
  trials = [trial(l2, 0, v, 0.5) for l2, v in ((0.0, 0.5), (0.0, 0.7), (1e-4, 0.7), (1e-4, 0.9))]
  trials = [(config.replace(folds=2, fold=i % 2), result)
            for i, (config, result) in enumerate(trials)]
  rows = settings.rows(trials)
  assert [(row['l2'], row['seeds'], row['folds']) for row in rows] == [(1e-4, 1, 2), (0.0, 1, 2)]
  assert rows[0]['validation_accuracy'] == pytest.approx(0.8)


def test_latex_bears_what_flags_may_hold():
  trials = [(Config().replace(prune_exclude=text), trial(0.0, 0, 0.5, 0.5)[1])
            for text in (r'^conv|head_1#&\d', 'a{2}~$')]
  text = sweeps.latex(settings.rows(trials))
  assert r'\textasciicircum{}conv|head\_1\#\&\textbackslash{}d' in text
  assert r'a\{2\}\textasciitilde{}\$' in text
  written = sweeps.table(settings.rows(trials))
  assert r'head_1#&\d | ' in written and r'conv\|head' in written


def test_readme_tables_are_the_committed_results():
  done = subprocess.run([sys.executable, '-m', 'experiments.report', '--check'], cwd=ROOT,
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def test_lines_of_studies_stand_together_in_the_order_they_came_first():
  named = lambda name, at, seed: dict(study=name, curve='sparse', at=at, seed=seed)
  lines = [named('cnn', '2', '0'), named('cnn', '8', '0'), named('lstm', '2', '0'),
           named('cnn', '8', '1'), named('cnn', '2', '10'), named('cnn', '2', '2')]
  study.sort(lines, ['study', 'curve', 'at'])
  assert [(line['study'], line['at'], line['seed']) for line in lines] == [
      ('cnn', '2', '0'), ('cnn', '2', '2'), ('cnn', '2', '10'), ('cnn', '8', '0'),
      ('cnn', '8', '1'), ('lstm', '2', '0')]


def test_lines_of_other_options_are_missing_and_make_room_for_new_ones():
  lines = [dict(row=row, seed=seed, flags=flags)
           for row, seed, flags in (('cnn', '0', 'a'), ('cnn', '1', 'old'), ('lstm', '1', 'old'))]
  left = study.without_others(lines, dict(row='cnn'), dict(flags='a'))
  assert [(line['row'], line['seed']) for line in left] == [('cnn', '0'), ('lstm', '1')]
  assert [study.missing(left, dict(row='cnn', seed=seed)) for seed in '012'] == [False, True, True]


def test_a_paper_s_table_has_means_speed_ups_and_what_the_paper_has():
  line = lambda at, test, left, published: dict(
      study='cnn', curve='sparse', across='ratio', at=at, test=test, macs='100',
      nonzero_macs=left, published=published, processor='a computer')
  text = studies.paper_table([line('1', '0.9', '100', ''), line('2', '0.8', '50', '70.1'),
                              line('2', '0.9', '25', '70.1')])
  assert text.splitlines() == [
      '| network | setting | ratio | test, % | seeds | theoretical speed-up | the paper |',
      '|:--|--:|--:|--:|--:|--:|--:|', '| cnn | sparse | 1 | 90.00 | 1 | 1.0 |  |',
      '|  | sparse | 2 | 85.00 ± 7.07 | 2 | 3.0 | 70.1 |', '',
      'Mean ± standard deviation. Made on a computer.']
