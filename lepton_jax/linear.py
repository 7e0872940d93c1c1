"""Linear regression in closed form, and its coefficients in the units of the table."""

import jax.numpy as jnp
import numpy as np

from lepton_jax.errors import UserError


def check(config):
  """Raises UserError unless least squares is what the options describe."""
  if config.architecture.model != 'linear' or config.optimization.loss != 'mse':
    raise UserError('--solver=closed_form solves --model=linear --loss=mse only')
  defaults = type(config)().flat()
  for name in ('l1', 'l2', 'weight_decay', 'ema_decay', 'freeze', 'init_from', 'prune_sparsity', 'quantize_weight_bits', 'quantize_activation_bits'):
    if config.flat()[name] != defaults[name]:
      raise UserError(f'--solver=closed_form knows no --{name}')


def solve(assembly, state):
  """The state with the least-squares solution on the training part (minimum norm where it is not unique)."""
  network, (inputs, label) = assembly.network, assembly.dataset.splits['train']
  x = ((np.asarray(inputs, np.float64) - network.mean) / network.std).reshape(len(label), -1)
  y = (np.asarray(label, np.float64) - network.target[0]) / network.target[1]
  solution = np.linalg.lstsq(np.concatenate([x, np.ones((len(x), 1))], 1), y, rcond=None)[0]
  head = state.params['head']
  params = dict(state.params, head=dict(kernel=jnp.asarray(solution[:-1, None], head['kernel'].dtype), bias=jnp.asarray(solution[-1:], head['bias'].dtype)))
  return state.replace(params=params)


def coefficients(network, data, weights):
  """Slopes and intercept of a linear regression in the units of the table."""
  head = weights['params']['head']
  slopes = np.asarray(head['kernel'][:, 0], np.float64) * network.target[1] / network.std
  intercept = float(network.target[0] + network.target[1] * float(head['bias'][0]) - slopes @ network.mean)
  return dict(intercept=intercept, coefficients=dict(zip(data.columns, map(float, slopes))))
