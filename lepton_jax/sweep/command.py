"""What every sweep script does with its flags: list trials, train them, show and write results."""

import sys

from absl import flags as absl_flags
from etils import epath

from lepton_jax import cluster, flags, outcomes
from lepton_jax import config as config_lib
from lepton_jax.errors import UserError
from lepton_jax.sweep import engine, estimate, grid, ray_executor, search, trials

FLAGS = absl_flags.FLAGS
OWN = ('executor', 'workers', 'address', 'search', 'trials', 'dry_run', 'report_all_test', 'output')
SHOWN = 20


def define_training(name, **defaults):
  """Defines --executor and the flags of `train`, each taking a list.

  Trials write no more than they must unless asked to.
  """
  flags.define_lists(runs_dir=f'runs/{name}', tensorboard=False, pictures=False, save_weights=False,
                     checkpoint_every=0, **defaults)
  absl_flags.DEFINE_enum('executor', 'inline', engine.EXECUTORS,
                         'inline: one trial after another; devices: one on each device; processes: '
                         'several processes; ray: workers of Ray, on this machine or a cluster')


def define(name):
  """Defines a sweep script's flags: those of training and the sweep's own."""
  define_training(name)
  absl_flags.DEFINE_integer('workers', 0,
                            'processes of --executor=processes, 0: one a core; workers of '
                            '--executor=ray, at most and for 0 one a device', lower_bound=0)
  absl_flags.DEFINE_string('address', '',
                           'Ray cluster of --executor=ray: auto or HOST:PORT; empty: one that is '
                           'started on this machine')
  absl_flags.DEFINE_enum('search', 'grid', search.METHODS,
                         'grid: every combination; random, tpe: --trials settings, two numbers of '
                         'a flag being a range')
  absl_flags.DEFINE_integer('trials', 50, 'settings of a search; each is trained on every --seed',
                            lower_bound=1)
  absl_flags.DEFINE_bool('dry_run', False,
                         'list the trials and how many programs they need, and train nothing')
  absl_flags.DEFINE_bool('report_all_test', False,
                         'show the test results of every setting, not only of the best on '
                         'validation')
  absl_flags.DEFINE_string('output', '',
                           'folder for tables and pictures; empty: report/ in --runs_dir')


def main(lists):
  """Runs the sweep of `flags.lists()`; the exit status is 1 if trials failed, 130 if stopped."""
  for name, values in lists[1].items():
    if len(values) > 1 and not config_lib.FIELDS[name][1].metadata['identity']:
      raise UserError(f'--{name} takes one value in a sweep: it changes no result')
  ray_executor.check(FLAGS.executor, FLAGS.address)
  if FLAGS.search != 'grid':
    return drawn(*lists)
  configs = grid.product(*lists)
  trials.check(configs)
  print(f'trials: {len(configs)}, programs: {len(trials.programs(configs))}, in '
        f'{configs[0].run.runs_dir}', flush=True)
  if FLAGS.dry_run:
    return dry_run(configs)
  done = sum(outcomes.finished(config) is not None for config in configs)
  if done:
    print(f'{done} of them are finished already')
  count = iter(range(done + 1, len(configs) + 1))
  numbered = lambda text: print(f'[{next(count, len(configs))}/{len(configs)}] {text}', flush=True)

  def work():
    return configs, engine.sweep(configs, FLAGS.executor, FLAGS.workers, numbered, FLAGS.address)

  return trained(configs[0], work)


def drawn(base, lists):
  """Runs a search."""
  base = base.replace(**{name: values[0] for name, values in lists.items() if len(values) == 1})
  lists = {name: values for name, values in lists.items() if len(values) > 1}
  if base.data.folds or 'folds' in lists or 'fold' in lists:
    raise UserError('--folds: a search repeats a setting over --seed; folds are for --search=grid')
  trials.check([base])
  search.check_executor(FLAGS.search, FLAGS.executor)
  drawn_from = search.space({n: v for n, v in lists.items() if n != 'seed'})
  seeds = len(set(lists.get('seed', [0])))
  print(f'settings: {FLAGS.trials}, seeds of each: {seeds}, in {base.run.runs_dir}', flush=True)
  if FLAGS.dry_run:
    for name, one in drawn_from.items():
      if hasattr(one, 'choices'):
        print(f'{name}: one of {", ".join(map(str, one.choices))}')
      else:
        print(f'{name}: {one.low} to {one.high}{", log scale" * one.log}')
    first = {name: values[0] for name, values in lists.items() if name != 'seed'}
    estimated = about([base.replace(**first).check()] * FLAGS.trials * seeds)
    print(f'{estimated}, if all are like the first values and none is given up')
    return 0

  def work():
    tell = lambda text: print(text, flush=True)
    return search.search(base, lists, FLAGS.search, FLAGS.trials, FLAGS.executor, tell)

  return trained(base, work)


def trained(config, work, present=None):
  """Does the work, shows what it found and returns the exit status.

  `work` returns (configurations, Costs); `present` shows the configurations, None: as a sweep's.
  """
  from lepton_jax.train import loop
  for folder in (config.run.runs_dir, FLAGS.output):
    if folder:
      make_folder(folder)
  try:
    configs, costs = work()
  except loop.Interrupted as signal:
    print(f'{signal}: what has begun was saved. To go on, repeat the same command', file=sys.stderr)
    return signal.status
  print(costs)
  if cluster.place(config.run):
    return 0  # the first process, when all trials have come to an end, shows what they found
  return (present or show)(configs)


def make_folder(name):
  """Makes a folder before anything is trained; raises UserError where that cannot be done."""
  try:
    epath.Path(name).expanduser().mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f'cannot make the folder {name}: {error}') from None


def dry_run(configs):
  """Prints what would be trained."""
  swept = config_lib.differing(configs)
  for config in configs[:SHOWN]:
    print(f'{config.name()}  ' + '  '.join(f'{name}={config.flat()[name]}' for name in swept))
  if len(configs) > SHOWN:
    print(f'... and {len(configs) - SHOWN} more')
  print(about(configs))
  return 0


def about(configs):
  """How long the configurations take, in words."""
  seconds = estimate.estimate(configs, FLAGS.executor, FLAGS.workers)
  return f'about {seconds:.0f} s' if seconds < 120 else f'about {seconds / 60:.0f} minutes'


def show(configs):
  """Prints and writes the table of what is finished, then what failed; returns the exit status."""
  from lepton_jax.report import sweeps, tables
  found = [(config, outcomes.finished(config)) for config in configs]
  found = [(config, result) for config, result in found if result is not None]
  without = outcomes.without_result(configs)
  failed = [(config, why) for config, why in without if not outcomes.given_up(config)]
  output = FLAGS.output or f'{configs[0].run.runs_dir}/report'
  written = sweeps.write(found, output, FLAGS.report_all_test, without) if found else ()
  for folder, rows in written:
    tables.print_rows(rows[:SHOWN])
    if len(rows) > SHOWN:
      print(f'... and {len(rows) - SHOWN} more settings')
    print(f'{folder}/report.html shows it in a browser; report.md, CSV, LaTeX and pictures are '
          f'beside it')
  for config, error in failed:
    print(f'failed: {outcomes.folder_of(config)}: {error}', file=sys.stderr)
  return 1 if failed else 0


def train_all(configs):
  """Trains the configurations by --executor; raises UserError if any failed.

  Returns the seconds they took, None if some were finished already, for then nobody knows.
  """
  costs = engine.sweep(configs, FLAGS.executor, tell=lambda text: print(text, flush=True))
  print(costs)
  if failed := outcomes.without_result(configs):
    raise UserError('\n'.join(f'{config.name()} failed: {error}' for config, error in failed))
  return costs.seconds if costs.trials == len(configs) else None
