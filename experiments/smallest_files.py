"""How small known networks get: trained, compressed by a recipe and packed, over seeds.

Question: in how many bytes, all of them counted, does a network fit, and with what error?
Papers: Deep Compression (arXiv:1510.00149) has LeNet-300-100 in 27 kB at 1.58 % error and LeNet-5
  in 44 kB at 0.74 %; Bayesian Compression (arXiv:1705.08665) and MIRACLE (arXiv:1810.00440) go on.
Command: ./launch.sh smallest_files --data_dir=DIR --rows=lenet5,lenet_300_100
Expected: experiments/results/smallest_files.csv and the files beside it in files/, as committed;
  ./launch.sh evaluate --artifact=experiments/results/files/lenet5.lepton repeats a row.
Cost: 15 minutes a seed and row on 2 cores.

Recipes were chosen on validation, with one seed. Of several in a row the first is kept that loses a
point of validation accuracy or less, or else the last. The test split is read once for each file.
Of the seeds the file with the best validation is kept. All layers are treated alike. With
--on=dataset=fashion_mnist, or --on=dataset=csv:FILE,text_column=...,target=..., networks and
recipes are the same and the data others, for which they were not chosen; such files are not kept.
"""

import pathlib
import shutil
import sys

from absl import flags as absl_flags

from experiments.tables import compression, study
from lepton_jax import config as config_lib
from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
OWN = ('rows', 'seeds', 'on', 'data_dir', 'output', 'runs_dir')
RESULTS = pathlib.Path(__file__).parent / 'results'
RESIDUAL = compression.RESIDUAL | compression.BEFORE | dict(model='resnet20')
ROWS = {
    'lenet5': (dict(model='lenet5', dataset='mnist', epochs=20, augment_crop=2),
               dict(augment_crop=2, learning_rate=3e-3, distill=1.0),
               'channels(0.7,layers=conv1=0.5;conv2=0.65;dense=0.8,end=0.5):8,'
               'prune(0.88,end=0.5,updates=50):40,cluster(8,learning_rate=2e-3):12,'
               'pack(number_bits=6);'
               'prune(0.9,end=0.5,updates=50):30,cluster(16,learning_rate=2e-3):10,pack'),
    'lenet_300_100': (dict(model='lenet_300_100', dataset='mnist', epochs=60, augment_crop=2),
                      dict(augment_crop=1, learning_rate=3e-3, distill=1.0),
                      'prune(0.98,end=0.6,updates=100):60,cluster(16,learning_rate=1e-3):10,'
                      'pack(number_bits=6);'
                      'prune(0.9,end=0.6,updates=50):30,cluster(16,learning_rate=1e-3):10,pack'),
    'sst2_lstm': (compression.SENTENCES, {},
                  'prune(0.8,end=0.7):3,quantize(4,8):1,pack(number_bits=8)'),
    # The teacher says of a text what else could have come next; so its pupil takes no dropout.
    'characters': (compression.SHAKESPEARE | dict(hidden=512, batch_size=64, dropout=0.4, epochs=20,
                                                  learning_rate=3e-3),
                   dict(distill=1.0, distill_temperature=1.0, dropout=0.0),
                   'prune(0.9,end=0.5,updates=50):16,quantize(6,8):2,pack(number_bits=8)'),
    # CIFAR-10 as in MLPerf Tiny (arXiv:2106.07597): 85 % by an int8 ResNet-8 of 98,496 bytes.
    'resnet8_32kb': (RESIDUAL | dict(model='resnet8'), dict(learning_rate=0.05, distill=1.0),
                     'prune(0.3,end=0.6):15,quantize(4,8,quantize_weights=lsq,'
                     'learning_rate=0.02):10,pack(number_bits=8)'),
    'resnet20_98kb': (RESIDUAL, dict(learning_rate=0.05), 'prune(0.5,end=0.7):25,quantize(4,8,'
                      'quantize_weights=lsq,learning_rate=0.02):10,pack(number_bits=8)')}
COLUMNS = ('row', 'seed', 'measure', 'dense_test', 'dense_validation', 'test', 'validation',
           'file_bytes', 'dense_bytes', 'xz_bytes', 'zstd_bytes', 'npz_bytes', 'pack_seconds',
           'unpack_seconds', 'worst_class_change', 'disagree', 'seconds', 'processor',
           'git_revision', 'kept', 'recipe', 'flags')
WITHIN = 0.01  # points of accuracy or nats that a recipe may lose on validation


def main(config):
  del config
  from lepton_jax.report import settings
  names, output = FLAGS.rows.split(','), pathlib.Path(FLAGS.output)
  others = other_data(FLAGS.on)
  kind, _, path = others.get('dataset', '').partition(':')
  suffix = f' on {pathlib.Path(path).stem or kind}' if others else ''
  if not set(names) <= set(ROWS):
    raise UserError(f'--rows={FLAGS.rows}: allowed are {", ".join(ROWS)}')
  table = output / 'smallest_files.csv'
  lines = study.known(table)
  for name in names:
    row, now = name + suffix, dict(recipe=ROWS[name][2], flags=flags_of(name, others))
    lines = study.without_others(lines, dict(row=row), now)
    for seed in study.seeds():
      if study.missing(lines, dict(row=row, seed=seed)):
        own = [line for line in lines if line['row'] == row]
        place, found = compressed(name, int(seed), others)
        worth = lambda line: settings.sign(line['measure']) * float(line['validation'])
        if not others and all(worth(found) > worth(line) for line in own):
          (output / 'files').mkdir(parents=True, exist_ok=True)
          shutil.copyfile(f'{place}/network.lepton', output / 'files' / f'{name}.lepton')
        lines.append({column: str((found | now | dict(row=row)).get(column, ''))
                      for column in COLUMNS})
        lines.sort(key=lambda line: (line['row'], int(line['seed'])))
        study.write(table, lines)
  return 0


def other_data(text):
  """{option: value} of --on, which names other data and nothing else."""
  found = {}
  for part in filter(None, text.split(',')):
    name, equals, word = part.partition('=')
    group, _ = config_lib.FIELDS.get(name, ('', None))
    if not equals or group != 'data':
      raise UserError(f'--on: {part!r} is no option of data, such as dataset=fashion_mnist')
    found[name] = config_lib.read_value(name, word, f'--on: {part!r}')
  if found and 'dataset' not in found:
    raise UserError(f'--on={text} names no data; it has to have dataset=...')
  return found


def flags_of(name, others):
  """A row's options as flags: of the network that is compressed, then of all stages."""
  options, given, _ = ROWS[name]
  return f'{study.words(options | others)}; then {study.words(given)}'


def compressed(name, seed, others):
  """(the folder of the last stage, what there is to say of one file); `others` are options."""
  from lepton_jax import folder, recipe, run
  from lepton_jax.deploy import measure
  options, given, text = ROWS[name]
  options = options | others
  where = dict(study.QUIET, runs_dir=FLAGS.runs_dir, data_dir=FLAGS.data_dir, seed=seed)
  base = config_lib.Config().replace(**options | where)
  print(f'{name}, seed {seed}: {base.name()}', flush=True)
  dense = run.train(base.check())
  start = f'{FLAGS.runs_dir}/{base.name()}'
  seconds = dense['train_seconds']
  for stages in recipe.recipes(text):
    for _, last, result in recipe.follow(stages, base, given, start):
      place = last
      seconds += result['train_seconds']
    found = measure.packed(place, **stages[-1].options)
    if recipe.within(WITHIN, dense, found):
      break
  trained = folder.load(start)
  content = pathlib.Path(place, measure.FILE).read_bytes()
  kind = found['measure']
  return place, found | measure.forgetting(trained, measure.opened(content, trained.data)) | dict(
      seed=seed, seconds=round(seconds), kept=','.join(stage.text for stage in stages),
      dense_test=dense[f'test_{kind}'], dense_validation=dense[f'validation_{kind}'],
      test=found[f'test_{kind}'], validation=found[f'validation_{kind}'])


if __name__ == '__main__':
  absl_flags.DEFINE_string('rows', 'lenet5', f'rows, comma-separated <{"|".join(ROWS)}>')
  absl_flags.DEFINE_string('seeds', '0,1,2', 'seeds, comma-separated')
  absl_flags.DEFINE_string('on', '', 'options of other data, comma-separated: dataset=NAME, ...')
  absl_flags.DEFINE_string('data_dir', '', 'folder of prepared TFDS data')
  absl_flags.DEFINE_string('runs_dir', 'runs/smallest_files', 'the run folders are made here')
  absl_flags.DEFINE_string('output', str(RESULTS), 'folder of the table and of files/')
  sys.exit(flags.run(main, __doc__, OWN))
