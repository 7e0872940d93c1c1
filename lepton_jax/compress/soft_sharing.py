"""Soft weight sharing: weights gather around the values of a mixture that is learned with them.

Nowlan and Hinton, Neural Computation 4 (4), 1992; for compression arXiv:1702.04008. Each kernel has
a mixture of normal distributions of its own, one of them at zero with a fixed share of the weights.
The loss gets the mixture's negative log-likelihood, so weights move to the nearest means and means
to their weights, which clustering afterwards then moves little.
"""

import math

import jax
import jax.numpy as jnp

from lepton_jax.compress.method import Method, part, under

NAME = 'soft_sharing'
NARROWEST = 1e-3  # standard deviation of a component, in standard deviations of the kernel
LEAST = 1e-6  # and of a kernel all of whose weights are alike
CHUNK = 1 << 16  # weights at a time; a table of words has millions, times the components


def make(config, setting):
  """The Method of a configuration; None where nothing is shared."""
  options = config.soft_sharing
  if not options.soft_sharing:
    return None
  names = tuple(name for name in setting.kernels if name not in setting.frozen)

  def init(params, hparams):
    learned = {}
    for name in names:
      learned |= under(name, first_mixture(params[name], options.soft_sharing_values))
    return learned, {}

  def penalty(params, learned, held, hparams):
    total = sum(nats(params[name], part(learned, name), options.soft_sharing_zero)
                for name in names)
    return hparams['soft_sharing'] * total

  def reaches(config):
    values = config.soft_sharing.soft_sharing_values
    return {name: dict(soft_sharing_values=values) if name in names else
            dict(soft_sharing_reason='it is frozen') for name in setting.kernels}

  return Method(
      name=NAME, reaches=reaches, weights=lambda params, learned, held, hparams: {}, init=init,
      penalty=penalty,
      strengths=lambda config: dict(soft_sharing=config.soft_sharing.soft_sharing))


def first_mixture(kernel, values):
  """Means at equal distances over the kernel's range, as wide as they lie apart.

  {'mean' [values], 'log_width' [values + 1], the one at zero first, 'logit' [values]}.
  """
  low, high = jnp.min(kernel), jnp.max(kernel)
  apart = jnp.maximum((high - low) / values, LEAST)
  place = jnp.arange(values).astype(kernel.dtype) + 0.5
  return dict(mean=low + apart * place, logit=jnp.zeros(values, kernel.dtype),
              log_width=jnp.full(values + 1, jnp.log(apart / 2), kernel.dtype))


def nats(kernel, mixture, zero):
  """The negative log-likelihood of a kernel's weights, summed; what is pruned has none.

  `zero` is the share of the weights that the component at zero is to have.
  """
  weights = kernel.ravel()
  narrowest = jnp.maximum(NARROWEST * jax.lax.stop_gradient(jnp.std(weights)), LEAST)
  width = narrowest + jnp.exp(mixture['log_width'])
  mean = jnp.concatenate([jnp.zeros(1, weights.dtype), mixture['mean']])
  share = jnp.concatenate([jnp.full(1, math.log(zero), weights.dtype),
                           math.log(1 - zero) + jax.nn.log_softmax(mixture['logit'])])

  @jax.checkpoint
  def some(weights):
    distance = (weights[:, None] - mean) / width
    log_density = share - jnp.log(width) - jnp.square(distance) / 2 - math.log(2 * math.pi) / 2
    return -jnp.sum(jnp.where(weights == 0, 0, jax.nn.logsumexp(log_density, -1)))

  if weights.size <= CHUNK:
    return some(weights)
  return jnp.sum(jax.lax.map(some, jnp.pad(weights, (0, -weights.size % CHUNK)).reshape(-1, CHUNK)))
