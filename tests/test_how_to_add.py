"""What the README says under "How to add", done word by word in a copy of the package."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from tests import LONG

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = (ROOT / 'README.md').read_text().partition('\n## How to add\n')[2].partition('\n## ')[0]


def quoted(start):
  """The piece of code within a line of the README that begins like this."""
  return re.search(f'`({re.escape(start)}[^`]*)`', RECIPES).group(1)


def insert(path, after, line):
  text = path.read_text()
  assert text.count(after) == 1, path
  path.write_text(text.replace(after, f'{after}{line}\n'))


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
  """The package with everything that the README adds to it."""
  root = tmp_path_factory.mktemp('copy')
  for name in ('lepton_jax', 'experiments', 'tests'):
    shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns('results'))
  shutil.copy(ROOT / 'pyproject.toml', root)
  code = ''.join(re.findall('```python\n(.*?)```', RECIPES, re.DOTALL))
  _, *parts = re.split(r'^# (lepton_jax/\S+\.py)\n', code, flags=re.MULTILINE)
  for name, content in zip(parts[::2], parts[1::2]):
    assert not (root / name).exists()
    (root / name).write_text(content)
  insert(root / 'tests/test_models.py', 'GOLDEN = {\n', f"    {quoted(chr(39) + 'tiny')}")
  insert(root / 'tests/test_regularize.py', 'CASES = dict(\n', f'    {quoted("l4=dict")}')
  insert(root / 'lepton_jax/options.py', re.search(
      r'class Regularize:\n  """.*"""\n', (root / 'lepton_jax/options.py').read_text()).group(),
      f'  {quoted("l4: float")}')
  return root


def python(root, *arguments):
  environment = dict(os.environ, PYTHONPATH=str(root), JAX_PLATFORMS='cpu')
  done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=root,
                        env=environment)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def test_what_was_added_is_listed_and_trained_together(copy):
  words = python(copy, '-m', 'experiments.train', '--help').replace(',', ' ').split()
  assert {'tiny', 'lamps', 'distance', 'deviations', '--l4=0.0'} <= set(words)
  python(copy, '-m', 'experiments.train', '--model=tiny', '--dataset=lamps', '--width=0.5',
         '--epochs=10', '--learning_rate=0.02', '--l4=1e-4', '--prune_score=distance',
         '--prune_sparsity=0.5', '--quantize_weights=deviations', '--quantize_weight_bits=4',
         '--nopictures', '--notensorboard')
  folder, = (copy / 'runs').glob('tiny-lamps-*')
  result = json.loads((folder / 'result.json').read_text())
  assert result['test_accuracy'] > 0.95
  assert result['num_parameters'] == (3 * 3 * 8 + 8) + (8 * 2 + 2)
  assert result['sparsity'] == 44 / (3 * 3 * 8 + 8 * 2)
  assert {(k['kernel'], k['quantizer'], k['weight_bits']) for k in result['kernels']} == {
      ('conv/kernel', 'deviations', 4), ('head/kernel', 'deviations', 4)}
  assert json.loads((folder / 'config.json').read_text())['regularize']['l4'] == 1e-4


def test_the_contract_tests_try_what_was_added(copy):
  """They are listed; the long form runs them."""
  files = [f'tests/test_{name}.py' for name in (
      'channels', 'compress', 'data', 'models', 'prune', 'quantize', 'regularize')]
  said = python(copy, '-m', 'pytest', '-n0', '-rA', *([] if LONG else ['--collect-only']),
                '-k', 'tiny or lamps or l4 or distance or deviations', *files)
  tried = re.findall(r'(test_\w+)\[(tiny|lamps|l4|distance|deviations)\b', said)
  assert Counter(name for _, name in set(tried)) == dict(
      tiny=4, lamps=1, l4=1, distance=1, deviations=3 + LONG)
