"""Settings over seeds: what the tables of compression and the scripts of papers have in common."""

import pathlib
import typing

from absl import flags as absl_flags

from lepton_jax import config as config_lib
from lepton_jax import outcomes, recipe
from lepton_jax.errors import UserError
from lepton_jax.sweep import command

FLAGS = absl_flags.FLAGS
QUIET = dict(tensorboard=False, pictures=False, checkpoint_every=0)
MEASURED = ('measure', 'test', 'validation', 'num_parameters', 'sparsity', 'rounded_sparsity',
            'macs', 'nonzero_macs', 'file_bytes', 'epochs', 'train_seconds', 'processor', 'jax',
            'git_revision')


class Study(typing.NamedTuple):
  """Runs that differ in one thing.

  Attributes:
    base: options of all runs.
    settings: {name: options on top of them}.
    parent: options of a dense run that all of them start from, of the same seed; None: of none.
    given_as: the option that names the parent's folder.
  """
  base: dict
  settings: dict
  parent: dict | None = None
  given_as: str = 'init_from'


def define(runs_dir, output, seeds='0,1,2'):
  """Defines the flags of a script that trains studies."""
  absl_flags.DEFINE_string('seeds', seeds, 'seeds, comma-separated')
  absl_flags.DEFINE_string('data_dir', '', 'folder of prepared TFDS data')
  absl_flags.DEFINE_string('runs_dir', runs_dir, 'the run folders are made here')
  absl_flags.DEFINE_string('output', str(output), 'CSV file to extend')
  absl_flags.DEFINE_enum('executor', 'inline', ('inline', 'devices', 'processes'),
                         'as in sweeps: where trials run')


OWN = ('seeds', 'data_dir', 'runs_dir', 'output', 'executor')


def extend(output, studies, key, note=lambda name, setting: {}):
  """Trains what the CSV file `output` lacks of `studies`, {name: Study}, a seed at a time.

  `key` maps (name of a study, name of a setting) to the columns that name them, {column: text}, the
  study's first; `note` to more that is written beside them. Lines of other studies stay, those of
  other options are made anew. Returns all lines.
  """
  lines = known(output)
  for name, study in studies.items():
    made = {setting: dict(flags=described(study, setting)) for setting in study.settings}
    for setting, how in made.items():
      lines = without_others(lines, key(name, setting), how)
    for seed in seeds():
      named = {setting: key(name, setting) | dict(seed=seed) for setting in study.settings}
      new = {setting: first for setting, first in named.items() if missing(lines, first)}
      for setting, config in train(study, seed, new).items():
        lines.append(new[setting] | note(name, setting) | measured(config) | made[setting])
      sort(lines, list(key(name, next(iter(study.settings)))))
      write(output, lines)
  return lines


def known(output):
  """The lines of a CSV file, none where it is not there yet."""
  from lepton_jax.report import markdown
  return markdown.rows(output) if pathlib.Path(output).exists() else []


def write(output, lines):
  """Writes lines into a CSV file, whose folder is made."""
  from lepton_jax.report import markdown
  pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
  markdown.write_rows(output, lines)


def seeds():
  """The numbers of --seeds, as texts; raises UserError for what is none."""
  try:
    return [str(int(word)) for word in FLAGS.seeds.split(',')]
  except ValueError:
    raise UserError(f'--seeds={FLAGS.seeds}: allowed are whole numbers, comma-separated') from None


def without_others(lines, named, made):
  """The lines but those of a name that were made otherwise, which say nothing of it any more.

  `named` and `made` are {column: text}.
  """
  return [line for line in lines if not agrees(line, named) or agrees(line, made)]


def missing(lines, named):
  return not any(agrees(line, named) for line in lines)


def agrees(line, wanted):
  return all(line[column] == text for column, text in wanted.items())


def sort(lines, columns):
  """Puts lines of a study, of a setting together, in the order in which each came first."""
  places = {}
  for line in lines:
    for count in (1, len(columns)):
      places.setdefault(tuple(line[column] for column in columns[:count]), len(places))
  place = lambda line, columns: places[tuple(line[column] for column in columns)]
  lines.sort(key=lambda line: (place(line, columns[:1]), place(line, columns), int(line['seed'])))


def described(study, setting):
  """A run's options as flags."""
  start = ''
  if study.parent is not None:
    start = f'{study.given_as} ({words(study.base | study.parent)}): '
  return start + words(study.base | study.settings[setting])


def words(options):
  return ' '.join(f'--{name}={value}' for name, value in options.items())


def configs(study, seed, settings):
  """{setting: its configuration of a seed}; the runs that they start from are trained."""
  base = config_lib.Config().replace(
      runs_dir=FLAGS.runs_dir, data_dir=FLAGS.data_dir, seed=int(seed), **QUIET | study.base)
  start = {}
  if study.parent is not None:
    parent = base.replace(**study.parent).check()
    command.train_all([parent])
    start = {study.given_as: str(outcomes.folder_of(parent))}
  return {setting: recipe.taught(base.replace(**start | study.settings[setting]),
                                 start.get(study.given_as, '')).check() for setting in settings}


def train(study, seed, settings):
  """{setting: its configuration}, trained, first the run that all start from."""
  from lepton_jax import run
  if not settings:
    return {}
  found = configs(study, seed, settings)
  # What is rounded afterwards trains nothing, so it is no trial of a sweep.
  after = [config for config in found.values() if config.quantize.quantize_after]
  if swept := [config for config in found.values() if config not in after]:
    command.train_all(swept)
  for config in after:
    run.train(config)
  return found


def measured(config):
  """The columns MEASURED of a finished run, as texts."""
  result = outcomes.finished(config)
  kind = result['measure']
  found = result | dict(
      test=result[f'test_{kind}'], validation=result[f'validation_{kind}'],
      jax=result['versions']['jax'],
      processor=result['processor'] if result['device'] == 'cpu' else result['device'])
  return {column: str(found[column]) for column in MEASURED}
