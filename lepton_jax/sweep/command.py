"""What every sweep script does with its flags: list the trials, train them, show and write what they found."""

import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError
from lepton_jax.sweep import engine, grid

FLAGS = absl_flags.FLAGS
OWN = ('executor', 'workers', 'dry_run', 'report_all_test', 'output')
SHOWN = 20


def define(name, **defaults):
  """Defines a sweep script's flags: those of `train`, each taking a list, and the sweep's own."""
  flags.define_lists(runs_dir=f'runs/{name}', tensorboard=False, pictures=False, save_weights=False, checkpoint_every=0, **defaults)
  absl_flags.DEFINE_enum('executor', 'inline', engine.EXECUTORS, 'inline: one trial after another; devices: one on each device; processes: several processes')
  absl_flags.DEFINE_integer('workers', 0, 'processes of --executor=processes; 0: one a core', lower_bound=0)
  absl_flags.DEFINE_bool('dry_run', False, 'list the trials and how many programs they need, and train nothing')
  absl_flags.DEFINE_bool('report_all_test', False, 'show the test results of every setting, not only of the best on validation')
  absl_flags.DEFINE_string('output', '', 'CSV file for the table; empty: table.csv in --runs_dir')


def main(lists):
  """Runs the sweep of `flags.lists()`; the exit status is 1 if trials failed, 130 if it was stopped."""
  from lepton_jax.train import loop
  configs = grid.product(*lists)
  engine.check(configs)
  if len({config.run.runs_dir for config in configs}) > 1:
    raise UserError('--runs_dir takes one folder')
  print(f'{len(configs)} trials, {len(engine.programs(configs))} programs, in {configs[0].run.runs_dir}', flush=True)
  if FLAGS.dry_run:
    return dry_run(configs)
  done = sum(engine.finished(config) is not None for config in configs)
  if done:
    print(f'{done} of them are finished already')
  count = iter(range(done + 1, len(configs) + 1))
  try:
    costs = engine.sweep(configs, FLAGS.executor, FLAGS.workers, tell=lambda text: print(f'[{next(count, len(configs))}/{len(configs)}] {text}', flush=True))
  except loop.Interrupted as signal:
    print(f'{signal}: what has begun was saved. To go on, repeat the same command', file=sys.stderr)
    return 130
  print(costs)
  return show(configs)


def dry_run(configs):
  """Prints what would be trained."""
  swept = grid.swept(configs)
  for config in configs[:SHOWN]:
    print(f'{config.name()}  ' + '  '.join(f'{name}={config.flat()[name]}' for name in swept))
  if len(configs) > SHOWN:
    print(f'... and {len(configs) - SHOWN} more')
  return 0


def show(configs):
  """Prints and writes the table of what is finished, then what failed; returns the exit status."""
  from lepton_jax.report import markdown, sweeps, tables
  trials = [(config, result) for config in configs if (result := engine.finished(config)) is not None]
  if trials:
    rows = sweeps.rows(trials, FLAGS.report_all_test)
    markdown.write_rows(FLAGS.output or f'{configs[0].run.runs_dir}/table.csv', rows)
    tables.print_rows(rows[:SHOWN])
    if len(rows) > SHOWN:
      print(f'... and {len(rows) - SHOWN} more settings')
  failed = [(config, found) for config in configs if engine.finished(config) is None and (found := engine.failure(config)) is not None]
  for config, found in failed:
    print(f'failed: {engine.folder_of(config)}: {found["error"].splitlines()[0]}', file=sys.stderr)
  return 1 if failed else 0
