"""What the benchmark measures: a network against its peers, scaling, many trials in one program."""

import contextlib
import datetime
import importlib.metadata

from experiments.peers import race
from lepton_jax import machine

TRIALS = 64


def label(devices, calls):
  """How a choice is called in tables."""
  said = f'{devices} device{"s" if devices > 1 else ""}'
  return f'{said}, {calls} steps a call' if calls > 1 else said


def rivals(name, batch, dtype, gpu):
  """PyTorch's contestants: both layouts of images, and compiled where that is what its users do."""
  layouts = ('nchw', 'channels_last') if len(race.SHAPES[name]) == 3 else ('nchw',)
  choices = [(layout, False) for layout in layouts] + ([(layouts[-1], True)] if gpu else [])
  return [race.Racer(f'{layout}, compiled' if compiled else layout, 'pytorch', name, batch,
                     layout=layout, compiled=compiled, dtype=dtype)
          for layout, compiled in choices]


def row(name, batch, dtype, gpu, rounds, seconds):
  """One row: medians, ratios with their intervals, and what each contestant took besides."""
  with contextlib.ExitStack() as stack:
    enter = lambda racer: stack.enter_context(contextlib.closing(racer))

    def ours_on(choice):
      return enter(race.Racer(label(*choice), 'lepton', name, batch, devices=choice[0],
                              calls=choice[1], dtype=dtype))
    first = ours_on((1, 1))
    chosen = tuple(first.facts['auto'])
    # What auto takes and could have taken.
    choices = {(d, c) for d in (1, first.facts['devices']) for c in (1, chosen[1])} | {chosen}
    ours = [first, *map(ours_on, sorted(choices - {(1, 1)}))]
    torch = [enter(r) for r in rivals(name, batch, dtype, gpu)]
    plain = enter(race.Racer('flax', 'plain_flax', name, batch, dtype=dtype))
    race.race([*ours, *torch, plain], rounds, seconds)
    auto, best_torch = next(r for r in ours if r.label == label(*chosen)), race.best(torch)
    fixed = race.best([r for r in ours if r is not auto] or [auto])
    found = dict(network=name, dtype=dtype, batch=batch, auto=auto.label,
                 parameters=auto.facts['parameters'], torch_choice=best_torch.label,
                 ours_ms=auto.median(), torch_ms=best_torch.median(), flax_ms=plain.median(),
                 fixed_choice=fixed.label, fixed_ms=fixed.median(), one_by_one_ms=first.median())
    for ratio, slow in (('ratio_vs_torch', best_torch), ('ratio_vs_flax', plain),
                        ('auto_vs_best', fixed), ('ratio_vs_one_by_one', first)):
      found.update(zip((ratio, f'{ratio}_low', f'{ratio}_high'), race.ratio(slow, auto)))
    for who, racer in (('ours', auto), ('torch', best_torch), ('flax', plain)):
      found.update({f'{who}_compile_s': racer.facts['compile_seconds'],
                    f'{who}_memory_mib': racer.peak_memory()})
    for size, count in (('one', 1), ('batch', batch)):
      for who, group in (('ours', [auto]), ('torch', torch), ('flax', [plain])):
        found[f'{who}_predict_{size}_ms'] = min(r.predict(count, seconds) for r in group)
    # These come last, because they take memory.
    traffic, (peak_flops, peak_bytes) = auto.ask('traffic')[1], auto.ask('peaks')[1]
    found.update(gflops=plain.facts['flops'] / auto.median() / 1e6, peak_gflops=peak_flops / 1e9,
                 gbytes=traffic and traffic / auto.median() / 1e6, peak_gbytes=peak_bytes / 1e9)
    torches = {f'torch {r.label}': r.median() for r in torch}
    return found | dict(torch_ms_each='; '.join(f'{n} {ms:.2f}' for n, ms in torches.items()),
                        device=auto.facts['device'], machine=machine.processor(),
                        cores=machine.cores(), jax=auto.facts['version'],
                        flax=importlib.metadata.version('flax'), torch=best_torch.facts['version'],
                        torch_threads=best_torch.facts['threads'],
                        git_revision=machine.git_revision(), date=str(datetime.date.today()))


def scaling(name, seconds):
  """Examples a second of our step over batch sizes and devices, in turns."""
  with contextlib.ExitStack() as stack:
    def enter(batch, count):
      racer = race.Racer(label(count, 1), 'lepton', name, batch, devices=count)
      return stack.enter_context(contextlib.closing(racer))
    most = enter(32, 1).facts['devices']
    racers = [(batch, enter(batch, count)) for batch in (32, 128, 512)
              for count in sorted({1, 2, 4, 8, most}) if count <= most]
    race.race([racer for _, racer in racers], 3, seconds)
    return [dict(measured=f'{name}, batch {batch}, {racer.label}',
                 figure=1e3 * batch / racer.median(), low='', high='', unit='examples a second')
            for batch, racer in racers]


def population(name, batch, rounds, seconds):
  """How many trials of one network, vmapped in one program, gain over as many one after another."""
  with contextlib.ExitStack() as stack:
    def enter(**options):
      racer = race.Racer(str(options), 'lepton', name, batch, **options)
      return stack.enter_context(contextlib.closing(racer))
    one = enter(calls=enter().facts['auto'][1])
    everyone = enter(trials=TRIALS)
    race.race([one, everyone], rounds, seconds)
    middle, low, high = (TRIALS * r for r in race.ratio(one, everyone))
    return dict(measured=f'{TRIALS} trials of {name} in one program against one after another',
                figure=middle, low=low, high=high, unit='times faster')
