"""README tables of the studies that sweep, from their CSV files."""

import collections
import statistics

from lepton_jax.report import markdown


def compression_table(lines):
  """The compression study: a row a network and sparsity, a column a bit width.

  A cell has test accuracy and kilobytes of the packed file.
  """
  def cell(line):
    return f'{percent(line, "test_accuracy")}, {float(line["file_bytes"]) / 1000:.1f} kB'
  of = {(line['model'], float(line['prune_sparsity']), int(line['quantize_weight_bits'])): line
        for line in lines}
  bits = sorted({b for _, _, b in of if b})
  body, said = [], []
  for model in dict.fromkeys(line['model'] for line in lines):
    first = next(line for line in lines if line['model'] == model)
    said.append(f'{model}: {first["trials"]} trials, {first["programs"]} programs{took(first)}')
    body.append((model, '0 %', cell(of[model, 0.0, 0]), *[''] * len(bits)))
    sparsities = sorted({s for m, s, b in of if m == model and b})
    body += [(model, f'{100 * s:.0f} %', '', *(cell(of[model, s, b]) for b in bits))
             for s in sparsities]
  header = ('network', 'sparsity', 'float32', *(f'{b} bits' for b in bits))
  return (f'{markdown.table(header, body)}\n\nTest accuracy in %, mean ± standard deviation over '
          f'{lines[0]["seeds"]} seeds, and the packed file. {"; ".join(said)}.')


def compression_tables(lines):
  """The tables of compressed networks: a row a setting, with its change from dense by seed."""
  from lepton_jax.report import settings
  of, body, last = collections.defaultdict(dict), [], None
  trained_on = collections.defaultdict(dict)
  for line in lines:
    of[line['table'], line['setting']][line['seed']] = line
    trained_on[line['processor']][line['table'].replace('_', ' ')] = None
  for (name, setting), seeds in of.items():
    text = next(iter(seeds.values()))['measure'] == 'loss'
    test = lambda line, text=text: float(line['test']) * (1 if text else 100)
    dense = of.get((name, 'dense'), {})
    change = [test(line) - test(dense[seed]) for seed, line in seeds.items() if seed in dense]
    digits = 4 if text else 2
    against = f'{statistics.mean(change):+.{digits}f}' if change and setting != 'dense' else ''
    if against and len(change) > 1:
      against += f' ± {settings.interval(change):.{digits}f}'
    seconds = statistics.median(float(line['train_seconds']) for line in seeds.values())
    body.append((name.replace('_', ' ') if name != last else '', setting,
                 markdown.spread([test(line) for line in seeds.values()], f'{{:.{digits}f}}'),
                 against, str(len(seeds)), f'{seconds:.0f}'))
    last = name
  header = ('table', 'setting', 'test: %, of text nats', 'change from dense, 95 % interval',
            'seeds', 'seconds')
  where = '; '.join(f'{", ".join(names)}: {processor}' for processor, names in trained_on.items())
  return (f'{markdown.table(header, body)}\n\nMean ± standard deviation; changes are differences '
          f'of equal seeds. Seconds are of runs with others beside them. {where}.')


def paper_table(lines):
  """A paper's study: a row a setting, over seeds, beside what the paper has there."""
  groups = collections.defaultdict(list)
  for line in lines:
    groups[line['study'], line['curve'], line['at']].append(line)
  published = any(line['published'] for line in lines)
  sparse = any(fewer_macs(line) > 1 for line in lines)
  body, last = [], None
  for (name, curve, at), own in groups.items():
    row = [name if name != last else '', curve, at,
           markdown.spread([100 * float(line['test']) for line in own]), str(len(own))]
    speed_up = f'{statistics.mean(map(fewer_macs, own)):.1f}'
    body.append(row + [speed_up] * sparse + [own[0]['published']] * published)
    last = name
  header = ('network', 'setting', lines[0]['across'], 'test, %', 'seeds',
            *['theoretical speed-up'] * sparse, *['the paper'] * published)
  processors = ', '.join(dict.fromkeys(line['processor'] for line in lines))
  return f'{markdown.table(header, body)}\n\nMean ± standard deviation. Made on {processors}.'


def fewer_macs(line):
  """All multiply-accumulates over those with a weight that is not zero."""
  return float(line['macs']) / float(line['nonzero_macs'])


def ticket_table(lines):
  """Lottery tickets: a row a share of weights, over seeds, by the weights they start from."""
  groups, kinds = collections.defaultdict(list), list(dict.fromkeys(l['kind'] for l in lines))
  for line in lines:
    groups[line['round'], line['kind']].append(line)
  body = []
  for number in sorted({int(line['round']) for line in lines}):
    found = [groups[str(number), kind] for kind in kinds]
    remaining = 100 * statistics.mean(float(line['remaining']) for line in found[0])
    body.append((f'{remaining:.1f} %', *(markdown.spread(
        [100 * float(line['test_accuracy']) for line in own]) for own in found)))
  return (f'{markdown.table(("weights that remain", *kinds), body)}\n\nTest accuracy in %, mean ± '
          f'standard deviation. Made on {lines[0]["processor"]}.')


def stages_table(lines):
  """Stages of compression: a row a stage, over seeds, beside what the paper has there."""
  groups, body = collections.defaultdict(list), []
  for line in lines:
    groups[line['network'], line['stage']].append(line)
  for (network, stage), own in groups.items():
    size = statistics.mean(float(line['file_bytes']) for line in own)
    errors = [100 - 100 * float(line['test_accuracy']) for line in own]
    body.append((network, stage, f'{size:,.0f}', f'{float(own[0]["dense_bytes"]) / size:.1f}',
                 markdown.spread(errors), str(len(own)), own[0]['published']))
  header = ('network', 'stage', 'bytes of the file', 'times smaller', 'test error, %', 'seeds',
            'the paper')
  return (f'{markdown.table(header, body)}\n\nMean ± standard deviation. Made on '
          f'{lines[0]["processor"]}.')


def forgetting_table(lines):
  """What pruned networks forget: a row a sparsity."""
  body = [(f'{100 * float(line["sparsity"]):.0f} %', f'{line["test"]} ± {line["deviation"]}',
           line['pies'], line['dense_on_pies'], line['dense_elsewhere'],
           line['changed_classes'].replace(' ', ', ') or 'none',
           f'{line["worst_class_change"]} (class {line["worst_class"]})')
          for line in lines]
  header = ('sparsity', 'test, %', 'PIEs', 'dense networks on them, %', 'on the others, %',
            'classes that changed unlike the rest', 'worst change, points')
  return (f'{markdown.table(header, body)}\n\n{lines[0]["networks"]} networks a row. PIEs: '
          'examples on which the most frequent answer is not that of the dense networks. Made on '
          f'{lines[0]["processor"]}.')


def smallest_table(lines):
  """The smallest files: a row a network, over seeds."""
  body = []
  for name in dict.fromkeys(line['row'] for line in lines):
    own = [line for line in lines if line['row'] == name]
    of = lambda column, own=own: [float(line[column]) for line in own]
    others = ', '.join(f'{coder} {statistics.mean(of(f"{coder}_bytes")):,.0f}'
                       for coder in ('xz', 'zstd', 'npz') if own[0][f'{coder}_bytes'])
    times = statistics.mean(of('dense_bytes')) / statistics.mean(of('file_bytes'))
    tests = [' '.join(markdown.measured(of(column), own[0]['measure']))
             for column in ('dense_test', 'test')]
    body.append((name, *tests,
                 f'{statistics.mean(of("file_bytes")):,.0f} ({min(of("file_bytes")):,.0f} to '
                 f'{max(of("file_bytes")):,.0f})', f'{times:.0f}', others, str(len(own)),
                 recipe_of(own)))
  header = ('network', 'dense', 'packed', 'bytes of the file', 'times smaller',
            'its levels by others', 'seeds', 'recipe')
  return (f'{markdown.table(header, body)}\n\nMeasured on the test part, mean ± standard '
          f'deviation over seeds; mean bytes (range) of whole files. Flags and times are in the '
          f'CSV; made on {lines[0]["processor"]}.')


def recipe_of(lines):
  """The recipes that seeds kept; those of other data by name where it is the network's first."""
  kept = list(dict.fromkeys(line['kept'] for line in lines))
  same = ' on ' in lines[0]['row'] and all(lines[0]['recipe'].startswith(one) for one in kept)
  return 'the same' if same else ' or '.join(f'`{one}`' for one in kept)


def runtimes_table(lines):
  """Exported networks in ONNX Runtime: a row a file, over seeds, beside the dense one."""
  groups = collections.defaultdict(list)
  for line in lines:
    groups[line['row'], line['file'].partition('.')[0]].append(line)
  body = []
  for (name, file), own in groups.items():
    dense = groups[name, 'dense']
    against = lambda column, own=own, dense=dense: [
        (float(line[column]), float(other[column])) for line, other in zip(own, dense)]
    row = [name, file, f'{statistics.mean(float(line["bytes"]) for line in own):,.0f}',
           f'{statistics.mean(b / a for a, b in against("bytes")):.2f}',
           f'{statistics.median(float(line["ms_1"]) for line in own):.3g}',
           faster(own, 1), faster(own, 64),
           markdown.spread([100 * float(line['test_accuracy']) for line in own]),
           f'{100 * statistics.mean(a - b for a, b in against("test_accuracy")):+.2f}',
           str(len(own))]
    if file == 'dense':  # all is relative to it
      row = [cell if place in (0, 1, 2, 4, 7, 9) else '' for place, cell in enumerate(row)]
    body.append(row)
  header = ('network', 'file', 'bytes', 'times smaller', 'ms of one example', 'times faster, 1',
            'times faster, 64', 'test, %', 'change', 'seeds')
  return (f'{markdown.table(header, body)}\n\nONNX Runtime with one thread on '
          f'{lines[0]["processor"]}; files took turns. Times faster are of batches of 1 and 64: '
          f'the median over seeds, and the widest of their 95 % intervals.')


def faster(lines, batch):
  """How many times faster than the first file, the median over seeds and all their intervals."""
  of = lambda column: [float(line[f'{column}_{batch}']) for line in lines]
  return f'{statistics.median(of("ratio")):.2f} ({min(of("low")):.2f} to {max(of("high")):.2f})'


def regularization_table(lines):
  """The regularisation study: a row a method, best on test first."""
  body = [(line['method'].replace('_', ' '), line['strength'], line['tried'],
           percent(line, 'validation_accuracy'), percent(line, 'test_accuracy'),
           f'{100 * float(line["gain"]):+.2f} ± {100 * float(line["gain_ci95"]):.2f}')
          for line in lines]
  header = ('regulariser', 'strength', 'tried', 'validation, %', 'test, %',
            'gain over none, 95 % interval')
  first = lines[0]
  return (f'{markdown.table(header, body)}\n\nMean ± standard deviation over {first["seeds"]} '
          f'seeds that took no part in the choice; gains are differences of equal seeds. '
          f'{first["images"]} images, {first["epochs"]} epochs, learning rate '
          f'{first["learning_rate"]}{took(first)}. Under `none` the learning rates that were '
          'tried.')


def step_table(lines):
  """Steps of compressed networks beside the dense one's, and updates of masks."""
  body = []
  for line in lines:
    update = line['update_ms'] and (f'{float(line["update_ms"]):.0f} '
                                    f'({100 * float(line["update_share"]):.0f} %)')
    body.append((line['network'], line['setting'], f'{float(line["ms"]):.2f}',
                 f'{float(line["ratio"]):.2f} ({float(line["low"]):.2f} to '
                 f'{float(line["high"]):.2f})', update))
  header = ('network', 'setting', 'ms a step', 'times a dense step', 'ms an update of masks')
  first = lines[0]
  return (f'{markdown.table(header, body)}\n\nMedian (quartiles) of {first["rounds"]} rounds in '
          f'turns, batch {first["batch"]}; an update of masks is the mean of those of a run of '
          f'{first["run"]} steps, in brackets their share of it. {first["cores"]} cores, '
          f'{first["processor"]}.')


def sweep_cost_table(lines):
  """What sweeps cost: seconds of each way to do some work, and their ratio to its first way."""
  rounds = collections.defaultdict(dict)
  for line in lines:
    rounds[line['work'], line['how']][line['round']] = float(line['seconds'])
  first = {}
  for work, how in rounds:
    first.setdefault(work, how)
  body = []
  for (work, how), times in rounds.items():
    ratios = [seconds / rounds[work, first[work]][number] for number, seconds in times.items()]
    seconds = times.values()
    body.append((work, how,
                 f'{statistics.median(seconds):.0f} ({min(seconds):.0f} to {max(seconds):.0f})',
                 f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'))
  header = ('trials', 'how', 'seconds', 'times one sweep')
  return (f'{markdown.table(header, body)}\n\nMedian (range) of {len(times)} rounds on '
          f'{lines[0]["cores"]} cores.')


def communication_table(lines):
  """What devices send each other in a step: a row a network.

  A cell has one number where all numbers of devices have the same, else one for each of them.
  """
  counts = list(dict.fromkeys(line['devices'] for line in lines))

  def cell(own, name):
    numbers = [f'{int(line[name]):,}' for line in own]
    return ' / '.join(numbers if len(set(numbers)) > 1 else numbers[:1])
  columns = dict(parameter_bytes='parameters', all_reduces='all-reduces', gradient_bytes='gradient',
                 summed_bytes='other sums', other_bytes='gathered')
  body = []
  for model in dict.fromkeys(line['model'] for line in lines):
    own = [line for line in lines if line['model'] == model]
    body.append((model, *(cell(own, name) for name in columns)))
  each = int(lines[0]['examples']) // int(lines[0]['devices'])
  return (f'{markdown.table(("network", *columns.values()), body)}\n\nBytes on each device in a '
          f'step in float32, and the number of all-reduces that hold the sums; {each} examples on '
          f'each of {" / ".join(counts)} devices, one number where all have the same. jax '
          f'{lines[0]["jax"]}.')


def tpu_table(lines):
  """The train step of each model as TPU's compiler makes it."""
  columns = dict(chips='chips', gigaflops='GFLOP a chip', state_megabytes='state, MB',
                 scratch_megabytes='scratch, MB', all_reduces='all-reduces',
                 other_exchanges='other exchanges', compile_seconds='compiled in, s')
  body = [(line['model'], *(line[name] for name in columns)) for line in lines]
  return (f'{markdown.table(("network", *columns.values()), body)}\n\nTrain steps of 8 examples a '
          f'chip on a slice {lines[0]["topology"]}, compiled by libtpu, not run. jax '
          f'{lines[0]["jax"]}.')


def percent(line, name):
  """A mean and its deviation over seeds: '99.31 ± 0.02'."""
  spread_ = line[f'{name}_sd']
  return f'{100 * float(line[name]):.2f}' + (f' ± {100 * float(spread_):.2f}' if spread_ else '')


def took(line):
  """', 12.3 minutes on 2 cores' where a study was timed as a whole."""
  return f', {line["minutes"]} minutes on {line["cores"]} cores' if line['minutes'] else ''
