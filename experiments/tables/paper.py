"""What scripts of papers share: a study whose settings lie on curves, its table and its picture."""

import functools
import pathlib
import statistics
import sys
import typing

from absl import flags as absl_flags

from experiments.tables import study
from lepton_jax import flags

FLAGS = absl_flags.FLAGS
RESULTS = pathlib.Path(__file__).parents[1] / 'results' / 'papers'


class Paper(typing.NamedTuple):
  """A figure or a table of a paper.

  Attributes:
    name: of the script, and of the CSV file and picture it writes.
    studies: {name: Study}, whose settings are named (curve, place on the axis); a panel each.
    across: label of the axis.
    published: {name of a study: {(curve, place): what the paper has there}}.
    place: from a line of the CSV file to where it is on the axis; None: its column `at`.
    setting: what a place is called in the table; '': as the axis.
    log: whether the axis is logarithmic.
  """
  name: str
  studies: dict
  across: str
  published: dict = {}
  place: typing.Callable | None = None
  log: bool = False
  setting: str = ''


def run(paper, doc, seeds='0,1,2'):
  """Trains what the committed results lack and writes table and picture; exits with a status."""
  study.define(f'runs/{paper.name}', RESULTS / f'{paper.name}.csv', seeds)
  sys.exit(flags.run(functools.partial(main, paper), doc, study.OWN))


def main(paper, config):
  del config
  from lepton_jax.report import studies
  from lepton_jax.report.pictures import save
  output = pathlib.Path(FLAGS.output)
  lines = study.extend(
      output, paper.studies,
      lambda name, setting: dict(study=name, curve=setting[0], at=str(setting[1])),
      lambda name, setting: dict(across=paper.setting or paper.across,
                                 published=paper.published.get(name, {}).get(setting, '')))
  save(picture(paper, lines), output.with_suffix('.png'))
  print(studies.paper_table(lines))
  return 0


def draw(axes, label, points):
  """A curve of [(place, values)]: means, and a band from the least to the most of the values."""
  across = [place for place, _ in points]
  drawn, = axes.plot(across, [statistics.mean(ys) for _, ys in points], marker='.', label=label)
  axes.fill_between(across, [min(ys) for _, ys in points], [max(ys) for _, ys in points],
                    color=drawn.get_color(), alpha=0.2, linewidth=0)


def picture(paper, lines):
  """A panel a study, with its curves."""
  from matplotlib import figure
  drawing = figure.Figure(figsize=(4.6 * len(paper.studies), 3.4), layout='constrained')
  panels = drawing.subplots(1, len(paper.studies), squeeze=False)[0]
  place = paper.place or (lambda line: float(line['at']))
  for axes, name in zip(panels, paper.studies):
    own = [line for line in lines if line['study'] == name]
    for curve in dict.fromkeys(line['curve'] for line in own):
      groups = {}
      for line in own:
        if line['curve'] == curve:
          groups.setdefault(line['at'], []).append(line)
      draw(axes, curve, sorted(
          (statistics.mean(map(place, group)), [100 * float(line['test']) for line in group])
          for group in groups.values()))
    axes.set(xlabel=paper.across, ylabel='test accuracy (%)',
             title=name if len(panels) > 1 else None)
    if paper.log:
      axes.set_xscale('log')
      if paper.place is None:
        axes.set_xticks(sorted({place(line) for line in own}))
      axes.xaxis.set_major_formatter('{x:g}')
      axes.xaxis.set_minor_formatter('')
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
  return drawing
