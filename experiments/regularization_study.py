"""What regularisers bring a small network on few images, each tuned with the same budget.

Question: which regulariser raises the test accuracy of `cnn_cifar` on 10,000 images of CIFAR-10,
  and by how much?
Papers: beside each method's flag.
Command: ./launch.sh regularization_study --data_dir=DIR --executor=devices
Expected: experiments/results/regularization_study.csv as committed, times apart.
Cost: three quarters of an hour on 2 cores.

Three learning rates are tried without a regulariser, and the best on validation is kept for all.
Then three strengths of each method are tried on one seed. The best on validation of each is trained
on three other seeds, and only these runs' test results are read. The images are a subset with equal
shares of the classes, the same for all (--train_limit).
"""

import pathlib
import statistics
import sys

from absl import flags as absl_flags

from lepton_jax import flags, machine, outcomes
from lepton_jax.errors import UserError
from lepton_jax.sweep import command

FLAGS = absl_flags.FLAGS
RESULTS = pathlib.Path(__file__).parent / 'results'
TUNED_ON, SEEDS = 0, [1, 2, 3]
RATES = [1e-3, 2e-3, 4e-3]
STRENGTHS = dict(weight_decay=[0.03, 0.1, 0.3], l2=[1e-4, 3e-4, 1e-3], dropout=[0.1, 0.3, 0.5],
                 spatial_dropout=[0.03, 0.1, 0.2], label_smoothing=[0.05, 0.1, 0.2],
                 input_noise=[0.05, 0.1, 0.2], augment_mixup=[0.1, 0.2, 0.4],
                 augment_cutmix=[0.2, 0.5, 1.0])


def main(lists):
  base, given = lists
  if any(len(values) > 1 for values in given.values()):
    raise UserError('the study has its own lists of values: give each flag one')
  base = base.replace(**{name: values[0] for name, values in given.items()}).replace(seed=TUNED_ON)
  command.make_folder(FLAGS.output)
  rates = {rate: base.replace(learning_rate=rate) for rate in RATES}
  spent = [train(rates.values())]
  base = max(rates.values(), key=validation)
  tried = {method: {strength: base.replace(**{method: strength}) for strength in strengths}
           for method, strengths in STRENGTHS.items()}
  spent.append(train([config for configs in tried.values() for config in configs.values()]))
  best = {method: max(configs.items(), key=lambda item: validation(item[1]))
          for method, configs in tried.items()}
  chosen = {'none': ('', base)} | best
  spent.append(train([config.replace(seed=seed)
                      for _, config in chosen.values() for seed in SEEDS]))
  write(chosen, sum(spent) / 60 if all(spent) else None)
  return 0


def train(configs):
  """Trains the configurations; returns the seconds, None where nobody knows them."""
  return command.train_all([config.check() for config in configs])


def validation(config):
  return outcomes.finished(config)['validation_accuracy']


def write(chosen, minutes):
  """The table and the picture of {method: (strength, configuration)}, best on test first."""
  from lepton_jax.report import markdown, pictures, settings, sweep_pictures
  results = {method: [outcomes.finished(config.replace(seed=seed)) for seed in SEEDS]
             for method, (_, config) in chosen.items()}
  rows = []
  for method, (strength, config) in chosen.items():
    gains = [dict(gain=mine['test_accuracy'] - none['test_accuracy'])
             for mine, none in zip(results[method], results['none'])]
    tried = STRENGTHS.get(method, RATES)
    rows.append(dict(method=method, strength=strength, seeds=len(SEEDS),
                     **settings.over_seeds('test_accuracy', results[method]),
                     **settings.over_seeds('gain', gains),
                     **settings.over_seeds('validation_accuracy', results[method]),
                     tried=', '.join(map(str, tried)),
                     learning_rate=config.optimization.learning_rate, epochs=config.training.epochs,
                     images=config.data.train_limit, cores=machine.cores(),
                     seconds=round(statistics.mean(r['train_seconds'] for r in results[method]), 1),
                     minutes='' if minutes is None else round(minutes, 1)))
  rows.sort(key=lambda row: -row['test_accuracy'])
  markdown.write_rows(f'{FLAGS.output}/regularization_study.csv', rows)
  named = []
  for row in rows:
    rest = {name: value for name, value in row.items() if name not in ('method', 'strength')}
    named.append({row['method']: row['strength']} | rest)
  pictures.save(sweep_pictures.ranking(named), f'{FLAGS.output}/regularization_study.png')


if __name__ == '__main__':
  command.define_training('regularization_study', model='cnn_cifar', dataset='cifar10',
                          train_limit=10_000, epochs=10, batch_size=128)
  absl_flags.DEFINE_string('output', str(RESULTS), 'folder for the table and the picture')
  sys.exit(flags.run(main, __doc__, ('executor', 'output')))
