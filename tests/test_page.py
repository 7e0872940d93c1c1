"""The page of a sweep: its numbers, what names may hold, and clicks in a browser."""

import csv
import json
import re
import shlex

import pytest

from lepton_jax.config import Config
from lepton_jax.errors import UserError
from lepton_jax.report import checklist, differences, page, pictures, settings, sweeps
from tests import browser

HOSTILE = '</script><script>document.title = "taken"</script>'
SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98)


def result_of(config):
  """A result.json like those of real runs: quality falls and files shrink with sparsity."""
  sparsity, seed = config.prune.prune_sparsity, config.training.seed
  accuracy = 0.95 - 0.3 * sparsity ** 8 + 0.002 * seed
  if config.prune.prune_score == 'random':
    accuracy -= 0.1
  kernels = [dict(kernel=f'{layer}/kernel', sparsity=sparsity * share, macs=macs)
             for layer, share, macs in (('conv1', 0.5, 1000), (HOSTILE, 1.0, 5000))]
  return dict(
      name=config.name(), measure='accuracy', validation_accuracy=accuracy, seed=seed,
      test_accuracy=accuracy - 0.01, num_parameters=10_000, sparsity=sparsity, kernels=kernels,
      file_bytes=round(40_000 * (1.05 - sparsity)) + seed, macs=6000,
      nonzero_macs=round(6000 * (1 - sparsity)), train_seconds=1.0 + seed, device='cpu',
      versions=dict(jax='0.10.2'), git_revision='0123456789ab', processor='a processor')


def write_run(folder, config, result):
  place = folder / config.name()
  place.mkdir(parents=True)
  (place / 'config.json').write_text(config.to_json())
  (place / 'result.json').write_text(json.dumps(result))
  rows = [dict(epoch=epoch, step=10 * epoch, validation_accuracy=result['validation_accuracy'] / 2
               * (1 + epoch / 3)) for epoch in (1, 2, 3)]
  (place / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return place


def configs():
  base = Config().replace(prune_exclude=HOSTILE)
  pruned = [base.replace(prune_sparsity=sparsity, seed=seed)
            for sparsity in SPARSITIES for seed in range(3)]
  return pruned + [config.replace(prune_score='random', prune_exclude='') for config in pruned
                   if config.prune.prune_sparsity]


@pytest.fixture(scope='module')
def report(tmp_path_factory):
  """(folder of the report, {name: result.json})."""
  runs = tmp_path_factory.mktemp('runs')
  results = {config.name(): result_of(config) for config in configs()}
  for config in configs():
    place = write_run(runs, config, results[config.name()])
    if not config.prune.prune_sparsity and not config.training.seed:
      (place / 'sensitivity').mkdir()
      (place / 'sensitivity' / 'sensitivity.csv').write_text(
          'kernel,entries,loss at 2 bits\nconv1/kernel,500,0.75\n')
      lost = dict(disagree=0.125, change_of_classes={'3': -0.25, HOSTILE: 0.5})
      (place / 'forgetting.json').write_text(json.dumps(lost))
  found, _, without = sweeps.read(runs)
  (folder, _), = sweeps.write(found, runs / 'report', without=without)
  return folder, results


def embedded(folder):
  text = (folder / 'report.html').read_text()
  return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])


def test_numbers_of_the_page_are_those_of_the_results(report):
  folder, results = report
  data = embedded(folder)
  assert len(data['settings']) == 11 and data['measure'] == 'validation_accuracy'
  trials = {trial['name']: trial for one in data['settings'] for trial in one['trials']}
  assert trials.keys() == results.keys()
  for name, trial in trials.items():
    for field in ('validation_accuracy', 'file_bytes', 'sparsity', 'nonzero_macs', 'seed'):
      assert trial[field] == results[name][field]
  best = data['settings'][0]
  assert best['kernels'][1]['sparsity'] == best['row']['prune_sparsity']
  shown = [one for one in data['settings'] if 'test_accuracy' in one['trials'][0]]
  assert shown == [best]  # test is for what was chosen
  epochs = [epoch for epoch, _, _ in best['curve']]
  assert epochs == [1, 2, 3] and best['curve'][2][1] == pytest.approx(
      best['row']['validation_accuracy'])


def test_a_page_shows_what_lies_beside_its_runs(report):
  found = {one['row']['prune_sparsity']: one for one in embedded(report[0])['settings']}
  assert found[0]['sensitivity'] == [
      {'kernel': 'conv1/kernel', 'entries': 500, 'loss at 2 bits': 0.75}]
  assert found[0]['forgetting']['change_of_classes'][HOSTILE] == 0.5
  assert 'sensitivity' not in found[0.9] and 'forgetting' not in found[0.9]


def test_no_name_ends_the_data_or_begins_a_script(report):
  text = (report[0] / 'report.html').read_text()
  assert text.count('<script') == 2 and text.count('</script>') == 2
  names = {kernel['kernel'] for kernel in embedded(report[0])['settings'][0]['kernels']}
  assert f'{HOSTILE}/kernel' in names
  # No address but the names of SVG and HTML, which nobody fetches.
  assert 'http' not in re.sub(r'http-equiv|http://www.w3.org/(2000/svg|1999/xhtml)', '', text)


def test_numbers_that_json_lacks_are_left_out():
  text = page.render(dict(title='<b>', values=[float('nan'), float('inf'), 1.5]))
  assert '[null, null, 1.5]' in text and '<title>&lt;b&gt;</title>' in text


def test_a_command_is_one_that_a_shell_reads_back():
  config = Config().replace(prune_exclude="it's; rm", augment_flip=True, seed=2, data_dir='a b')
  assert shlex.split(page.command(config)) == [
      './launch.sh', 'train', '--augment_flip=true', "--prune_exclude=it's; rm", '--seed=2',
      '--data_dir=a b']


@pytest.mark.skipif(browser.CHROMIUM is None, reason='needs Chromium')
def test_the_page_is_clicked_through_in_a_browser(report, tmp_path):
  names = '[...document.querySelectorAll("#table tbody tr")].map(row => row.dataset.name)'
  sizes = {one['name']: one['row']['file_bytes'] for one in embedded(report[0])['settings']}
  with browser.opened(report[0] / 'report.html', tmp_path) as opened:
    assert len(opened.ask(names)) == 11 and 'taken' not in opened.ask('document.title')
    for order in ('ascending', 'descending'):
      opened.click('th[data-column=file_bytes] button')
      found = [sizes[name] for name in opened.ask(names)]
      assert found == sorted(sizes.values(), reverse=order == 'descending')
      header = 'document.querySelector("th[data-column=file_bytes]").ariaSort'
      assert opened.ask(header) == order
    opened.click('#filter')
    opened.type('random prune_sparsity>=0.9')
    assert len(opened.ask(names)) == 3 and all('random' in name for name in opened.ask(names))
    assert opened.ask('document.querySelectorAll("#front .point").length') == 3
    opened.hover('#front .point')
    assert opened.ask('document.getElementById("tip").hidden') is False
    assert opened.ask('document.getElementById("tip").textContent').startswith(
        opened.ask('document.querySelector("#front .point").dataset.name'))
    opened.click('#front .point')
    assert opened.ask('document.getElementById("name").textContent') == opened.ask(
        'document.querySelector("#front .point.chosen").dataset.name')
    assert HOSTILE in opened.ask('document.getElementById("chosen").textContent')
    assert '--prune_score=random' in opened.ask('document.querySelector("pre").textContent')
    assert opened.problems == []


def found_of(trials):
  fields = settings.varied([config for config, _ in trials])
  groups = settings.grouped(trials, fields)
  return groups, differences.compare(groups, 'validation_accuracy')


def test_each_setting_is_compared_with_the_dense_one_seed_by_seed():
  groups, compared = found_of([(config, result_of(config)) for config in configs()])
  dense = next(i for i, (_, trials) in enumerate(groups) if differences.dense(trials[0][0]))
  assert compared[dense] is None
  others = [(one, trials) for one, (_, trials) in zip(compared, groups) if one]
  for one, trials in others:
    sparsity = trials[0][0].prune.prune_sparsity
    random = 0.1 * (trials[0][0].prune.prune_score == 'random')
    assert one['base'] == dense and one['seeds'] == 3
    assert one['mean'] == pytest.approx(-0.3 * sparsity ** 8 - random)
    assert one['half'] == pytest.approx(0, abs=1e-12)  # seeds change both alike
    assert one['smaller'] == pytest.approx(42_001 / (40_000 * (1.05 - sparsity) + 1), rel=1e-3)
    assert one['less_work'] == pytest.approx(1 / (1 - sparsity))


def test_too_few_seeds_are_told_with_how_many_would_do():
  # 4.302653 is Student's t of 2 degrees of freedom; 3.182446 of 3, whose interval lacks 0.
  found = differences.of_pairs([0.1, 0.2, 0.3])
  assert found['half'] == pytest.approx(4.302653 * 0.1 / 3 ** 0.5, abs=1e-5) and found['mean'] < (
      found['half'])
  assert 3.182446 * 0.1 / 4 ** 0.5 < 0.2 and found['note'] == (
      'too few seeds to tell: about 4 would do')
  assert differences.of_pairs([0.19, 0.2, 0.21])['note'] == ''
  assert differences.of_pairs([0.1]) == dict(seeds=1, mean=0.1, half=None,
                                             note='one seed: no interval')
  assert 'more than 1,000' in differences.of_pairs([-1.0, 1.0001])['note']


def test_stages_of_equal_settings_are_one_setting_whatever_run_they_came_from(tmp_path):
  dense = [Config().replace(seed=seed, runs_dir=str(tmp_path)) for seed in (0, 1)]
  stages = [config.replace(prune_sparsity=0.5, init_from=str(tmp_path / config.name()))
            for config in dense]
  trials = [(config, result_of(config)) for config in dense + stages]
  for config, result in trials:
    write_run(tmp_path, config, result)
  groups, compared = found_of(trials)
  assert [len(found) for _, found in groups] == [2, 2]
  assert compared[1]['seeds'] == 2 and compared[0] is None


def items_of(chosen):
  trials = [(config, result_of(config)) for config in chosen]
  pairs = {(config.data.dataset, config.architecture.model) for config in chosen}
  groups, compared = found_of(trials)
  return [met for _, met, _ in checklist.check(groups, compared, pairs)]


def test_the_checklist_follows_from_the_trials(report):
  full = items_of(configs())
  assert full == [True] * 8 + [None, False, True, True, False, True, True, True]
  few = [config for config in configs() if config.training.seed == 0
         and config.prune.prune_score == 'magnitude' and config.prune.prune_sparsity in (0.5, 0.8)]
  assert items_of(few)[:7] == [False, False, False, False, False, True, False]
  assert items_of([Config(), Config().replace(l2=0.1)]) == []
  text = (report[0] / 'report.md').read_text()
  assert '13 of 15 items are met' in text
  assert text.rstrip().endswith('|') and text.index('## Checklist') > text.index('size.png')


def test_raw_numbers_of_trials_are_a_table(report):
  folder, results = report
  with (folder / 'trials.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert {row['name']: float(row['validation_accuracy']) for row in rows} == {
      name: result['validation_accuracy'] for name, result in results.items()}
  assert sum(row['test_accuracy'] != '' for row in rows) == 3


def test_pictures_for_print_are_as_wide_as_a_column(report):
  for name in ('learning_curves', 'settings', 'size', 'work'):
    content = (report[0] / f'{name}.pdf').read_bytes()
    width, _ = map(float, re.search(rb'/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]', content).groups())
    assert 3.0 <= width / 72 <= 3.5


def test_names_of_points_cover_neither_points_nor_each_other():
  figure, axis = pictures.new_axes(5, 4)
  places = [(1 + i % 3 / 8, 1 + i // 3 / 8) for i in range(9)] + [(0, 0), (3, 3)]
  axis.plot(*zip(*places), 'o')
  names = [f'sparsity {i}' for i in range(len(places))]
  count = pictures.label_points(axis, [(*place, name) for place, name in zip(places, names)])
  boxes = [text.get_window_extent() for text in axis.texts]
  assert len(boxes) == count >= 8
  assert {'sparsity 9', 'sparsity 10'} <= {text.get_text() for text in axis.texts}
  for i, box in enumerate(boxes):
    assert not box.count_overlaps(boxes[:i] + boxes[i + 1:])
    assert not any(box.contains(*point) for point in axis.transData.transform(places))


def test_a_folder_without_trials_is_told(tmp_path):
  with pytest.raises(UserError, match='no finished runs'):
    sweeps.read(tmp_path)
