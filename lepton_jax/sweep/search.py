"""Random and TPE search: settings drawn from ranges, each judged by the mean of its seeds on validation."""

import statistics
import time

from lepton_jax import config as config_lib
from lepton_jax.errors import UserError
from lepton_jax.sweep import trials
from lepton_jax.sweep.session import Session, load_data

METHODS = ('grid', 'random', 'tpe')


def space(lists):
  """{field: Optuna distribution} of the flags that list values: two numbers are the ends of a range, all else is chosen among.

  Raises UserError for a range on a log scale that begins at 0.
  """
  from optuna import distributions
  found = {}
  for name, values in lists.items():
    kind = config_lib.value_type(name)[0]
    if len(values) != 2 or kind not in (int, float) or values[0] >= values[1]:
      found[name] = distributions.CategoricalDistribution(values)
      continue
    log = config_lib.FIELDS[name][1].metadata['log']
    if log and values[0] <= 0:
      raise UserError(f'--{name}={values[0]},{values[1]}: a search draws it on a log scale; begin above 0, or list three or more values to choose among')
    found[name] = (distributions.FloatDistribution if kind is float else distributions.IntDistribution)(*values, log=log)
  return found


def search(base, lists, method, count, executor, tell):
  """Trains `count` settings drawn from `space(lists)`, every listed seed of each; returns (their configurations, Costs).

  After the first ones, 'tpe' draws near the settings that did well (Bergstra et al., NIPS 2011). A trial whose
  validation lies below the median of the earlier ones at its epoch is given up, and its other seeds with it.
  The draws follow from the sampler's seed and the results, so a search that is repeated finds its trials finished.
  """
  import optuna

  from lepton_jax.train import record
  if executor == 'processes':
    raise UserError(f'--search={method} draws settings as results come in: pass --executor=inline or devices')
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  seeds = lists.get('seed', [base.training.seed])
  drawn_from = space({name: values for name, values in lists.items() if name != 'seed'})
  numbers = load_data(base.data, base.optimization.loss).task == 'regression'
  measure, direction = ('validation_loss', 'minimize') if numbers else ('validation_accuracy', 'maximize')
  sampler = optuna.samplers.RandomSampler(seed=0) if method == 'random' else optuna.samplers.TPESampler(seed=0, constant_liar=True)
  study = optuna.create_study(sampler=sampler, direction=direction, pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1))
  running, configs, began = {}, [], time.monotonic()

  def hopeless(config, row):
    trial = running.get(config.name())
    if trial is None or measure not in row:
      return False
    trial.report(row[measure], row['epoch'])
    return trial.should_prune()

  with Session(base.run, executor == 'devices', 0, tell, hopeless) as session:
    while len(study.trials) < count:
      asked = [study.ask(drawn_from) for _ in range(min(len(session.workers) * session.lanes, count - len(study.trials)))]
      settings = [[base.replace(**trial.params, seed=seed).check() for seed in seeds] for trial in asked]
      running = {group[0].name(): trial for trial, group in zip(asked, settings)}
      for trial, group in zip(asked, settings):
        if trials.finished(group[0]):  # by an earlier call: the pruner learns of it as it did then
          for row in record.read_rows(trials.folder_of(group[0])):
            trial.report(row[measure], row['epoch'])
      session.train([group[0] for group in settings])
      session.train([config for group in settings if trials.finished(group[0]) for config in group[1:]])
      for trial, group in zip(asked, settings):
        results = [trials.finished(config) for config in group]
        if all(results):
          study.tell(trial, statistics.mean(result[measure] for result in results))
          configs += group
        else:
          given_up = trials.failure(group[0]) is None
          study.tell(trial, state=optuna.trial.TrialState.PRUNED if given_up else optuna.trial.TrialState.FAIL)
          tell(f'{group[0].name()}  given up' if given_up else f'{group[0].name()}  failed')
          configs += [] if given_up else group
    costs = session.costs
  return configs, costs._replace(seconds=time.monotonic() - began)
