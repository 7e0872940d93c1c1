"""The weights of other runs that a run starts from or learns from."""

import dataclasses

from lepton_jax import folder as folder_lib
from lepton_jax.compress.prune import method as prune
from lepton_jax.errors import UserError


def read(config, data):
  """The weights of other runs that a run needs, as arguments of assemble.build.

  Raises UserError where the words of --init_from have other numbers than those of `data`.
  """
  training, found = config.training, {}
  if training.init_from:
    words = tuple(folder_lib.described_data(training.init_from).get('vocabulary', ()))
    if words and data.vocabulary and words != data.vocabulary:
      sizes = f'{len(words):,} tokens, {data.name} has {len(data.vocabulary):,}'
      raise UserError(f'--init_from={training.init_from} has another vocabulary ({sizes}); '
                      f'its vectors would belong to other words (--tokenizer has to be the same '
                      f'as well)')
    found['initial'] = folder_lib.read_weights(training.init_from)[0]
    found['widths'] = folder_lib.read_widths(training.init_from)
    parent = folder_lib.read_config(training.init_from)
    shape = lambda one: dataclasses.replace(one.architecture, dtype='float32', dropout=None,
                                            recurrent_dropout=None, stochastic_depth=None)
    if found['widths'] and shape(parent) != shape(config):
      raise UserError(f'--init_from={training.init_from} is a {parent.architecture.model} some of '
                      f'whose layers have other widths; it goes on as that model, with its options')
    # Levels and ranges mean the same where they are asked for in the same words, whenever and
    # however they were set.
    asked = lambda one: dataclasses.replace(one.as_start().quantize, quantize_begin=None,
                                            quantize_calibration=1)
    found['keeps'] = asked(config) == asked(parent) and not config.quantize.quantize_after
  if config.prune.prune_ticket:
    found['ticket'] = prune.without_dead(folder_lib.read_weights(config.prune.prune_ticket)[0])
    widths = folder_lib.read_widths(config.prune.prune_ticket)
    if widths != found.get('widths', {}):
      raise UserError(f'--prune_ticket={config.prune.prune_ticket} has layers of other widths than '
                      f'this run; it says nothing of weights that one of them lacks')
  if config.distill.teacher:
    found['teacher'] = folder_lib.load(config.distill.teacher, examples=False)
  return found
