"""Accuracy against size over combinations of pruning and quantisation flags, or over recipes.

Question: which sparsity, which bit widths and which order of them are worth their accuracy here?
Papers: pruning arXiv:1710.01878; quantisation arXiv:1806.08342, arXiv:1902.08153.
Command: ./launch.sh compression_sweep --model=lenet5 --prune_sparsity=0.5,0.8,0.9,0.95
  --quantize_weight_bits=2,3,4,8 --seed=0,1,2
Expected: a table and a Pareto front of accuracy over bytes of the packed file in
  runs/compression_sweep/report.
Cost: three quarters of an hour on 2 cores for this command, with --executor=devices.

Every flag of `train` takes a comma list. All sparsities and bit widths but 0 share one compiled
program. With --init_from=RUN every trial starts from that dense run. The size is that of the packed
file, whose levels are those that were trained.

With --recipes='prune(0.9):5,cluster(16):5,pack;cluster(16):5,prune(0.9):5,pack' every combination
is trained dense and then follows each recipe; what recipes have in common is trained once.
"""

import collections
import itertools
import pathlib
import statistics
import sys

from absl import flags as absl_flags

from lepton_jax import flags, outcomes, recipe
from lepton_jax.errors import UserError
from lepton_jax.sweep import command, engine, grid, ray_executor, trials

FLAGS = absl_flags.FLAGS


def main(lists):
  if not FLAGS.recipes:
    return command.main(lists)
  ray_executor.check(FLAGS.executor, FLAGS.address)
  recipes = recipe.recipes(FLAGS.recipes)
  dense = grid.product(lists[0].replace(save_weights=True), lists[1] | dict(save_weights=[True]))
  trials.check(dense)
  for stages in recipes:  # mistakes are told before anything is trained
    for one in recipe.configs(stages, dense[0], {}):
      one.check()
  paths = [(config, stages, path(config, stages)) for config in dense for stages in recipes]
  return command.trained(dense[0], lambda: (dense, train(dense, paths)),
                         lambda configs: show(configs, paths))


def train(dense, paths):
  """Trains the dense networks, then stage by stage all recipes; the Costs."""
  tell = lambda text: print(text, flush=True)
  costs = engine.sweep(dense, FLAGS.executor, FLAGS.workers, tell, FLAGS.address)
  for level in itertools.zip_longest(*(stages for _, _, stages in paths)):
    shared = {config.name(): config for config in level if config is not None}
    more = engine.sweep(list(shared.values()), FLAGS.executor, FLAGS.workers, tell, FLAGS.address)
    costs = type(costs)(*(a + b for a, b in zip(costs, more)))
  return costs


def path(config, stages):
  """The configurations of the stages of a recipe that train, from the dense one's run on."""
  start = place = str(outcomes.folder_of(config))
  found = []
  for one in recipe.configs(stages, config, {}):
    found.append(recipe.begun(one, start, place))
    place = str(outcomes.folder_of(found[-1]))
  return found


def show(dense, paths):
  """Prints and writes a row for each setting and recipe, best on validation first."""
  from lepton_jax.deploy import measure
  from lepton_jax.report import markdown, settings, tables
  fields, groups, failed = settings.varied(dense), collections.defaultdict(list), []
  setting = lambda config: tuple(config.flat()[name] for name in fields)
  for config in dense:
    if (result := outcomes.finished(config)) is not None:
      groups[*setting(config), 'dense'].append(result)
  for config, stages, (*_, last) in paths:
    if (result := outcomes.finished(last)) is not None:
      if stages[-1].epochs is None:
        try:
          result = measure.packed(outcomes.folder_of(last), **stages[-1].options)
        except UserError as error:
          failed.append((last, f'{stages[-1].text}: {error}'))
          continue
      groups[*setting(config), ','.join(stage.text for stage in stages)].append(result)
  rows = []
  for (*values, name), results in groups.items():
    kind = results[0]['measure']
    validation = [result[f'validation_{kind}'] for result in results]
    rows.append(dict(zip(fields, values)) | {
        'recipe': name, 'seeds': len(results),
        f'validation_{kind}': statistics.mean(validation),
        f'validation_{kind}_sd': statistics.stdev(validation) if len(results) > 1 else '',
        f'test_{kind}': statistics.mean(result[f'test_{kind}'] for result in results),
        'file_bytes': round(statistics.mean(result['file_bytes'] for result in results))})
  rows.sort(key=lambda row: row[f'validation_{kind}'], reverse=kind == 'accuracy')
  if not FLAGS.report_all_test:  # the test part is for what was chosen
    rows = [row if i == 0 else row | {f'test_{kind}': ''} for i, row in enumerate(rows)]
  output = pathlib.Path(FLAGS.output or f'{dense[0].run.runs_dir}/report').expanduser()
  command.make_folder(output)
  tables.print_rows(rows)
  markdown.write_rows(output / 'recipes.csv', rows)
  print(f'{output}/recipes.csv')
  failed += outcomes.without_result(dense + [one for _, _, stages in paths for one in stages])
  for config, why in failed:
    print(f'failed: {outcomes.folder_of(config)}: {why}', file=sys.stderr)
  return 1 if failed else 0


if __name__ == '__main__':
  command.define('compression_sweep')
  absl_flags.DEFINE_string('recipes', '', 'recipes as in compress, divided by ";", which every '
                                          'combination follows')
  sys.exit(flags.run(main, __doc__, (*command.OWN, 'recipes')))
