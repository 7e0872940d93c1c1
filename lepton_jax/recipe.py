"""Recipes such as 'prune(0.9):10,cluster(16):5,pack': stages, each started from the one before."""

import math
import re
import typing

from lepton_jax import config as config_lib
from lepton_jax import registry
from lepton_jax.errors import UserError

EXAMPLE = 'prune(0.9):10,cluster(16):5,pack'
# Stage: (what its options begin with, the options that values without a name are, what it is).
STAGES = {
    'train': ('', (), {}),
    'share': ('soft_sharing_', ('soft_sharing',), {}),
    'prune': ('prune_', ('prune_sparsity',), {}),
    'channels': ('prune_', ('prune_sparsity',), dict(prune_structure='channels')),
    'quantize': ('quantize_', ('quantize_weight_bits', 'quantize_activation_bits'), {}),
    'cluster': ('quantize_', ('quantize_weight_bits',), dict(quantize_weights='cluster')),
    'factorize': ('factorize_', ('factorize_rank',), {}),
    'distill': ('distill_', ('distill',), {})}
PACK = dict(bits=int, number_bits=int, rate=float)


class Stage(typing.NamedTuple):
  """One stage: its text, its options, and how many epochs it trains (None for 'pack')."""
  text: str
  options: dict
  epochs: int | None

  @property
  def name(self):
    return re.match(r'\w+', self.text).group()


def parse(text):
  """[Stage] of a recipe; raises UserError that says what is allowed. 'pack' can only be the last.
  """
  stages = [_stage(part.strip()) for part in _split(text)]
  if not stages:
    raise UserError(f'--recipe={text!r} has no stage; write stages such as {EXAMPLE!r}')
  if any(stage.epochs is None for stage in stages[:-1]):
    raise UserError(f'--recipe={text!r}: pack makes a file, so it is the last stage')
  return stages


def recipes(text):
  """[[Stage]] of several recipes, divided by ';'."""
  return [parse(part) for part in _split(text, ';')]


def _split(text, mark=','):
  """The parts between marks that are in no brackets."""
  return [part for part in re.split(rf'{mark}(?![^(]*\))', text) if part.strip()]


def _stage(text):
  found = re.fullmatch(r'(\w+)(?:\(([^()]*)\))?(?::(\d+))?', text)
  if not found or found[1] not in (*STAGES, 'pack'):
    raise UserError(f'--recipe: {text!r} is no stage; allowed are name(options):epochs, with the '
                    f'names {", ".join((*STAGES, "pack"))}, such as {EXAMPLE!r}')
  name, given, epochs = found.groups()
  values = [one.strip() for one in (given or '').split(',') if one.strip()]
  if name == 'pack':
    if epochs:
      raise UserError(f'--recipe: {text!r} trains nothing; write it without epochs')
    return Stage(text, _pack_options(text, values), None)
  if not epochs or int(epochs) < 1:
    raise UserError(f'--recipe: {text!r} needs a number of epochs, such as {name}({given or ""}):5')
  prefix, places, fixed = STAGES[name]
  options = dict(fixed)
  for place, value in enumerate(values):
    option, equals, word = value.partition('=')
    if not equals:
      if place >= len(places):
        raise UserError(f'--recipe: {text!r} takes {len(places)} values without a name')
      option, word = places[place], value
    elif prefix + option in config_lib.FIELDS:
      option = prefix + option
    options[option] = _read(text, name, option, word)
  return Stage(text, options, int(epochs))


def _read(text, stage, option, word):
  """The value of an option, of its type; of a cluster stage the number of values as bits."""
  if option not in config_lib.FIELDS:
    raise UserError(f'--recipe: {text!r}: there is no option {option!r}')
  value = config_lib.read_value(option, word, f'--recipe: {text!r}')
  if stage == 'cluster' and option == 'quantize_weight_bits':
    bits = round(math.log2(value)) if value > 1 else 0
    if 2 ** bits != value or not 2 <= bits <= 8:
      raise UserError(f'--recipe: {text!r}: allowed are 4, 8, 16, 32, 64, 128 and 256 values')
    value = bits
  config_lib.check_value(option, value)
  return value


def _pack_options(text, values):
  options = {}
  for value in values:
    option, equals, word = value.partition('=')
    if option not in PACK or not equals:
      raise UserError(f'--recipe: {text!r}: pack takes {", ".join(f"{o}=..." for o in PACK)}')
    try:
      options[option] = PACK[option](word)
    except ValueError:
      raise UserError(f'--recipe: {text!r}: {word!r} is not of type {PACK[option].__name__}'
                      ) from None
    if option == 'rate' and not 0 <= options[option] < math.inf or (
        option != 'rate' and not (options[option] == 0 or 2 <= options[option] <= 16)):
      raise UserError(f'--recipe: {text!r}: bits are 0 (as they are) or 2 to 16, a rate is 0 or '
                      f'more')
  return options


def follow(stages, base, given, start):
  """Trains the stages, each from the one before, the first from the run folder `start`.

  Yields (stage, its run folder, its result). A stage that distils learns from `start` unless a
  teacher is named.
  """
  from lepton_jax import run
  place = start
  for stage, config in zip(stages, configs(stages, base, given)):
    config = begun(config, start, place)
    place = f'{config.run.runs_dir}/{config.name()}'
    print(f'{stage.text}: {place}', flush=True)
    yield stage, place, run.train(config)


def within(most, before, after):
  """Whether one result's validation measurement is worse than another's by `most` or less."""
  from lepton_jax.report.settings import sign
  kind = before['measure']
  lost = sign(kind) * (before[f'validation_{kind}'] - after[f'validation_{kind}'])
  return lost <= most + 1e-9  # 0.01 is what 0.93 and 0.92 differ by


def begun(config, start, place):
  """A stage's configuration from the run at `place` on; it learns from `start`, if it distils."""
  return taught(config, start).replace(init_from=place).check()


def taught(config, run):
  """The configuration, which learns from a run if it distils and names no other teacher."""
  wants = config.distill.on and not config.distill.teacher
  return config.replace(teacher=run) if wants else config


def configs(stages, base, given):
  """The configurations of the stages that train, each without the run that it starts from.

  `base` is the configuration of the run to compress, `given` are options of all stages, where none
  says otherwise. Zeros and widths stay by starting from a run; what a stage says of rounding, and
  of what else is not done once, stays on.
  """
  base, found, on = base.as_start(), [], dict(given)
  for stage in stages:
    if stage.epochs is None:
      continue
    options = quantizer_of(stage, base.replace(**on), given) | stage.options
    found.append(base.replace(**on | options | dict(epochs=stage.epochs)))
    on |= {name: value for name, value in options.items()
           if not config_lib.is_done_once(name)}
  return found


def quantizer_of(stage, before, given):
  """The quantizer of a stage that rounds to bits, where the one before it cannot: {} elsewhere."""
  if stage.name != 'quantize' or 'quantize_weights' in stage.options:
    return {}
  now = registry.WEIGHT_QUANTIZERS.get(before.quantize.quantize_weights)()
  bits = stage.options.get('quantize_weight_bits', before.quantize.quantize_weight_bits)
  if not now.whole and bits <= now.most and now.bits in (None, bits):
    return {}
  return dict(quantize_weights=given.get('quantize_weights', 'max'))
