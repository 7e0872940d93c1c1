"""The notebook experiments/tour.ipynb: its short form runs, and what is committed has run."""

import json
import math
import pathlib
import re

import numpy as np
import pytest

NOTEBOOK = pathlib.Path(__file__).parents[1] / 'experiments' / 'tour.ipynb'
OF_MACHINES = re.compile(r'/(tmp|home|root|Users|usr|var|mnt)/|[A-Z]:\\|site-packages')


def code_cells():
  return [cell for cell in json.loads(NOTEBOOK.read_text())['cells']
          if cell['cell_type'] == 'code']


def told(cell):
  """What a committed cell printed and showed as text."""
  texts = [output.get('text', output.get('data', {}).get('text/plain', ''))
           for output in cell['outputs']]
  return '\n'.join(''.join(text) for text in texts)


@pytest.fixture
def tour(tmp_path, monkeypatch):
  """The names that the cells leave behind, run after a short training, in a folder of their own."""
  import matplotlib
  monkeypatch.setenv('LEPTON_TOUR_EPOCHS', '1')
  monkeypatch.setenv('LEPTON_TOUR_EXAMPLES', '1000')
  monkeypatch.chdir(tmp_path)
  names = {}
  with matplotlib.rc_context():
    matplotlib.use('Agg')
    from matplotlib import pyplot
    for number, cell in enumerate(code_cells()):
      exec(compile(''.join(cell['source']), f'tour cell {number + 1}', 'exec'), names)
    names['pictures'] = len(pyplot.get_fignums())
    pyplot.close('all')
  return names


def test_short_form_runs_and_its_numbers_fit_together(tour):
  """One test, because each worker that takes a part of it would train the networks again."""
  check_loaded_networks(tour)
  check_insides(tour)
  check_pruned_and_rounded_by_hand(tour)
  check_what_training_found(tour)
  check_files(tour)
  assert tour['pictures'] == 8


def check_loaded_networks(tour):
  assert tour['accuracy'] == tour['dense']['test_accuracy'] == tour['tested']['dense'] > 0.5
  assert tour['lstm'].measure('test')['accuracy'] == tour['reader']['test_accuracy'] > 0.2
  # Copies with other weights were made of it, and it is as it was.
  assert tour['cnn'].measure('test')['accuracy'] == tour['accuracy']
  assert tour['dense']['num_parameters'] == 431_080
  assert sum(kernel.size for kernel in tour['kernels'].values()) == 430_500


def check_insides(tour):
  picture, cnn, lstm = tour['picture'], tour['cnn'], tour['lstm']
  assert tour['activations']['conv1'].shape == (1, 24, 24, 20)
  np.testing.assert_allclose(tour['activations']['head'], cnn.outputs(picture), atol=1e-5)
  assert set(tour['gates']) == {'input', 'forget', 'cell', 'output'}
  for name, gate in tour['gates'].items():
    low = -1 if name == 'cell' else 0
    assert gate.shape == (1, 28, 128) and low <= gate.min() < gate.max() <= 1
  np.testing.assert_allclose(tour['hidden'], lstm.activations(picture)['forward1'][0], atol=1e-5)
  logits = lstm.outputs(picture)[0]
  wanted = np.exp(logits) / np.exp(logits).sum()
  np.testing.assert_allclose(tour['by_row'][-1], wanted, atol=1e-5)


def check_pruned_and_rounded_by_hand(tour):
  kernels, pruned = tour['kernels'], tour['pruned']
  for share in tour['by_share']:
    smaller = pruned(kernels, share)
    assert sum(np.sum(kernel == 0) for kernel in smaller.values()) == round(share * 430_500)
    left = min(np.abs(k[k != 0]).min(initial=np.inf) for k in smaller.values())
    gone = max(np.abs(kernels[name][k == 0]).max(initial=0) for name, k in smaller.items())
    assert gone <= left
  assert tour['by_share'][0] == tour['dense']['validation_accuracy'] > tour['by_share'][0.98]
  for bits in tour['by_bits']:
    for name, kernel in kernels.items():
      coarse = tour['rounded'](kernel, bits)
      largest = np.abs(kernel).max(tuple(range(kernel.ndim - 1)))
      assert max(len(np.unique(coarse[..., i])) for i in range(5)) <= 2 ** bits - 1, name
      # Half a step, and what float32 loses.
      assert np.all(np.abs(coarse - kernel) <= 0.5001 * largest / (2 ** (bits - 1) - 1))
  assert tour['by_bits'][8] > tour['by_bits'][2]
  by_hand = tour['by_hand'].kernels
  # What was pruned stays zero when it is rounded, and some of what is left becomes zero.
  assert tour['zeros'](by_hand) >= round(0.95 * 430_500) / 430_500
  assert all(np.all(by_hand[name][k == 0] == 0) for name, k in tour['sparse'].items())


def check_what_training_found(tour):
  found, kernels = tour['found'], tour['trained'].kernels
  assert found['sparsity'] == pytest.approx(0.95, abs=1 / 430_500)
  assert tour['zeros'](kernels) == pytest.approx(found['rounded_sparsity'], abs=1e-9)
  assert found['quantized_kernels'] == 4
  assert max(len(np.unique(k[..., i])) for k in kernels.values() for i in range(5)) <= 15
  assert tour['tested']['trained'] == found['test_accuracy'] > tour['tested']['by hand']


def check_files(tour):
  sizes = tour['sizes']
  for name, size in sizes.items():
    assert (tour['RUNS'] / name).stat().st_size == size
  assert 4 * 431_080 < sizes['dense.onnx'] < 1.01 * 4 * 431_080
  assert 10 * sizes['trained.lepton'] < sizes['dense.onnx'] > 5 * sizes['trained.onnx']
  assert 10 * sizes['by_hand.lepton'] < sizes['dense.onnx']
  assert len(tour['differences']) == 3 and max(tour['differences'].values()) < 1e-4
  assert min(tour['agreed'].values()) >= 0.99
  for packed, name in (('by_hand.lepton', 'by hand'), ('trained.lepton', 'trained')):
    assert math.isclose(tour['packed'][packed], tour['tested'][name], abs_tol=0.01)


def test_committed_cells_have_run_in_order_without_errors_warnings_or_paths_of_a_machine():
  cells = code_cells()
  assert [cell['execution_count'] for cell in cells] == list(range(1, len(cells) + 1))
  assert not cells[0]['outputs'] and all(cell['outputs'] for cell in cells[1:])
  for cell in cells:
    for output in cell['outputs']:
      assert output['output_type'] in ('stream', 'display_data')
      assert output.get('name', 'stdout') == 'stdout'
    assert not OF_MACHINES.search(told(cell) + ''.join(cell['source']))
    assert 'arning' not in told(cell)
  pictures = [output for cell in cells for output in cell['outputs'] if 'data' in output]
  assert len(pictures) == 8 and all('image/png' in output['data'] for output in pictures)
  assert NOTEBOOK.stat().st_size < 400_000


def test_committed_numbers_are_those_that_the_text_promises():
  """95 % zeros and 4 bits by training cost at most two points; by hand they cost most of it."""
  text = '\n'.join(told(cell) for cell in code_cells())
  right, stored = re.search(r'right: ([\d.]+)%, result.json: ([\d.]+)%', text).groups()
  assert right == stored
  of = {name: float(value) for name, value in
        re.findall(r'^(dense|by hand|trained) .* accuracy ([\d.]+)%', text, re.M)}
  assert of['dense'] > 94 and of['trained'] > of['dense'] - 2 and of['by hand'] < 60
  size = {name: int(value.replace(',', '')) for name, value in
          re.findall(r'^([\w.]+) +([\d,]+) bytes', text, re.M)}
  assert 50 * size['trained.lepton'] < size['dense.onnx']


def test_first_cell_says_how_to_open_it_and_sources_fit_in_100_columns():
  cells = json.loads(NOTEBOOK.read_text())['cells']
  assert cells[0]['cell_type'] == 'markdown'
  assert 'pip install jupyterlab' in ''.join(cells[0]['source'])
  lines = [line for cell in cells for line in ''.join(cell['source']).splitlines()]
  assert len(lines) > 200 and max(map(len, lines)) <= 100
