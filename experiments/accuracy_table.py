"""Trains the rows of the README's accuracy table and writes them to a CSV file, one line a run.

Question: how accurate are the networks that people compare with, dense and compressed, on a laptop
  CPU?
Papers: LeNet-5 as in Caffe; pruning arXiv:1710.01878; quantisation arXiv:1806.08342 and
  arXiv:1902.08153.
Command: ./launch.sh accuracy_table --data_dir=DIR --rows=quick,mnist
Expected: experiments/results/accuracy.csv as committed, times apart.
Cost: 20 minutes on 2 cores for the rows `quick` and `mnist`.

Finished lines are kept: a row is trained only for the seeds that the file lacks, and a run that was
stopped goes on where it was.
"""

import hashlib
import pathlib
import subprocess
import sys

from absl import flags as absl_flags

from experiments.tables import study
from experiments.tables.compression import SENTENCES
from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
OWN = ('rows', 'seeds', 'data_dir', 'output', 'runs_dir')
RESULTS = pathlib.Path(__file__).parent / 'results' / 'accuracy.csv'
COLUMNS = ('row', 'seed', 'measure', 'test', 'validation', 'test_examples', 'baselines',
           'num_parameters', 'sparsity', 'rounded_sparsity', 'quantized_kernels', 'steps',
           'selected_step', 'train_seconds', 'device', 'jax', 'git_revision', 'finished', 'flags')
MNIST = ('--model=lenet5', '--dataset=mnist', '--epochs=9', '--augment_crop=2')
CIFAR = ('--dataset=cifar10', '--batch_size=128', '--optimizer=nesterov', '--learning_rate=0.1',
         '--weight_decay=5e-3', '--schedule=one_cycle', '--augment_flip', '--augment_crop=4')
ROWWISE = ('--model=lstm_classifier', '--epochs=20', '--learning_rate=3e-3')
W4A8 = ('--quantize_weight_bits=4', '--quantize_activation_bits=8')
SST2 = tuple(study.words(SENTENCES).split())
DEMAND = ('--dataset=series:demand.csv', '--target=demand', '--relative', '--window=168',
          '--horizon=24')
# group: {row: (what is measured, flags)}
ROWS = {
    'quick': {
        'cnn_mnist on mnist5k': (
            'accuracy', ('--model=cnn_mnist', '--dropout=0.25', '--augment_crop=2'))},
    'mnist': {
        'lenet5 on MNIST': ('accuracy', MNIST),
        'lenet5 on MNIST, 90 % sparse, W4 A8': (
            'accuracy', (*MNIST, '--prune_sparsity=0.9', *W4A8))},
    'cifar10': {
        'cnn_cifar on CIFAR-10, 10 epochs': (
            'accuracy', ('--model=cnn_cifar', '--dataset=cifar10', '--epochs=10'))},
    'cifar10_quick': {
        'conv6 of half width on CIFAR-10': (
            'accuracy', ('--model=conv6', '--width=0.5', '--norm=batch', '--epochs=16', *CIFAR))},
    'cifar10_resnet8': {
        'resnet8 on CIFAR-10': ('accuracy', ('--model=resnet8', '--epochs=80', *CIFAR))},
    'rowwise': {
        'LSTM on mnist5k, row by row': ('accuracy', ROWWISE),
        'LSTM on mnist5k, row by row, 80 % sparse, W4 A8': (
            'accuracy', (*ROWWISE, '--prune_sparsity=0.8', *W4A8))},
    'shakespeare': {
        'character LSTM on tiny_shakespeare': ('loss', (
            '--model=lstm_lm', '--dataset=tiny_shakespeare', '--hidden=256', '--batch_size=32',
            '--epochs=10', '--learning_rate=3e-3', '--dropout=0.2', '--clip_norm=1'))},
    'sst2': {
        'LSTM on SST-2, dev sentences': ('accuracy', SST2),
        'LSTM on SST-2, dev sentences, words and their n-grams': (
            'accuracy', (*SST2, '--tokenizer=character_ngrams', '--vocabulary_size=40000'))},
    'series': {
        'LSTM on hourly electricity demand, 24 hours ahead': ('rmse', (
            *DEMAND, '--model=lstm_regressor', '--hidden=64', '--epochs=40',
            '--learning_rate=3e-3', '--batch_size=32'))},
}


def main(config):
  del config
  groups = FLAGS.rows.split(',')
  if not set(groups) <= set(ROWS):
    raise UserError(f'--rows={FLAGS.rows}: allowed are {", ".join(ROWS)}')
  lines = study.known(FLAGS.output)
  for group in groups:
    for row, (measure, arguments) in ROWS[group].items():
      lines = study.without_others(lines, dict(row=row), dict(flags=' '.join(arguments)))
      for seed in study.seeds():
        if study.missing(lines, dict(row=row, seed=seed)):
          lines.append(train(row, measure, arguments, seed))
          lines.sort(key=lambda line: (line['row'], int(line['seed'])))
          study.write(FLAGS.output, lines)
  return 0


def train(row, measure, arguments, seed):
  """One line: the run is a process of its own, as a user would start it."""
  from lepton_jax import assemble, folder
  digest = hashlib.sha256(repr((arguments, seed)).encode()).hexdigest()[:8]
  runs = pathlib.Path(FLAGS.runs_dir) / digest
  command = [sys.executable, '-m', 'experiments.train', f'--runs_dir={runs}', *arguments,
             f'--seed={seed}', f'--data_dir={FLAGS.data_dir}']
  print('+', ' '.join(command[1:]), flush=True)
  subprocess.run(command, check=True)
  place, = runs.iterdir()
  result = folder.read_result(str(place))
  examples = assemble.load_data(folder.read_config(str(place))).size('test')
  naive = '; '.join(f'{name.replace("_", " ")} {measured[measure]:.4g}'
                    for name, measured in result.get('baselines', {}).items())
  found = result | dict(row=row, measure=measure, test=result[f'test_{measure}'],
                        validation=result[f'validation_{measure}'], test_examples=examples,
                        baselines=naive, jax=result['versions']['jax'], flags=' '.join(arguments))
  return {column: str(found[column]) for column in COLUMNS}


if __name__ == '__main__':
  absl_flags.DEFINE_string('rows', 'quick', f'groups of rows, comma-separated <{"|".join(ROWS)}>')
  absl_flags.DEFINE_string('seeds', '0,1,2', 'seeds, comma-separated')
  absl_flags.DEFINE_string('data_dir', '', 'folder of prepared TFDS data')
  absl_flags.DEFINE_string('runs_dir', 'runs/accuracy_table', 'the run folders are made here')
  absl_flags.DEFINE_string('output', str(RESULTS), 'CSV file to extend')
  sys.exit(flags.run(main, __doc__, OWN))
