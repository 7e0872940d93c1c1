"""Lists the papers whose results can be made again: what each takes, and what is committed of it.

Question: which published results does this project have, and at what cost are they made again?
Command: ./launch.sh papers
Expected: a line a paper.
Cost: none.
"""

import ast
import pathlib
import re
import sys

from experiments.tables.paper import RESULTS
from lepton_jax import flags

OWN = ()


def main(config):
  del config
  from lepton_jax.report import tables
  scripts = sorted(pathlib.Path(__file__).parent.glob('[a-z]*.py'))
  tables.print_rows([row(script) for script in scripts], 'left')
  print('./launch.sh papers.NAME --data_dir=DIR makes one again; the results are shown in '
        'experiments/results/papers.md')
  return 0


def row(script):
  """What the docstring of a script says of it, and how many lines of results are committed."""
  text = ast.get_docstring(ast.parse(script.read_text()))
  said = dict(re.findall(r'^(Paper|Cost): ((?:.+\n?)(?:  .+\n?)*)', text, re.MULTILINE))
  number = re.search(r'arXiv:[\d.]+\d', said['Paper'])[0]
  results = RESULTS / f'{script.stem}.csv'
  count = len(results.read_text().splitlines()) - 1 if results.exists() else 0
  return dict(name=script.stem, title=text.partition('\n')[0].rstrip('.'), paper=number,
              cost=' '.join(said['Cost'].split()).rstrip('.'),
              results=f'{count} lines' if count else 'none yet')


if __name__ == '__main__':
  sys.exit(flags.run(main, __doc__, OWN))
