"""Linear regression in closed form, and its coefficients in the units of the table."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from lepton_jax.errors import UserError


def check(config):
  """Raises UserError unless least squares is what the options describe."""
  if config.architecture.model != 'linear' or config.optimization.loss != 'mse':
    raise UserError('--solver=closed_form solves --model=linear --loss=mse only')
  defaults = type(config)().flat()
  for name in ('l1', 'l2', 'weight_decay', 'ema_decay', 'freeze', 'init_from', 'prune_sparsity',
               'prune_layers', 'quantize_weight_bits', 'quantize_activation_bits',
               'quantize_layers', 'soft_sharing', 'distill'):
    if config.flat()[name] != defaults[name]:
      raise UserError(f'--solver=closed_form knows no --{name}')


def solve(assembly):
  """The first state with the least-squares solution of the training part, of many the shortest."""
  scaling, (inputs, label) = assembly.network.scaling, assembly.dataset.splits['train']
  exact = dataclasses.replace(scaling, dtype='float64')
  batch = dict(inputs=np.asarray(inputs, np.float64), label=np.asarray(label, np.float64))
  batch = exact.batch(batch, regression=True)
  x, y = (np.asarray(batch[name], np.float64).reshape(len(label), -1)
          for name in ('inputs', 'label'))
  solution = np.linalg.lstsq(np.concatenate([x, np.ones((len(x), 1))], 1), y, rcond=None)[0]
  head = assembly.state.params['head']
  params = dict(assembly.state.params,
                head=dict(kernel=jnp.asarray(solution[:-1], head['kernel'].dtype),
                          bias=jnp.asarray(solution[-1], head['bias'].dtype)))
  return assembly.state.replace(params=params)


def coefficients(network, data, weights):
  """Slopes and intercept of a linear regression in the units of the table; {} for a series."""
  if data.targets:
    return {}
  head, scaling = weights['params']['head'], network.scaling
  mean, deviation = scaling.target
  slopes = np.asarray(head['kernel'][:, 0], np.float64) * deviation / scaling.std
  intercept = float(mean + deviation * float(head['bias'][0]) - slopes @ scaling.mean)
  return dict(intercept=intercept, coefficients=dict(zip(data.columns, map(float, slopes))))
