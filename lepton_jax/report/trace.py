"""What ran when in some steps: the trace that --profile left, as a table and a picture."""

import collections
import gzip
import json
import re
import typing

from etils import epath

from lepton_jax.errors import UserError

NAMED = 8  # operations with a colour of their own


class Span(typing.NamedTuple):
  """One operation on one thread or device; `begin` and `length` in milliseconds."""
  lane: str
  name: str
  begin: float
  length: float


def read(folder):
  """The Spans of compiled operations in the newest trace of a run folder.

  Python's own calls, and what only contains other operations, are left out. Raises UserError where
  there is no trace.
  """
  files = sorted(epath.Path(folder).expanduser().glob('profile/plugins/profile/*/perfetto_trace*'))
  if not files:
    raise UserError(f'{folder} has no trace; train it with --profile=20-22, say')
  events = json.loads(gzip.decompress(files[-1].read_bytes()))
  events = events['traceEvents'] if isinstance(events, dict) else events
  lanes = {(e['pid'], e['tid']): e['args']['name'] for e in events
           if e.get('ph') == 'M' and e['name'] == 'thread_name'}
  # XLA numbers operations of a kind: ffi_call.149, which on a CPU is one of oneDNN's.
  spans = [Span(lanes.get((e['pid'], e['tid']), str(e['tid'])), re.sub(r'(\.\d+)+$', '', e['name']),
                e['ts'] / 1000, e['dur'] / 1000) for e in events if e.get('ph') == 'X']
  # Operations of XLA have names of small letters; all others are of Python or of its runtime.
  compiled = [span for span in spans if span.name[:1].islower() and ' ' not in span.name
              and not span.lane.endswith('.py')]
  if not compiled:
    raise UserError(f'{files[-1]} has no operation of a compiled program')
  first = min(span.begin for span in compiled)
  return [span._replace(begin=span.begin - first) for span in compiled]


def rows(spans, most=15):
  """[{'operation', 'times', 'ms', 'share'}], the longest first; share is of all their time."""
  total, count = collections.Counter(), collections.Counter()
  for span in spans:
    total[span.name] += span.length
    count[span.name] += 1
  whole = sum(total.values())
  return [dict(operation=name, times=count[name], ms=round(ms, 3),
               share=f'{100 * ms / whole:.1f} %') for name, ms in total.most_common(most)]


def draw(spans, path, title):
  """A lane for each thread or device, a bar for each operation, the longest ones in colour."""
  from lepton_jax.report.pictures import new_axes, save
  lanes = list(dict.fromkeys(span.lane for span in sorted(spans, key=lambda span: span.begin)))
  named = [row['operation'] for row in rows(spans, NAMED)]
  figure, axis = new_axes(10, 1.4 + 0.5 * len(lanes))
  colours = [f'C{i}' for i in range(len(named))] + ['lightgrey']
  for name, colour in zip([*named, None], colours):
    for place, lane in enumerate(lanes):
      bars = [(span.begin, span.length) for span in spans if span.lane == lane
              and (span.name == name if name else span.name not in named)]
      axis.broken_barh(bars, (place - 0.4, 0.8), color=colour, label=name or 'others')
  handles, labels = axis.get_legend_handles_labels()
  unique = dict(zip(labels, handles))
  axis.legend(unique.values(), unique.keys(), loc='upper center', bbox_to_anchor=(0.5, -0.25),
              ncols=5, fontsize='small', frameon=False)
  axis.set_yticks(range(len(lanes)), [lane.partition('/')[0] for lane in lanes])
  axis.set_xlabel('ms')
  axis.set_title(title)
  save(figure, path)
