"""Random and TPE search: draws settings, judges each by its mean on validation over its seeds."""

import collections
import contextlib
import pathlib
import statistics
import time

from lepton_jax import config as config_lib
from lepton_jax.errors import UserError
from lepton_jax.sweep import claims, trials
from lepton_jax.sweep.session import Session, load_data

METHODS = ('grid', 'random', 'tpe')


def space(lists):
  """{field: Optuna distribution} of the flags that list values.

  Two numbers are the ends of a range; any other list is a choice among its values. Raises UserError
  for a range that descends or, on a log scale, begins at 0, and where nothing is left to draw.
  """
  from optuna import distributions
  found = {}
  for name, values in lists.items():
    kind, values = config_lib.value_type(name)[0], list(dict.fromkeys(values))
    if len(values) != 2 or kind not in (int, float) or None in values:
      found[name] = distributions.CategoricalDistribution(values)
      continue
    given = f'--{name}={values[0]},{values[1]}'
    if values[0] > values[1]:
      raise UserError(f'{given}: the ends of a range ascend')
    log = config_lib.FIELDS[name][1].metadata['log']
    if log and values[0] <= 0:
      raise UserError(f'{given}: a search draws it on a log scale; '
                      f'begin above 0, or list three or more values to choose among')
    make = distributions.FloatDistribution if kind is float else distributions.IntDistribution
    found[name] = make(*values, log=log)
  if not found:
    raise UserError('a search needs a flag with two or more values to draw from')
  return found


def check_executor(method, executor):
  """Raises UserError for an executor that a search cannot use."""
  if executor == 'processes':
    raise UserError(f'--search={method} draws settings as results come in: '
                    f'pass --executor=inline or devices')


@contextlib.contextmanager
def alone(runs_dir):
  """Keeps other searches out of a folder; raises UserError if one is in it."""
  claim = claims.take(pathlib.Path(runs_dir).expanduser())
  if claim is None:
    raise UserError(f'another search draws its settings in {runs_dir}: '
                    f'wait for its end, or name another --runs_dir')
  try:
    yield
  finally:
    claim.release()


def search(base, lists, method, count, executor, tell):
  """Trains `count` settings drawn from `space(lists)`, each with every listed seed.

  After the first ones, 'tpe' draws near the settings that did well (Bergstra et al., NIPS 2011). A
  trial whose validation lies below the median of the earlier ones at its epoch is given up, and its
  other seeds with it. The draws follow from the sampler's seed, the results and how many trials
  train at once, so a search that is repeated on as many devices finds its trials finished.

  Returns (configurations of the trials, Costs); of a setting that was given up, one trial alone.
  """
  import optuna

  from lepton_jax.train import record
  check_executor(method, executor)
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  seeds = list(dict.fromkeys(lists.get('seed', [base.training.seed])))
  drawn_from = space({name: values for name, values in lists.items() if name != 'seed'})
  measure = load_data(base.data, base.optimization.loss).measure
  direction, measure = 'maximize' if measure == 'accuracy' else 'minimize', f'validation_{measure}'
  if method == 'random':
    sampler = optuna.samplers.RandomSampler(seed=0)
  else:
    sampler = optuna.samplers.TPESampler(seed=0, constant_liar=True)
  pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
  study = optuna.create_study(sampler=sampler, direction=direction, pruner=pruner)
  running, told, configs, began = {}, collections.Counter(), {}, time.monotonic()

  def report(config):
    """Tells the pruner the epochs of a trial that are new to it, those before a stop included."""
    name = config.name()
    for row in record.read_rows(trials.folder_of(config))[told[name]:]:
      running[name].report(row[measure], row['epoch'])
      told[name] += 1

  def hopeless(config, row):
    del row
    if config.name() not in running:
      return False
    report(config)
    return running[config.name()].should_prune()

  def draw(places):
    """{name of its first trial: (the trials of a setting, Optuna's draws that came to it)}."""
    drawn = {}
    for _ in range(places):
      trial = study.ask(drawn_from)
      try:
        group = [base.replace(**trial.params, seed=seed).check() for seed in seeds]
      except UserError as error:
        tell(f'drawn and left out: {error}')
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
      else:
        drawn.setdefault(group[0].name(), (group, []))[1].append(trial)
    return drawn

  def judge(group, draws):
    """Tells Optuna what came of a setting."""
    results = [trials.finished(config) for config in group]
    failed = any(trials.failure(config) for config, result in zip(group, results) if result is None)
    given_up = not all(results) and not failed
    configs.update({config.name(): config for config in (group[:1] if given_up else group)})
    if given_up:
      tell(f'{group[0].name()}  given up')
    value = None
    if all(results):
      state = optuna.trial.TrialState.COMPLETE
      value = statistics.mean(result[measure] for result in results)
    elif failed:
      state = optuna.trial.TrialState.FAIL
    else:
      state = optuna.trial.TrialState.PRUNED
    for trial in draws:
      study.tell(trial, value, state)

  # Draws follow from all earlier results, so a second search at the same time would change what
  # is drawn and given up.
  with (alone(base.run.runs_dir),
        Session(base.run, executor == 'devices', tell, hopeless) as session):
    while len(study.trials) < count:
      drawn = draw(min(len(session.workers) * session.lanes, count - len(study.trials)))
      running, told = {name: draws[0] for name, (_, draws) in drawn.items()}, collections.Counter()
      groups = [group for group, _ in drawn.values()]
      for group in groups:
        # An earlier call trained this one: the pruner gets the same reports as it did then.
        if trials.finished(group[0]) or trials.given_up(group[0]):
          report(group[0])
      session.train([group[0] for group in groups if not trials.given_up(group[0])])
      finished = [group for group in groups if trials.finished(group[0])]
      session.train([config for group in finished for config in group[1:]])
      for group, draws in drawn.values():
        judge(group, draws)
    costs = session.costs
  return list(configs.values()), costs._replace(seconds=time.monotonic() - began)
