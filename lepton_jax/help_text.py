"""What --help and --helpshort print."""

import dataclasses
import textwrap

from lepton_jax import config as config_lib

WIDTH = 100  # columns
MOST_USED = ('model', 'dataset', 'epochs', 'batch_size', 'learning_rate', 'optimizer', 'seed',
             'prune_sparsity', 'quantize_weight_bits', 'quantize_activation_bits', 'init_from',
             'runs_dir')


def full(doc, own, flag_values):
  """What --help prints: the script's docstring, its own flags, the configuration's by concern."""
  blocks = [doc.strip(), *_own_block(own, flag_values)]
  if 'config' in flag_values:
    concerns = dataclasses.fields(config_lib.Config)
    blocks += [_concern_block(concern, flag_values) for concern in concerns]
  return '\n\n'.join(blocks)


def short(doc, own, flag_values):
  """What --helpshort prints: a script's first paragraph, its own flags and the most used ones."""
  blocks = [doc.strip().partition('\n\n')[0], *_own_block(own, flag_values)]
  if 'config' in flag_values:
    texts = (_flag_text(flag_values[name]) for name in MOST_USED)
    blocks.append('\n'.join(('Most used:', *texts)))
  blocks.append('--help says more, and shows all flags.')
  return '\n\n'.join(blocks)


def _own_block(own, flag_values):
  """[the text of a script's own flags]; [] where it has none."""
  names = [*own, *(name for name in ('config',) if name in flag_values)]
  return ['\n'.join(('Flags:', *(_flag_text(flag_values[n]) for n in names)))] if names else []


def _concern_block(concern, flag_values):
  """The text of one concern's flags, below a title."""
  names = [name for name, (group, _) in config_lib.FIELDS.items() if group == concern.name]
  aside = [name for name in names if not config_lib.FIELDS[name][1].metadata['identity']]
  lines = [_wrapped(f'{concern.name.capitalize()}: {concern.type.__doc__}')]
  for name in names:
    marked = name in aside and aside != names  # the title says it where all are so
    lines.append(_flag_text(flag_values[name], " (not part of the run's name)" if marked else ''))
  return '\n'.join(lines)


def _flag_text(flag, mark=''):
  """A flag with its default, and below it the meaning and the choices."""
  choices = getattr(flag.parser, 'enum_values', None) or ()
  text = flag.help.removeprefix(f'<{"|".join(choices)}>: ')  # absl puts it there; see below
  lines = [f'  --{flag.name}={_shown(flag.default)}', _wrapped(text + mark, '      ')]
  if choices:
    lines.append(_wrapped(f'one of: {", ".join(choices)}', '      '))
  return '\n'.join(lines)


def _shown(default):
  if isinstance(default, list):
    return ','.join(map(_shown, default)) or 'unset'
  if default in (None, ''):
    return 'unset'
  return str(default).lower() if isinstance(default, bool) else str(default)


def _wrapped(text, indent=''):
  return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent,
                       break_long_words=False, break_on_hyphens=False)
