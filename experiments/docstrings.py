"""Makes a set of texts from what is installed: first paragraphs of docstrings, by package.

Question: does a recipe that was chosen on one text carry to another, with a large vocabulary?
Papers: none; a stand-in for data that nobody here has tuned on.
Command: ./launch.sh docstrings --output=docstrings.csv
Expected: some 20,000 texts of 25,000 words in seven classes; the counts depend on the versions.
Cost: half a minute.

The packages' own names become X, so that few texts name their class, and texts of several packages
are left out. Train on it with --dataset=csv:docstrings.csv --text_column=text --target=package.
"""

import ast
import collections
import csv
import importlib.util
import io
import pathlib
import random
import re
import sys

from absl import flags as absl_flags

from lepton_jax import files, flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
PACKAGES = ('sklearn', 'scipy', 'pandas', 'matplotlib', 'jax', 'numpy', 'flax')
NAMES = re.compile(rf'\b({"|".join(PACKAGES)}|scikit|np|jnp|pd|plt)\b', re.IGNORECASE)
SHORTEST, LONGEST = 20, 400  # characters


def main(config):
  del config
  labels = collections.defaultdict(list)
  for package in PACKAGES:
    for text in texts(package):
      labels[text].append(package)
  rows = [(found[0], text) for text, found in labels.items() if len(found) == 1]
  random.Random(0).shuffle(rows)
  written = io.StringIO()
  csv.writer(written, lineterminator='\n').writerows([('package', 'text'), *rows])
  files.write_atomically(FLAGS.output, written.getvalue())
  counts = collections.Counter(package for package, _ in rows)
  print(f'{FLAGS.output}: ' + ', '.join(f'{name} {count:,}' for name, count in counts.items()))
  return 0


def texts(package):
  """The different first paragraphs of a package's docstrings, as keys in the order of its files."""
  spec, found = importlib.util.find_spec(package), {}
  if spec is None:
    raise UserError(f'{package} is not installed: pip install -r requirements.txt')
  for path in sorted(pathlib.Path(spec.origin).parent.rglob('*.py')):
    for node in ast.walk(ast.parse(path.read_bytes())):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
        paragraph = (ast.get_docstring(node) or '').partition('\n\n')[0]
        text = NAMES.sub('X', ' '.join(paragraph.split()))
        if SHORTEST < len(text) < LONGEST:
          found[text] = None
  return found


if __name__ == '__main__':
  absl_flags.DEFINE_string('output', 'docstrings.csv', 'the file to write')
  sys.exit(flags.run(main, __doc__, ('output',)))
