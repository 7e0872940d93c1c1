"""What a run is: all its options together, their names, their JSON and their checks."""

import dataclasses
import hashlib
import json
import types
import typing

from lepton_jax import registry
from lepton_jax.errors import UserError
from lepton_jax.options import (
  Architecture,
  Augment,
  Data,
  Distill,
  Factorize,
  Optimization,
  Prune,
  Quantize,
  Regularize,
  Run,
  SoftSharing,
  Training,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Everything that makes a run."""
  architecture: Architecture = Architecture()
  data: Data = Data()
  augment: Augment = Augment()
  optimization: Optimization = Optimization()
  regularize: Regularize = Regularize()
  distill: Distill = Distill()
  factorize: Factorize = Factorize()
  soft_sharing: SoftSharing = SoftSharing()
  prune: Prune = Prune()
  quantize: Quantize = Quantize()
  training: Training = Training()
  run: Run = Run()

  def replace(self, **values):
    """A copy with fields replaced by name, whichever concern they belong to; raises on an unknown
    name.
    """
    groups = {}
    for name, value in values.items():
      if name not in FIELDS:
        raise UserError(registry.unknown('option', name, tuple(FIELDS)))
      groups.setdefault(FIELDS[name][0], {})[name] = value
    return dataclasses.replace(self,
                               **{g: dataclasses.replace(getattr(self, g), **v)
                                  for g, v in groups.items()})

  def flat(self):
    """{field name: value} over all concerns."""
    return {name: getattr(getattr(self, group), name) for name, (group, _) in FIELDS.items()}

  def changed(self):
    """{name: value} of the result-changing fields that differ from their defaults.

    A slash at the end of a folder counts for nothing.
    """
    plain = lambda name, value: value.rstrip('/') if name in ORIGINS else value
    return {name: plain(name, value) for name, value in self.flat().items()
            if FIELDS[name][1].metadata['identity'] and value != FIELDS[name][1].default}

  def to_keep(self):
    """What a run folder keeps: without what holds for one start alone, --rerun and the processes.

    A later command that reads it keeps the run, and waits for nobody.
    """
    first = Run()
    names = ('rerun', 'processes', 'process_index', 'coordinator', 'profile')
    return self.replace(**{name: getattr(first, name) for name in names})

  def as_start(self):
    """The same without what a run does once, for one that starts from its weights.

    Zeros and widths stay by starting from them; rounding stays on.
    """
    first = Config()
    return self.replace(**{name: getattr(getattr(first, group), name)
                           for name, (group, _) in FIELDS.items() if is_done_once(name)})

  def to_json(self):
    """The text of config.json."""
    return json.dumps(dataclasses.asdict(self), indent=2) + '\n'

  @classmethod
  def from_json(cls, text, source='config'):
    """The configuration in the text of a config.json; raises UserError naming `source` on anything
    unknown.
    """
    try:
      groups = json.loads(text)
      values = {name: value for group in groups.values() for name, value in group.items()}
    except (ValueError, AttributeError) as error:
      raise UserError(f'{source} is not the JSON of a configuration: {error}') from None
    try:
      return cls().replace(**{name: coerce(name, value) for name, value in values.items()}).check()
    except UserError as error:
      raise UserError(f'{source}: {error}') from None

  def identity(self):
    """Ten hex digits that agree exactly when every result-changing field agrees, but for one pair
    in a million millions.

    What has its default counts for nothing, so an option that is added later leaves the names of
    earlier runs as they are. A default that changes has to be another value of its option.
    """
    return hashlib.sha256(json.dumps(self.changed(), sort_keys=True).encode()).hexdigest()[:10]

  def program(self):
    """A hashable value, equal for runs that can share compiled programs: strengths count as on or
    off, the seed not at all.
    """
    on = lambda name, value: bool(value) if FIELDS[name][1].metadata[
        'traced'] and value is not None else value
    return tuple((n, on(n, v)) for n, v in self.flat().items() if FIELDS[n][1].metadata['identity']
                 and n != 'seed')

  def name(self):
    """The run folder's name, for people and machines: 'lenet5-mnist5k-3f9a2c61d0'."""
    kind, _, path = self.data.dataset.partition(':')
    dataset = ((path.rstrip('/').rpartition('/')[2].partition('.')[0] or kind) if path
               else kind.replace('/', '_'))
    return f'{self.architecture.model}-{dataset}-{self.identity()}'

  def check(self):
    """Returns self; raises UserError that names the flag, what was given and what is allowed."""
    for name, value in self.flat().items():
      check_value(name, value)
    if self.prune.prune_begin > self.prune.prune_end:
      raise UserError(
          f'--prune_begin={self.prune.prune_begin} is after --prune_end={self.prune.prune_end}')
    if self.data.folds == 1 or (self.data.fold is not None and self.data.fold >= self.data.folds):
      raise UserError(
          f'--folds={self.data.folds} --fold={self.data.fold}: folds is 0 or at least 2, and fold '
          f'is below it')
    if self.quantize.quantize_weight_bits == 1 and self.quantize.quantize_weights != 'binary':
      raise UserError('--quantize_weight_bits=1: allowed are 0 (off) and 2 to 16; 1 with '
                      '--quantize_weights=binary')
    for name in ('quantize_activation_bits', 'quantize_gate_bits'):
      if getattr(self.quantize, name) == 1:
        raise UserError(f'--{name}=1: allowed are 0 (off) and 2 to 16')
    return self


FIELDS = {field.name: (group.name, field) for group in dataclasses.fields(Config)
          for field in dataclasses.fields(group.type)}


ORIGINS = ('init_from', 'teacher', 'prune_ticket')  # that are folders of other runs


def is_done_once(name):
  """Whether an option says what a run does to its weights, and not what they are from then on."""
  if FIELDS[name][0] in ('soft_sharing', 'prune', 'factorize', 'distill', 'training'):
    return name not in ('seed', 'select', 'freeze')
  return name in AFTERWARDS


# Of rounding what is done with the weights of another run, which are rounded from then on.
AFTERWARDS = ('quantize_after', 'quantize_equalize', 'quantize_rounding', 'quantize_rounding_steps')


def differing(configs):
  """Names of the result-changing fields that differ between configurations, in the order of their
  declaration.
  """
  flats = [config.flat() for config in configs]
  return [name for name, (_, field) in FIELDS.items() if field.metadata['identity']
          and len({flat[name] for flat in flats}) > 1]


def value_type(name):
  """(type, optional?) of a field: `float | None` gives (float, True)."""
  annotation = FIELDS[name][1].type
  if isinstance(annotation, types.UnionType):
    return next(t for t in typing.get_args(annotation) if t is not type(None)), True
  return annotation, False


def read_value(name, word, where):
  """The value of an option that a word stands for; raises UserError, which begins with `where`."""
  kind, _ = value_type(name)
  try:
    return {'true': True, 'false': False}[word] if kind is bool else kind(word)
  except (ValueError, KeyError):
    raise UserError(f'{where}: {word!r} is not of type {kind.__name__}') from None


def coerce(name, value):
  """A JSON value as the field's type (1 is a fine float); raises UserError for any other type."""
  if name not in FIELDS:
    raise UserError(registry.unknown('option', name, tuple(FIELDS)))
  kind, optional = value_type(name)
  if value is None and optional:
    return None
  if kind is float and type(value) is int:
    return float(value)
  if type(value) is not kind:
    raise UserError(f'{name} is {value!r}; it must be of type {kind.__name__}')
  return value


def choices(name):
  """The names that a field may take; None where it takes anything of its type."""
  found = FIELDS[name][1].metadata['choices']
  return found if found is None or isinstance(found, tuple) else found.names()


def check_value(name, value):
  """Raises UserError unless `value` is among the field's choices and within its bounds."""
  meta = FIELDS[name][1].metadata
  if value is None:
    return
  allowed = choices(name)
  if allowed is not None and value not in allowed:
    raise UserError(registry.unknown(name.replace('_', ' '), value, allowed))
  for bound, wrong in (('low', lambda b: not value >= b), ('high', lambda b: not value <= b)):
    if meta[bound] is not None and wrong(meta[bound]):
      high = '' if meta['high'] is None else f' and at most {meta["high"]}'
      raise UserError(f'--{name}={value}: must be at least {meta["low"]}{high}')
