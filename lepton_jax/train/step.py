"""The train step: a pure function of (state, batch), made from four replaceable parts.

jit, sharding and pmap are applied outside, in parallel.py, and give the same numbers.
"""

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax import trees


def make_train_step(apply_fn, optimizer, loss_fn, measure, *, prepare, effective, terms=(), finish, axis=None):
  """Returns a pure `(state, batch) -> (state, measurements)`.

  Args:
    apply_fn: (weights, model_state, batch, hparams, key, axis) -> (logits, new model_state).
    optimizer: `init(trained)` and `update(gradients, opt_state, trained, step, hparams)`.
    loss_fn: (logits, batch, hparams) -> f32[batch].
    measure: (logits, batch) -> {name: f32[batch]}, averaged and reported beside the loss.
    prepare: (batch, key) -> batch; normalises and augments.
    effective: (trained, state) -> weights that count: frozen, masked, fake-quantised.
    terms: each (weights, hparams) -> scalar, added to the loss.
    finish: (trained, state) -> trained; restores what an update may not change (masked zeros).
    axis: the device axis under pmap, over which gradients and measurements are averaged.
  """
  def train_step(state, batch):
    augment_key, model_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    batch = prepare(batch, augment_key)

    def objective(trained):
      weights = effective(trained, state)
      logits, model_state = apply_fn(weights, state.model_state, batch, state.hparams, model_key, axis)
      loss = jnp.mean(loss_fn(logits, batch, state.hparams))
      total = loss + sum(term(weights, state.hparams) for term in terms)
      return total, (loss, jax.tree.map(jnp.mean, measure(logits, batch)), model_state)

    gradients, (loss, measured, model_state) = jax.grad(objective, has_aux=True)(state.trained)
    if axis is not None:
      gradients, loss, measured = lax.pmean((gradients, loss, measured), axis)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trained, state.step, state.hparams)
    trained = finish(jax.tree.map(jnp.add, state.trained, updates), state)
    measurements = jax.tree.map(lambda m: m.astype(jnp.float32), dict(
        loss=loss, **measured, gradient_norm=trees.global_norm(gradients)))
    return state.replace(
        step=state.step + 1, **trained, model_state=model_state, opt_state=opt_state,
        ema=moving_average(state, trained, finish),
        totals={name: total + measurements.get(name, 1.0) for name, total in state.totals.items()},
    ), measurements

  return train_step


def moving_average(state, trained, finish):
  """EMA of the trained arrays, faster over the first steps so that the initial weights are soon forgotten."""
  if not state.ema:
    return state.ema
  step = state.step.astype(state.hparams['ema_decay'].dtype)
  decay = jnp.minimum(state.hparams['ema_decay'], (1 + step) / (10 + step))
  return finish(jax.tree.map(lambda old, new: (old + (1 - decay) * (new - old)).astype(old.dtype), state.ema, trained), state)
