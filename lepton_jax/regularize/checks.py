"""Regularisers that would do nothing are refused."""

import jax

from lepton_jax.errors import UserError

# What makes two passes over the same batch differ.
RANDOM = {'dropout', 'recurrent_dropout', 'stochastic_depth', 'spatial_dropout', 'drop_connect',
          'weight_noise'}


def check(on, model, loss, params):
  """Raises UserError if a strength of `on` has no effect with these parameters and this loss."""
  classes = {'label_smoothing', 'confidence_penalty', 'r_drop'} & on
  if classes and loss == 'mse':
    raise UserError(f'--{", --".join(sorted(classes))}: made for classes, and this is regression')
  if 'spatial_dropout' in on and not any(leaf.ndim == 4 for leaf in jax.tree.leaves(params)):
    raise UserError(f'--spatial_dropout zeroes feature maps; {model} has no convolution')
  if 'r_drop' in on and not RANDOM & on:
    raise UserError(f'--r_drop compares two predictions that differ by chance; '
                    f'add one of --{", --".join(sorted(RANDOM))}')
