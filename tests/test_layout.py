"""The shape of the code: who may import whom, and what a light import must not drag in."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'lepton_jax'
STANDARD = {'registry', 'options', 'config', 'errors'}
LEAVES = STANDARD | {'trees', 'losses', 'metrics', 'precision'}
# First-party modules that each part may import, besides itself.
ALLOWED = {
    'errors': set(), 'registry': {'errors'}, 'options': {'registry'},
    'config': {'registry', 'options', 'errors'}, 'flags': STANDARD | {'cluster', 'help_text'},
    'help_text': STANDARD,
    'files': {'errors'}, 'precision': set(), 'trees': STANDARD, 'losses': STANDARD,
    'metrics': STANDARD | {'losses'},
    'layers': LEAVES | {'machine'}, 'models': LEAVES | {'layers'}, 'data': LEAVES,
    'regularize': LEAVES | {'layers'}, 'compress': LEAVES | {'layers'},
    'train': LEAVES | {'cluster', 'files'}, 'outcomes': {'errors', 'files'},
    'report': LEAVES | {'files', 'outcomes', 'train'},  # and so not sweep, which imports it
    'cluster': {'errors'}, 'machine': {'cluster'},
}
HEAVY = {'tensorflow_datasets', 'matplotlib', 'sklearn', 'mlxtend', 'tensorboardX', 'rich',
         'tensorflow', 'orbax', 'optuna', 'ray'}


def modules():
  return sorted(PACKAGE.rglob('*.py'))


def imports(tree, top_only=False):
  """Dotted names a module imports; `top_only` leaves out those inside functions."""
  nodes = tree.body if top_only else ast.walk(tree)
  for node in nodes:
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_layers(path):
  part = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
  if part not in ALLOWED:
    return  # what assembles the parts may import all of them
  for name in imports(ast.parse(path.read_text())):
    parts = name.split('.')
    if parts[0] != 'lepton_jax' or len(parts) == 1:
      continue
    if (PACKAGE / parts[1]).exists() or (PACKAGE / f'{parts[1]}.py').exists():
      assert parts[1] in ALLOWED[part] | {part}, f'{path.name} imports {name}'


def test_no_two_modules_of_the_report_import_each_other():
  """Those inside functions count as well; what can be sorted has no circle."""
  inside = 'lepton_jax.report.'
  graph = {inside + path.stem: set(imports(ast.parse(path.read_text())))
           for path in (PACKAGE / 'report').glob('*.py')}
  graph = {name: names & graph.keys() for name, names in graph.items()}
  assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)


@pytest.mark.parametrize('path', modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_where_they_are_used(path):
  tops = {name.split('.')[0] for name in imports(ast.parse(path.read_text()), top_only=True)}
  assert not tops & HEAVY


def test_only_layers_and_models_define_flax_modules():
  for path in modules():
    if path.relative_to(PACKAGE).parts[0] not in ('layers', 'models'):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
          bases = {ast.unparse(base).rpartition('.')[2] for base in node.bases}
          assert 'Module' not in bases, path


@pytest.mark.parametrize('script', sorted(p.stem for p in (ROOT / 'experiments').glob('[a-z]*.py')))
def test_help_needs_no_numerical_library_and_fits_100_columns(script):
  code = (f'import sys, runpy; sys.argv = ["experiments/{script}.py", "--help"]\n'
          f'try: runpy.run_module("experiments.{script}", run_name="__main__", alter_sys=True)\n'
          'except SystemExit: pass\n'
          'heavy = ("jax", "numpy", "flax", "tensorflow_datasets")\n'
          'print(sorted(m for m in heavy if m in sys.modules))')
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
  *lines, heavy = done.stdout.splitlines()
  assert heavy == '[]', done.stdout + done.stderr
  for line in lines:
    assert len(line) <= 100 or len(line.split()) == 1, line  # a list without spaces, to be copied


def test_experiments_are_thin_and_say_what_they_are_for():
  for path in (ROOT / 'experiments').glob('[a-z]*.py'):
    text = path.read_text()
    assert len(text.splitlines()) < 150, path
    for word in ('Question:', 'Command:', 'Expected:', 'Cost:'):
      assert word in ast.get_docstring(ast.parse(text)), (path, word)


@pytest.mark.parametrize('name', ['run', 'network', 'assemble'])
def test_the_files_that_carry_a_run_stay_short(name):
  assert len((PACKAGE / f'{name}.py').read_text().splitlines()) < 250


@pytest.mark.parametrize('value, builder', [('Network', 'build_network'), ('Assembly', 'assemble')])
def test_a_value_is_built_from_a_configuration_in_one_file(value, builder):
  found = set()
  for path in modules():
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition('.')[2] == value:
        found.add(str(path.relative_to(PACKAGE)))
  assert found == {f'{builder}.py'}
