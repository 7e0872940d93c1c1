"""The README's table of headlines, from the CSV files of the longer tables."""

import statistics

from lepton_jax.report import markdown


def table(read):
  """A row a headline; `read(name)` gives the lines of experiments/results/NAME.csv."""
  small = lambda row: [line for line in read('smallest_files') if line['row'] == row]
  body = [packed('LeNet-5 on MNIST in one file', small('lenet5')),
          packed('LSTM on SST-2, its 14,000 words in the file', small('sst2_lstm')),
          packed('ResNet-20 on CIFAR-10 in one file', small('resnet20_98kb')),
          compressed(read('accuracy')),
          accuracy(read('accuracy'), 'LSTM on SST-2, dev sentences, words and their n-grams'),
          speed(read('benchmark')), exported(read('runtimes')), sweeps(read('sweep_cost'))]
  return (markdown.table(('what', 'measured', 'more'), body) +
          '\n\nAccuracies are means ± standard deviations over 3 seeds, of SST-2 by n-grams 5, the '
          'test part read once. '
          'ResNet-20 was trained on an NVIDIA H200, all else on 2 cores of AMD EPYC.')


def mean(lines, column):
  return statistics.mean(float(line[column]) for line in lines)


def percent(lines, column):
  return markdown.spread([100 * float(line[column]) for line in lines])


def page(name):
  return f'[{name}](experiments/results/{name}.md)'


def packed(what, lines):
  times = mean(lines, 'dense_bytes') / mean(lines, 'file_bytes')
  return (what, f'{mean(lines, "file_bytes"):,.0f} bytes, {times:.0f} times smaller: '
                f'{percent(lines, "dense_test")} % -> {percent(lines, "test")} %',
          page('compression'))


def compressed(lines):
  dense, other = ([line for line in lines if line['row'] == f'lenet5 on MNIST{end}']
                  for end in ('', ', 90 % sparse, W4 A8'))
  return ('LeNet-5 on MNIST, 90 % of weights zero, 4 bits, inputs 8',
          f'{percent(dense, "test")} % -> {percent(other, "test")} %', page('accuracy'))


def accuracy(lines, row):
  lines = [line for line in lines if line['row'] == row]
  found = markdown.measured([float(line['test']) for line in lines], lines[0]['measure'])
  return row, ' '.join(found), page('accuracy')


def speed(lines):
  ratios = [float(line['ratio_vs_torch']) for line in lines]
  return (f'a training step of {len({line["network"] for line in lines})} networks on a CPU',
          f'{min(ratios):.2f} to {max(ratios):.2f} times as fast as PyTorch', page('speed'))


def exported(lines):
  own = lambda file: [line for line in lines
                      if line['row'] == 'lstm' and line['file'].startswith(file)]
  return ('an LSTM in ONNX as one operator',
          f'{mean(own("dense"), "bytes"):,.0f} bytes, '
          f'{mean(own("unrolled"), "ms_1") / mean(own("dense"), "ms_1"):.1f} times as fast as '
          f'traced step by step', page('runtimes'))


def sweeps(lines):
  own = {how: statistics.median(float(line['seconds']) for line in lines
                                if line['how'] == how and line['work'].startswith('64'))
         for how in ('one sweep', 'a process for each trial')}
  return ('64 trials of one network in one sweep',
          f'{own["one sweep"]:.0f} s; {own["a process for each trial"]:.0f} s with a process for '
          f'each', page('sweeps'))
