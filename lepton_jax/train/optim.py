"""Update rules: optax transformations at unit rate.

Our schedule and traced strengths multiply what they give. optax's own schedules and learning rates
refuse traced values; this way one compile serves them all.
"""

import typing

import jax
import jax.numpy as jnp
import optax

from lepton_jax import trees
from lepton_jax.registry import OPTIMIZERS

# Each rule is (momentum, decay) -> GradientTransformation; `decay` adds weight_decay * w where it
# belongs.


@OPTIMIZERS.register
def sgd(momentum, decay):
  """Plain gradient descent."""
  del momentum
  return optax.chain(decay)


@OPTIMIZERS.register
def momentum(momentum, decay):
  """Heavy-ball momentum."""
  return optax.chain(optax.trace(momentum), decay)


@OPTIMIZERS.register
def nesterov(momentum, decay):
  """Nesterov's momentum."""
  return optax.chain(optax.trace(momentum, nesterov=True), decay)


@OPTIMIZERS.register
def adam(momentum, decay):
  """Adam (arXiv:1412.6980); with --weight_decay it is AdamW."""
  return optax.chain(optax.scale_by_adam(b1=momentum), decay)


@OPTIMIZERS.register
def adamw(momentum, decay):
  """AdamW (arXiv:1711.05101): Adam by the name under which people look for decoupled decay."""
  return adam(momentum, decay)


@OPTIMIZERS.register
def lamb(momentum, decay):
  """LAMB (arXiv:1904.00962): Adam's direction at each layer's own scale."""
  return optax.chain(optax.scale_by_adam(b1=momentum, eps=1e-6), decay,
                     optax.scale_by_trust_ratio())


@OPTIMIZERS.register
def rmsprop(momentum, decay):
  """RMSProp (Tieleman and Hinton 2012) with momentum."""
  return optax.chain(optax.scale_by_rms(), optax.trace(momentum), decay)


class Optimizer(typing.NamedTuple):
  """The functions of an optimizer.

  `init(trained) -> opt_state` and
  `update(gradients, opt_state, trained, step, hparams) -> (updates, opt_state)`.
  """
  init: typing.Callable
  update: typing.Callable


def make_optimizer(options, schedule, frozen=lambda name: False):
  """The Optimizer of `config.Optimization` options; `frozen` says which names get no updates."""
  def rule(hparams):
    is_decayed = lambda tree: trees.map_named(lambda name, _: trees.is_kernel(name), tree)
    decay = optax.identity()
    if 'weight_decay' in hparams:
      decay = optax.add_decayed_weights(hparams['weight_decay'], is_decayed)
    return OPTIMIZERS.get(options.optimizer)(options.momentum, decay)

  def init(trained, hparams):
    return rule(hparams).init(trained)

  def update(gradients, opt_state, trained, step, hparams):
    if 'clip_norm' in hparams:
      norm = trees.global_norm(gradients)

      def clip(g):
        factor = jnp.minimum(1, hparams['clip_norm'] / jnp.maximum(norm, 1e-12))
        return g * factor.astype(g.dtype)

      gradients = jax.tree.map(clip, gradients)
    with jax.numpy_dtype_promotion('standard'):  # optax raises floats to integer step counts
      updates, opt_state = rule(hparams).update(gradients, opt_state, trained)
    rate = 0.0
    if 'learning_rate' in hparams:
      rate = hparams['learning_rate'] * schedule(step).astype(hparams['learning_rate'].dtype)

    def step_of(name, u):
      return jnp.zeros_like(u) if frozen(name) else (-rate * u).astype(u.dtype)

    return trees.map_named(step_of, updates), opt_state

  return Optimizer(init, update)
