"""What the benchmark measures of one network: a row against its peers, scaling, many trials in one program."""

import datetime
import os

from experiments.peers import race

TRIALS = 64


def label(devices, calls):
  """How a choice is called in tables."""
  return f'{devices} device{"s" if devices > 1 else ""}' + (f', {calls} steps a call' if calls > 1 else '')


def rivals(name, batch, dtype, gpu):
  """PyTorch's contestants: both layouts of images, and compiled where that is what its users do."""
  layouts = ('nchw', 'channels_last') if len(race.SHAPES[name]) == 3 else ('nchw',)
  choices = [(layout, False) for layout in layouts] + ([(layouts[-1], True)] if gpu else [])
  return [race.Racer(f'{layout}, compiled' if compiled else layout, 'pytorch', name, batch, layout=layout, compiled=compiled, dtype=dtype)
          for layout, compiled in choices]


def row(name, batch, dtype, gpu, rounds, seconds):
  """One row: medians, ratios with their intervals, and what each contestant took besides."""
  enter = lambda devices, calls: race.Racer(label(devices, calls), 'lepton', name, batch, devices=devices, calls=calls, dtype=dtype)
  first = enter(1, 1)
  chosen = tuple(first.facts['auto'])
  others = {chosen} | ({(2, 1)} if first.facts['devices'] > 1 else set())  # what auto takes, and could have taken
  ours = [first, *(enter(*choice) for choice in sorted(others - {(1, 1)}))]
  torch, plain = rivals(name, batch, dtype, gpu), race.Racer('flax', 'plain_flax', name, batch, dtype=dtype)
  racers = [*ours, *torch, plain]
  try:
    race.race(racers, rounds, seconds)
    auto = next(r for r in ours if r.label == label(*chosen))
    best_ours, best_torch = race.best(ours), race.best(torch)
    found = dict(network=name, dtype=dtype, batch=batch, auto=auto.label, device=auto.facts['device'], cores=os.cpu_count(), date=str(datetime.date.today()),
               parameters=auto.facts['parameters'], torch_choice=best_torch.label, torch_threads=best_torch.facts['threads'],
               jax=auto.facts['version'], torch=best_torch.facts['version'],
               ours_ms=auto.median(), torch_ms=best_torch.median(), flax_ms=plain.median(), best_choice=best_ours.label)
    for ratio, slow in (('ratio_vs_torch', best_torch), ('ratio_vs_flax', plain), ('auto_vs_best', best_ours), ('ratio_vs_one_by_one', first)):
      found.update(zip((ratio, f'{ratio}_low', f'{ratio}_high'), race.ratio(slow, auto)))
    peak_flops, peak_bytes = auto.ask('peaks')[1]
    found.update(gflops=plain.facts['flops'] / auto.median() / 1e6, peak_gflops=peak_flops / 1e9,
                 gbytes=auto.facts['bytes'] and auto.facts['bytes'] / auto.median() / 1e6, peak_gbytes=peak_bytes / 1e9)
    for who, racer in (('ours', auto), ('torch', best_torch), ('flax', plain)):
      found.update({f'{who}_compile_s': racer.facts['compile_seconds'], f'{who}_memory_mib': racer.peak_memory()})
    for size in ('one', 'batch'):
      for who, group in (('ours', [auto]), ('torch', torch), ('flax', [plain])):
        found[f'{who}_predict_{size}_ms'] = min(r.predict(1 if size == 'one' else batch, seconds) for r in group)
    return found
  finally:
    for racer in racers:
      racer.close()


def scaling(name, seconds):
  """Examples a second of our step over batch sizes and devices, in turns."""
  probe = race.Racer('probe', 'lepton', name, 32)
  probe.close()
  counts = [c for c in (1, 2, 4, 8) if c <= probe.facts['devices']]
  racers = [(batch, race.Racer(label(count, 1), 'lepton', name, batch, devices=count)) for batch in (32, 128, 512) for count in counts]
  try:
    race.race([racer for _, racer in racers], 3, seconds)
    return [dict(measured=f'{name}, batch {batch}, {racer.label}', figure=1e3 * batch / racer.median(), unit='examples a second') for batch, racer in racers]
  finally:
    for _, racer in racers:
      racer.close()


def population(name, batch, rounds, seconds):
  """How many trials of one network, vmapped in one program, gain over as many one after another."""
  probe = race.Racer('one', 'lepton', name, batch)
  racers = [race.Racer('one', 'lepton', name, batch, calls=probe.facts['auto'][1]), race.Racer('all', 'lepton', name, batch, trials=TRIALS)]
  probe.close()
  try:
    race.race(racers, rounds, seconds)
    middle, low, high = (TRIALS * r for r in race.ratio(*racers))
    return dict(measured=f'{TRIALS} trials of {name} in one program against one after another', figure=middle, low=low, high=high, unit='times faster')
  finally:
    for racer in racers:
      racer.close()
