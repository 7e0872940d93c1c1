"""Compresses a finished run by recipes, stage by stage, down to one small file.

Question: how small does this network get, by which stages in which order, and what does it forget?
Papers: prune, share weights, code (Deep Compression, arXiv:1510.00149); what is forgotten
  (arXiv:1911.05248); the coder as in DeepCABAC (arXiv:1907.11900).
Command: ./launch.sh compress --run=runs/lenet5-mnist5k-3f9a2c61d0
  --recipe='prune(0.9):10,cluster(16):5,pack'
Expected: a row a stage, the bytes of the packed file, and what changed class by class.
Cost: that of the epochs in the recipe.

A stage is a run folder that starts from the run before it: recipes with a common beginning train it
once, and a recipe that was stopped goes on at its stage. Zeros, widths, levels and ranges of
earlier stages stay. Several recipes are divided by ';'; with --within=0.01 they are tried in order,
the smallest first, until one loses a point of validation accuracy or less. Flags of `train` that
are given hold where no stage says otherwise; with --distill the run itself is the teacher unless
--teacher names another.
"""

import json
import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
OWN = ('run', 'recipe', 'within')


def main(config):
  from lepton_jax import folder, recipe
  from lepton_jax.report import tables
  from lepton_jax.train import loop
  if not FLAGS.run or not FLAGS.recipe:
    raise UserError(f'--run=FOLDER names a finished run, --recipe its stages, such as '
                    f'{recipe.EXAMPLE!r}')
  recipes = recipe.recipes(FLAGS.recipe)
  base, _ = folder.read_config(FLAGS.run), folder.read_weights(FLAGS.run)  # or say what is missing
  given = {name: value for name, value in config.flat().items() if FLAGS[name].present}
  given |= dict(runs_dir=config.run.runs_dir)
  for stages in recipes:  # mistakes are told before anything is trained
    for one in recipe.configs(stages, base, given):
      one.check()
  found, kept = [('the run itself', folder.read_result(FLAGS.run))], False
  try:
    for stages in recipes:
      found += follow(stages, base, given)
      kept = FLAGS.within is not None and recipe.within(FLAGS.within, found[0][1], found[-1][1])
      if kept:
        break
  except loop.Interrupted as signal:
    print(f'{signal}: saved. To go on, repeat the same command', file=sys.stderr)
    return signal.status
  tables.print_rows([row(*one) for one in found])
  if kept:
    print(f'kept: {",".join(stage.text for stage in stages)}')
  elif FLAGS.within is not None:
    raise UserError(f'--within={FLAGS.within:g}: none of {len(recipes)} recipes loses as little')
  return 0


def follow(stages, base, given):
  """Trains the stages of a recipe and packs the last one; [(text of a stage, its result)]."""
  from lepton_jax import recipe
  place, found = FLAGS.run, []
  for stage, last, result in recipe.follow(stages, base, given, FLAGS.run):
    place = last
    found.append((stage.text, result))
  if stages[-1].epochs is None:
    found.append((stages[-1].text, packed(place, stages[-1])))
  return found


def packed(place, stage):
  """Packs a run, compares it with the one that was given, and returns what was found."""
  from lepton_jax import files, folder
  from lepton_jax.deploy import measure
  from lepton_jax.report import tables
  found = measure.packed(place, **stage.options)
  print(f'{place}/{measure.FILE}: {found["file_bytes"]:,} bytes, '
        f'{found["dense_bytes"] / found["file_bytes"]:.1f} times smaller than the dense network')
  before = folder.load(FLAGS.run)
  content = (folder.epath.Path(place) / measure.FILE).read_bytes()
  lost = measure.forgetting(before, measure.opened(content, before.data))
  if lost:
    file = folder.epath.Path(place) / 'forgetting.json'  # which a report shows beside the run
    files.write_atomically(file, json.dumps(lost, indent=2) + '\n')
    change = lost.pop('change_of_classes')
    tables.print_table('what compression changed', list(tables.numbers(lost)))
    print('by class: ' + ', '.join(f'{name} {100 * of:+.2f} %' for name, of in change.items()))
  return found


def row(text, result):
  """What the table shows of a stage; only a packed file has bytes."""
  measure = result['measure']
  return {'stage': text, f'validation {measure}': result.get(f'validation_{measure}', ''),
          f'test {measure}': result.get(f'test_{measure}', ''),
          'sparsity': result.get('sparsity', ''), 'parameters': result.get('num_parameters', ''),
          'bytes': result.get('file_bytes', '')}


if __name__ == '__main__':
  flags.define()
  absl_flags.DEFINE_string('run', '', 'folder of the finished run to compress')
  absl_flags.DEFINE_string('recipe', '', 'stages with their epochs; several recipes by ";"')
  absl_flags.DEFINE_float('within', None, 'stop at the first recipe that loses no more than this '
                          'of the validation measurement; 0.01 is a point of accuracy', 0.0)
  sys.exit(flags.run(main, __doc__, OWN))
