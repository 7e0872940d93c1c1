"""The configuration's fields as absl flags, and the entry point every experiment shares.

Only absl and the standard library are imported here, so `--help` answers at once.
"""

import gc
import itertools
import pathlib
import sys

from absl import app, flags, logging

from lepton_jax import cluster, help_text
from lepton_jax import config as config_lib
from lepton_jax.errors import UserError


class _Parser(flags.ArgumentParser):
  """Turns a flag's text into the field's type, checking choices and bounds."""

  def __init__(self, name):
    self.name = name
    self.kind, self.optional = config_lib.value_type(name)

  @property
  def enum_values(self):
    """The names that are allowed, as a parser of absl's own calls them; () for other values."""
    return config_lib.choices(self.name) or ()

  def parse(self, argument):
    if argument is None or (self.optional and argument in ('', 'None')):
      return None
    if isinstance(argument, str) and self.kind in (int, float):
      try:
        argument = self.kind(argument)
      except ValueError:
        raise ValueError(f'{argument!r} is not of type {self.kind.__name__}') from None
    if self.kind is float and type(argument) is int:
      argument = float(argument)
    config_lib.check_value(self.name, argument)
    return argument

  def flag_type(self):
    return self.kind.__name__


def define(flag_values=flags.FLAGS):
  """Defines one flag per configuration field, and --config."""
  flags.DEFINE_string('config', '', 'config.json of a run to repeat; other flags override it',
                      flag_values=flag_values)
  define_some(config_lib.FIELDS, flag_values)


def define_some(names, flag_values=flags.FLAGS):
  """Defines the flags of these configuration fields."""
  for name in names:
    text, default = describe(name), config_lib.FIELDS[name][1].default
    if config_lib.value_type(name)[0] is bool:
      flags.DEFINE_bool(name, default, text, flag_values=flag_values)
    else:
      flags.DEFINE(_Parser(name), name, default, text, flag_values=flag_values,
                   serializer=flags.ArgumentSerializer())


class _ListParser(flags.ArgumentParser):
  """Turns a flag's text into values of the field's type, cut at the field's separator."""

  def __init__(self, name):
    self.one, self.separator = _Parser(name), config_lib.FIELDS[name][1].metadata['separator']

  @property
  def enum_values(self):
    return self.one.enum_values

  def parse(self, argument):
    if isinstance(argument, list):
      return argument
    if self.one.kind is not bool:
      return [self.one.parse(part.strip()) for part in argument.split(self.separator)]
    words = dict(true=True, false=False)
    if not set(argument.lower().split(',')) <= set(words):
      raise ValueError(f'{argument!r}: allowed are true and false')
    return [words[part] for part in argument.lower().split(',')]

  def flag_type(self):
    return f'list of {self.one.flag_type()}'


def define_lists(flag_values=flags.FLAGS, **defaults):
  """Defines --config and one flag per configuration field, each taking several values.

  `defaults` replace the fields' own.
  """
  flags.DEFINE_string('config', '', 'config.json of a run to vary; other flags override it',
                      flag_values=flag_values)
  for name, (_, field) in config_lib.FIELDS.items():
    serializer = flags.ListSerializer(field.metadata['separator'])
    flag = flags.Flag(_ListParser(name), serializer, name, [defaults.get(name, field.default)],
                      describe(name))
    flag.boolean = config_lib.value_type(name)[0] is bool  # --name alone is true, --noname false
    flags.DEFINE_flag(flag, flag_values)


def lists(flag_values=flags.FLAGS):
  """(the Config on which a sweep is built, {field: the values that its flag lists})."""
  given = {n: flag_values[n].value for n in config_lib.FIELDS if flag_values[n].present}
  own = {n: flag_values[n].default[0] for n, (_, field) in config_lib.FIELDS.items()
         if flag_values[n].default != [field.default]}
  if flag_values.config:  # says what is trained; where and how is still the script's
    own = {n: value for n, value in own.items() if not config_lib.FIELDS[n][1].metadata['identity']}
  base = _from_file(flag_values.config).replace(**own)
  return base, given


def describe(name):
  """A flag's help: meaning, names that are known among others, and unit."""
  meta = config_lib.FIELDS[name][1].metadata
  known = f'; embedded: {", ".join(meta["among"].names())}' if meta['among'] else ''
  unit = f' [{meta["unit"]}]' if meta['unit'] else ''
  return meta['help'] + known + unit


def configuration(flag_values=flags.FLAGS):
  """The Config that the command line asks for: defaults, then --config, then the flags given."""
  given = {n: flag_values[n].value for n in config_lib.FIELDS if flag_values[n].present}
  return _from_file(flag_values.config).replace(**given).check()


def _from_file(name):
  """The Config in a config.json, or in the one of a run folder; the defaults for ''."""
  if not name:
    return config_lib.Config()
  path = pathlib.Path(name).expanduser()
  if path.is_dir():
    path = path / 'config.json'
  if not path.is_file():
    raise UserError(f'--config={name}: no such file')
  return config_lib.Config.from_json(path.read_text(), source=str(path))


def run(main, doc, own=(), files=False):
  """Parses the command line and calls `main(config)`, of a script of `files` main(their names).

  A user's mistake ends in one line and exit status 1. `main` returns an exit status or None; `own`
  names the flags that the script defined itself. A script that called `define_lists` gets what
  `lists` returns for config, one that defined no configuration None.
  """
  before = itertools.takewhile(lambda word: word != '--', sys.argv[1:])  # the rest is another's
  asked = {'--help', '-h', '-help', '--helpfull', '--helpshort', '-helpshort'}.intersection(before)
  if asked:
    short = asked <= {'--helpshort', '-helpshort'}
    print((help_text.short if short else help_text.full)(doc, own, flags.FLAGS))
    return

  def guarded(argv):
    # Importing and tracing make millions of objects that stay. A look through them for garbage
    # every 700 of them, Python's default, took a sixth of the time to the first step.
    gc.set_threshold(100_000, 20, 20)
    logging.set_verbosity(logging.WARNING)  # jax and orbax narrate at INFO
    try:
      if files:
        return main(argv[1:])
      if len(argv) > 1:
        raise UserError(f'unexpected argument {argv[1]!r}: options are given as --name=value')
      if 'config' not in flags.FLAGS:
        return main(None)
      return main(lists() if isinstance(flags.FLAGS['seed'].value, list) else configuration())
    except UserError as error:
      print(f'error: {error}', file=sys.stderr)
      return cluster.leave(1, str(error))
    except Exception as error:
      if not cluster.connected():
        raise
      return cluster.fail(error)
    except KeyboardInterrupt:
      print('stopped; what was finished before is kept', file=sys.stderr)
      return cluster.leave(130, 'Ctrl-C')

  app.run(guarded)
