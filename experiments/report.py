"""Turns run folders into tables and pictures, and the committed results into the README's tables.

Question: what did a folder of runs find, over seeds, and do the README's numbers stand in the
  committed results?
Command: ./launch.sh report --runs=runs/regularization_sweep
  or, for the README: ./launch.sh report --readme
Expected: report.md, report.html (one page, for a browser), table.csv, trials.csv, table.tex and PNG
  and PDF pictures in --output; with --check exit status 0.
Cost: seconds.
"""

import pathlib
import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
OWN = ('runs', 'output', 'report_all_test', 'readme', 'check')
ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / 'experiments' / 'results'


def main(config):
  del config
  if FLAGS.readme or FLAGS.check:
    return readme(FLAGS.check)
  if not FLAGS.runs:
    raise UserError('--runs=FOLDER names the folder whose run folders are reported; or pass '
                    '--readme or --check')
  from lepton_jax.report import sweeps, tables
  from lepton_jax.sweep import command
  found, others, without = sweeps.read(FLAGS.runs)
  for folder in others:
    print(f'left out: {folder} has no result of a single run with a validation part',
          file=sys.stderr)
  output = FLAGS.output or f'{FLAGS.runs}/report'
  command.make_folder(output)
  for folder, rows in sweeps.write(found, output, FLAGS.report_all_test, without):
    tables.print_rows(rows)
    print(f'{folder}/report.md and, for a browser, {folder}/report.html')
  return 0


def readme(check):
  """Writes the tables of the pages from experiments/results, or only says whether they agree."""
  from lepton_jax.report import headlines, markdown, studies
  read = lambda name: markdown.rows(RESULTS / f'{name}.csv')
  tables = dict(accuracy=markdown.accuracy_table, benchmark=markdown.speed_table,
                communication=studies.communication_table,
                compressed_step=studies.step_table,
                compression_study=studies.compression_table,
                compression_tables=studies.compression_tables,
                regularization_study=studies.regularization_table,
                runtimes=studies.runtimes_table,
                smallest_files=studies.smallest_table,
                sweep_cost=studies.sweep_cost_table, tpu_programs=studies.tpu_table)
  made = {name: (lambda name=name, make=make: make(read(name))) for name, make in tables.items()}
  made['headlines'] = lambda: headlines.table(read)
  of_papers = dict(deep_compression=studies.stages_table,
                   lottery_ticket=studies.ticket_table,
                   what_networks_forget=studies.forgetting_table)
  for path in sorted((RESULTS / 'papers').glob('*.csv')):
    make = of_papers.get(path.stem, studies.paper_table)
    made[f'paper_{path.stem}'] = lambda path=path, make=make: make(markdown.rows(path))
  for page in (ROOT / 'README.md', *sorted(RESULTS.glob('*.md'))):
    text = fresh = page.read_text()
    for name in markdown.markers(text):
      if name not in made:
        raise UserError(f'{page} has a table {name!r}; there are {", ".join(sorted(made))}')
      fresh = markdown.insert(fresh, name, made.pop(name)())
    if check and fresh != text:
      raise UserError(f'{page} differs from the CSV files; run ./launch.sh report --readme')
    if not check:
      page.write_text(fresh)
  if made:
    raise UserError(f'no page shows {", ".join(sorted(made))}')
  return 0


if __name__ == '__main__':
  absl_flags.DEFINE_string('runs', '', 'folder that holds run folders')
  absl_flags.DEFINE_string('output', '', 'folder for tables and pictures; empty: report/ in --runs')
  absl_flags.DEFINE_bool('report_all_test', False,
                         'show the test results of every setting, not only of the best on '
                         'validation')
  absl_flags.DEFINE_bool('readme', False,
                         'write the tables of the README and of experiments/results/*.md')
  absl_flags.DEFINE_bool('check', False,
                         'change nothing; fail if a page differs from the committed results')
  sys.exit(flags.run(main, __doc__, OWN))
