"""What a sweep of compression should show, after ShrinkBench, and whether it does.

The items follow the recommendations and the checklist of arXiv:2003.03033, in other words, as far
as trials can answer them.
"""

import itertools

from lepton_jax import config as config_lib
from lepton_jax.report import differences, markdown, settings

AMOUNTS = ('prune_sparsity', 'quantize_weight_bits', 'quantize_activation_bits',
           'quantize_gate_bits', 'factorize_rank', 'factorize_energy')
POINTS, SEEDS, PAIRS = 5, 3, 3  # the first and the last are the paper's, the second is ours
TOYS = ('digits', 'mnist', 'fashion_mnist')  # data sets that begin so are too easy to count
OWN_DATA = ('folder', 'csv', 'text', 'series')


def check(groups, compared, pairs):
  """[(item, met?, what was found)]; None: does not apply. [] where nothing is compressed.

  groups: of settings.grouped. compared: of differences.compare. pairs: {(data set, network)} of
  all trials, those of other reports included.
  """
  configs = [trials[0][0] for _, trials in groups]
  trials = [trial for _, group in groups for trial in group]
  if all(map(differences.dense, configs)):
    return []
  return [control(configs), points(groups), extreme(groups, compared), seeds(groups),
          spread(groups), size_and_work(trials), *baselines(configs), raw(trials), curve(groups),
          data(pairs), same_code(trials), environment(trials), detail(trials)]


def control(configs):
  count = sum(map(differences.dense, configs))
  return 'the network before compression is measured as well', count > 0, f'{count} dense settings'


def points(groups):
  """Sizes on each curve; a curve is of the settings that differ in AMOUNTS alone."""
  curves = {}
  for _, trials in groups:
    config = trials[0][0]
    if not differences.dense(config):
      rest = {name: value for name, value in config.changed().items()
              if name not in (*AMOUNTS, *settings.REPEATS)}
      size = settings.average('file_bytes', [result for _, result in trials])
      curves.setdefault(str(rest), []).append(size)
  counts = [levels(sizes) for sizes in curves.values()]
  few = min(counts)
  found = f'{few} to {max(counts)}' if few < max(counts) else str(few)
  return (f'each curve has {POINTS} or more sizes that differ', few >= POINTS,
          f'{found} on {len(counts)} curves')


def levels(sizes):
  """How many sizes differ by a tenth or more from the next smaller one that counts."""
  count, last = 0, 0
  for size in sorted(sizes):
    if size >= 1.1 * last:
      count, last = count + 1, size
  return count


def extreme(groups, compared):
  sign = settings.sign(groups[0][1][0][1]['measure'])
  strongest = max((one for one in compared if one and one['smaller']), default=None,
                  key=lambda one: one['smaller'])
  item = 'the range ends where quality clearly falls'
  if strongest is None:
    return item, False, 'nothing is compared with a base'
  falls = strongest['half'] is not None and -sign * strongest['mean'] > strongest['half']
  return item, falls, (f'{strongest["smaller"]:.3g} times smaller than the base, '
                       f'{"clearly" if falls else "not clearly"} worse')


def seeds(groups):
  few = min(len({config.training.seed for config, _ in trials}) for _, trials in groups)
  return f'each setting has {SEEDS} or more seeds', few >= SEEDS, f'{few} at least'


def spread(groups):
  few = min(len(trials) for _, trials in groups)
  return ('each mean stands with its standard deviation', few > 1,
          'intervals are 95 %, by Student\'s t' if few > 1 else 'some settings have one trial')


def size_and_work(trials):
  lacking = sum('nonzero_macs' not in result for _, result in trials)
  return ('both size and theoretical work are given: bytes and multiply-accumulates', not lacking,
          f'{lacking} trials lack the latter' if lacking else 'of every trial')


def baselines(configs):
  """Random and magnitude pruning, beside every other score with the same shares of layers."""
  pruned = [config.prune for config in configs if config.prune.prune_sparsity]
  scores = sorted({prune.prune_score for prune in pruned})
  found = ', '.join(scores) or 'nothing is pruned'
  known = {(prune.prune_score, prune.prune_allocation, prune.prune_structure) for prune in pruned}
  others = {(allocation, structure) for score, allocation, structure in known
            if score not in ('random', 'magnitude')}
  alike = all((score, *rest) in known
              for score, rest in itertools.product(('random', 'magnitude'), others))
  if not pruned:
    met = [None] * 4
  else:
    met = ['random' in scores, 'magnitude' in scores, alike if others else None, bool(others)]
  return [('random pruning is a baseline', met[0], found),
          ('magnitude pruning is a baseline', met[1], found),
          ('both baselines have the allocation and structure of each other score', met[2],
           found if others else 'no other score'),
          ('other published scores are compared', met[3], found)]


def raw(trials):
  return ('raw numbers are there, of each trial and not only changes', True,
          f'{len(trials)} rows in trials.csv')


def curve(groups):
  sizes = [settings.average('file_bytes', [result for _, result in trials]) for _, trials in groups]
  varies = levels(sizes) > 1
  return ('the trade-off of quality and size is drawn', varies,
          'size.png, size.pdf, report.html' if varies else 'all files are of about one size')


def data(pairs):
  counted = sorted(pair for pair in pairs
                   if not pair[0].startswith(TOYS) and pair[0].split(':')[0] not in OWN_DATA)
  named = ', '.join(f'{network} on {name}' for name, network in sorted(pairs))
  return (f'{PAIRS} or more pairs of a standard data set and a network, no toys',
          len(counted) >= PAIRS, f'{len(counted)} count of: {named}')


def same_code(trials):
  known = {(str(result.get('git_revision')), str(result.get('versions')), result.get('device'),
            result.get('processor')) for _, result in trials}
  clean = not any(revision.endswith('-dirty') or revision == 'None' for revision, *_ in known)
  found = ', '.join(sorted({revision for revision, *_ in known}))
  return ('all trials ran the same committed code and libraries on the same hardware',
          len(known) == 1 and clean, f'{len(known)} combinations; revision {found}')


def environment(trials):
  lacking = sum('versions' not in result or 'device' not in result for _, result in trials)
  first = trials[0][1]
  versions = ', '.join(f'{name} {number}' for name, number in first.get('versions', {}).items())
  return ('libraries and hardware are named', not lacking,
          f'{first.get("processor") or first.get("device", "unknown")}; {versions or "unknown"}')


def detail(trials):
  options = len(config_lib.FIELDS)
  return ('every option of every trial is recorded', True,
          f'{options} options in each config.json, the commands in report.html')


def table(items):
  """The items as a Markdown table; '' where there are none."""
  if not items:
    return ''
  said = {True: 'met', False: 'not met', None: 'does not apply'}
  met = sum(one is True for _, one, _ in items)
  body = [(item, said[one], found) for item, one, found in items]
  return (f'## Checklist of ShrinkBench (arXiv:2003.03033)\n\n{met} of '
          f'{sum(one is not None for _, one, _ in items)} items are met. No program can tell '
          f'whether claims stay within what was tried.\n\n'
          f'{markdown.table(("item", "here", "found"), body)}')
