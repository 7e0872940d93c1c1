"""Each setting against a base setting: differences of equal seeds, with intervals."""

import math
import statistics

from lepton_jax import config as config_lib
from lepton_jax.report import markdown, settings

# A run in which all of these are off is dense; the rest of their concerns then says nothing.
SWITCHES = ('prune_sparsity', 'prune_layers', 'prune_ticket', 'factorize_rank', 'factorize_energy',
            'quantize_weight_bits', 'quantize_activation_bits', 'quantize_gate_bits',
            'quantize_layers')
CONCERNS = ('prune', 'quantize', 'factorize')
MOST_SEEDS = 1000


def dense(config):
  """Whether a run compresses nothing."""
  return not any(config.flat()[name] for name in SWITCHES)


def base_of(place, configs):
  """The place of the setting that the one at `place` is compared with, of a configuration each.

  It is the dense one that agrees with it in most other options; where nothing is dense, or all is,
  the first setting.
  """
  plain = [i for i, config in enumerate(configs) if dense(config)]
  if len(plain) in (0, len(configs)):
    return 0
  if place in plain:
    return plain[0]
  own = configs[place].flat()

  def agreement(number):
    other = configs[number].flat()
    return sum(other[name] == own[name] for name, (concern, _) in config_lib.FIELDS.items()
               if concern not in CONCERNS)

  return max(plain, key=agreement)


def compare(groups, name):
  """For each of `settings.grouped` a dictionary, None for a base itself, of one measurement.

  base: place of the base setting. seeds: how many trials both have. mean: of the differences of
  those. half: half of its 95 % interval by Student's t, None for one seed. smaller, less_work: how
  many times fewer bytes of the file and multiply-accumulates it has, None if unknown. note: what to
  beware of.
  """
  configs = [group[0][0] for _, group in groups]
  found = []
  for place, (_, group) in enumerate(groups):
    base = base_of(place, configs)
    own, other = ({settings.repeat(config): result for config, result in trials}
                  for trials in (group, groups[base][1]))
    pairs = [own[key][name] - other[key][name] for key in own
             if key in other and name in own[key] and name in other[key]]
    found.append(None if place == base or not pairs else dict(
        base=base, **of_pairs(pairs), smaller=times('file_bytes', own, other),
        less_work=times('nonzero_macs', own, other)))
  return found


def of_pairs(pairs):
  """{seeds, mean, half, note} of differences of equal seeds."""
  mean = statistics.mean(pairs)
  if len(pairs) == 1:
    return dict(seeds=1, mean=mean, half=None, note='one seed: no interval')
  half = settings.interval(pairs)
  note = ''
  if half >= abs(mean) > 0:
    enough = seeds_to_tell(mean, statistics.stdev(pairs))
    count = f'about {enough} would do' if enough else f'more than {MOST_SEEDS:,} would be needed'
    note = f'too few seeds to tell: {count}'
  elif mean == 0:
    note = 'the mean difference is 0'
  return dict(seeds=len(pairs), mean=mean, half=half, note=note)


def seeds_to_tell(mean, deviation):
  """The fewest seeds whose 95 % interval around `mean` lacks 0 at this standard deviation.

  None if that takes more than MOST_SEEDS. The observed mean and deviation are uncertain themselves.
  """
  from scipy import stats
  for count in range(2, MOST_SEEDS + 1):
    if float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count) < abs(mean):
      return count
  return None


def times(name, own, other):
  """How many times less of something a setting has on average; None if it is not known."""
  own, other = ([result.get(name) for result in group.values()] for group in (own, other))
  if None in own + other or not sum(own):
    return None
  return statistics.mean(other) / statistics.mean(own)


def cells(rows, compared, name):
  """(header, rows of texts) of a comparison; the base has a column where there are several."""
  percent, bases = name.endswith('accuracy'), bases_of(compared)
  factor, form = (100, '{:.2f}') if percent else (1, '{:.4g}')
  ratio = lambda value: '' if value is None else f'{value:.3g}'
  body = []
  for row, one in zip(rows, compared):
    if one is None:
      continue
    sign = '+' if one['mean'] > 0 else ''
    half = '' if one['half'] is None else f' ± {form.format(factor * one["half"])}'
    body.append((settings.name_of(row),
                 *([settings.name_of(rows[one['base']])] if len(bases) > 1 else []),
                 f'{sign}{form.format(factor * one["mean"])}{half}', str(one['seeds']),
                 ratio(one['smaller']), ratio(one['less_work']), one['note']))
  unit = ', points of %' if percent else ''
  return ('setting', *(['against'] if len(bases) > 1 else []), f'{name.replace("_", " ")}{unit}',
          'seeds', 'times smaller', 'times less work', 'note'), body


def bases_of(compared):
  """The places of the settings that others are compared with."""
  return sorted({one['base'] for one in compared if one})


def table(rows, compared, name):
  """The comparison as a Markdown table, with what it means below; '' where nothing is compared."""
  if not any(compared):
    return ''
  bases = bases_of(compared)
  base = f' from {settings.name_of(rows[bases[0]])}' if len(bases) == 1 else ''
  return (f'{markdown.table(*cells(rows, compared, name))}\n\nDifferences{base} of equal seeds, '
          f"their mean and its 95 % interval by Student's t, without a correction for looking at "
          f'many settings. Times smaller are of the packed file. Times less work are of '
          f'multiply-accumulates whose weight is not zero: a theoretical speed-up, not a measured '
          f'one.')
