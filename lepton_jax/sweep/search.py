"""Random and TPE search: draws settings, judges each by its mean on validation over its seeds."""

import collections
import contextlib
import statistics
import time

from lepton_jax import config as config_lib
from lepton_jax import outcomes
from lepton_jax.errors import UserError
from lepton_jax.sweep import claims
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
  if executor not in ('inline', 'devices'):
    raise UserError(f'--search={method} draws settings as results come in: '
                    f'pass --executor=inline or devices')


@contextlib.contextmanager
def alone(runs_dir):
  """Keeps other searches out of a folder; raises UserError if one is in it."""
  claim = claims.take(runs_dir)
  if claim is None:
    raise UserError(f'another search draws its settings in {runs_dir}: '
                    f'wait for its end, or name another --runs_dir')
  try:
    yield
  finally:
    claim.release()


class Study:
  """Optuna's side of a search: what it draws, what it hears, and the trials that came of it.

  Attributes:
    configs: {name: configuration} of the trials whose settings are judged; of a setting that was
      given up, one trial alone.
  """

  def __init__(self, base, lists, method, tell):
    import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    self._base, self._tell, self.configs = base, tell, {}
    self._seeds = list(dict.fromkeys(lists.get('seed', [base.training.seed])))
    self._space = space({name: values for name, values in lists.items() if name != 'seed'})
    measure = load_data(base.data, base.optimization.loss).measure
    self._measure = f'validation_{measure}'
    if method == 'random':
      sampler = optuna.samplers.RandomSampler(seed=0)
    else:
      sampler = optuna.samplers.TPESampler(seed=0, constant_liar=True)
    self._study = optuna.create_study(
        sampler=sampler, direction='maximize' if measure == 'accuracy' else 'minimize',
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1))
    self._state = optuna.trial.TrialState
    self._running, self._told = {}, collections.Counter()

  def __len__(self):
    return len(self._study.trials)

  def draw(self, places):
    """[(the trials of a setting, Optuna's draws that came to it)] of so many draws."""
    drawn = {}
    for _ in range(places):
      trial = self._study.ask(self._space)
      try:
        group = [self._base.replace(**trial.params, seed=seed).check() for seed in self._seeds]
      except UserError as error:
        self._tell(f'drawn and left out: {error}')
        self._study.tell(trial, state=self._state.FAIL)
      else:
        drawn.setdefault(group[0].name(), (group, []))[1].append(trial)
    self._running = {name: draws[0] for name, (_, draws) in drawn.items()}
    self._told = collections.Counter()
    return list(drawn.values())

  def report(self, config):
    """Tells the pruner the epochs of a trial that are new to it, those before a stop included."""
    from lepton_jax.train import record
    name = config.name()
    for row in record.read_rows(outcomes.folder_of(config))[self._told[name]:]:
      self._running[name].report(row[self._measure], row['epoch'])
      self._told[name] += 1

  def hopeless(self, config, row):
    """Whether a trial, after the epoch of `row`, is to be given up."""
    del row
    if config.name() not in self._running:
      return False
    self.report(config)
    return self._running[config.name()].should_prune()

  def judge(self, group, draws):
    """Tells Optuna what came of a setting."""
    results = [outcomes.finished(config) for config in group]
    failed = any(outcomes.failure(config) for config, result in zip(group, results)
                 if result is None)
    given_up = not all(results) and not failed
    kept = group[:1] if given_up else group
    self.configs.update({config.name(): config for config in kept})
    if given_up:
      self._tell(f'{group[0].name()}  given up')
    value, state = None, self._state.FAIL if failed else self._state.PRUNED
    if all(results):
      state = self._state.COMPLETE
      value = statistics.mean(result[self._measure] for result in results)
    for trial in draws:
      self._study.tell(trial, value, state)


def search(base, lists, method, count, executor, tell):
  """Trains `count` settings drawn from `space(lists)`, each with every listed seed.

  After the first ones, 'tpe' draws near the settings that did well (Bergstra et al., NIPS 2011). A
  trial whose validation lies below the median of the earlier ones at its epoch is given up, and its
  other seeds with it. The draws follow from the sampler's seed, the results and how many trials
  train at once, so a search that is repeated on as many devices finds its trials finished.

  Returns (configurations of the trials, Costs).
  """
  check_executor(method, executor)
  study, began = Study(base, lists, method, tell), time.monotonic()
  # Draws follow from all earlier results, so a second search at the same time would change what
  # is drawn and given up.
  with (alone(base.run.runs_dir),
        Session(base.run, executor == 'devices', tell, study.hopeless) as session):
    while len(study) < count:
      drawn = study.draw(min(len(session.workers) * session.lanes, count - len(study)))
      groups = [group for group, _ in drawn]
      for group in groups:
        # An earlier call trained this one: the pruner gets the same reports as it did then.
        if outcomes.finished(group[0]) or outcomes.given_up(group[0]):
          study.report(group[0])
      session.train([group[0] for group in groups if not outcomes.given_up(group[0])])
      finished = [group for group in groups if outcomes.finished(group[0])]
      session.train([config for group in finished for config in group[1:]])
      for group, draws in drawn:
        study.judge(group, draws)
    costs = session.costs
  return list(study.configs.values()), costs._replace(seconds=time.monotonic() - began)
