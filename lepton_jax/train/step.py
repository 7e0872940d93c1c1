"""The train step: a pure function of (state, batch), made from four replaceable parts.

jit, sharding and pmap are applied outside, in parallel.py, and give the same numbers.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax import trees


def make_train_step(apply_fn, optimizer, loss_fn, measure, *, prepare, effective, terms=(), output_terms=(), twice=False, uphill=None,
                    disturb=None, finish, average=None, norm=trees.global_norm, axis=None):
  """Returns a pure `(state, batch) -> (state, measurements)`.

  Args:
    apply_fn: (weights, model_state, batch, hparams, key, axis) -> (logits, new model_state).
    optimizer: `init(trained)` and `update(gradients, opt_state, trained, step, hparams)`.
    loss_fn: (logits, batch, hparams) -> f32[batch].
    measure: (logits, batch) -> {name: f32[batch]}, averaged and reported beside the loss.
    prepare: (batch, key, hparams) -> batch; normalises and augments.
    effective: (trained, state) -> weights that count: frozen, masked, fake-quantised.
    terms: each (weights, hparams) -> scalar, added to the loss.
    output_terms: each (logits, other, batch, hparams) -> f32[batch], added likewise; `other` is from a second pass.
    twice: whether there is that second pass, with a dropout of its own; the loss is then the mean of both.
    uphill: (trained, gradients, hparams) -> where the gradient that counts is taken; None: at `trained`.
    disturb: (gradients, step, hparams, key) -> gradients; None: as they are.
    finish: (trained, state) -> trained; restores what an update may not change (masked zeros).
    average: step, hparams -> how much of the moving average is kept; None where there is no average.
    norm: gradients -> their Euclidean norm, for the report.
    axis: the device axis under pmap, over which gradients and measurements are averaged.
  """
  across = (lambda tree: tree) if axis is None else functools.partial(lax.pmean, axis_name=axis)

  def train_step(state, batch):
    augment_key, model_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    batch = prepare(batch, augment_key, state.hparams)

    def objective(trained):
      weights = effective(trained, state)
      logits, model_state = apply_fn(weights, state.model_state, batch, state.hparams, model_key, axis)
      loss, other = loss_fn(logits, batch, state.hparams), None
      if twice:
        other, _ = apply_fn(weights, state.model_state, batch, state.hparams, jax.random.fold_in(model_key, 1), axis)
        loss = (loss + loss_fn(other, batch, state.hparams)) / 2
      loss = jnp.mean(loss)
      on_answers = sum(jnp.mean(term(logits, other, batch, state.hparams)) for term in output_terms)
      total = loss + sum(term(weights, state.hparams) for term in terms) + on_answers
      return total, (loss, jax.tree.map(jnp.mean, measure(logits, batch)), model_state)

    where = state.trained
    if uphill is not None:
      where = uphill(where, across(jax.grad(lambda trained: objective(trained)[0])(where)), state.hparams)
    gradients, (loss, measured, model_state) = jax.grad(objective, has_aux=True)(where)
    gradients, loss, measured = across((gradients, loss, measured))
    if disturb is not None:
      gradients = disturb(gradients, state.step, state.hparams, jax.random.fold_in(model_key, 2))
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trained, state.step, state.hparams)
    trained = finish(jax.tree.map(jnp.add, state.trained, updates), state)
    measurements = jax.tree.map(lambda m: m.astype(jnp.float32), dict(
        loss=loss, **measured, gradient_norm=norm(gradients)))
    return state.replace(
        step=state.step + 1, **trained, model_state=model_state, opt_state=opt_state,
        ema=finish(blend(state.ema, trained, average(state.step, state.hparams)), state) if state.ema else state.ema,
        totals={name: total + measurements.get(name, 1.0) for name, total in state.totals.items()},
    ), measurements

  return train_step


def blend(average, trained, decay):
  """A moving average, `decay` of which is kept."""
  return jax.tree.map(lambda old, new: (old + (1 - decay) * (new - old)).astype(old.dtype), average, trained)


def kept_share(step, hparams, total_steps):
  """How much of the moving average of weights a step keeps.

  Under 'ema_decay' less over the first steps, so that the initial weights are soon forgotten. From the share
  'swa_start' of the run on all weights since then count alike (arXiv:1803.05407).
  """
  decay = 0.0
  if 'ema_decay' in hparams:
    now = step.astype(hparams['ema_decay'].dtype)
    decay = jnp.minimum(hparams['ema_decay'], (1 + now) / (10 + now))
  if 'swa_start' in hparams:
    since = step.astype(hparams['swa_start'].dtype) - jnp.floor(hparams['swa_start'] * total_steps)
    decay = jnp.where(since < 0, decay, since / (since + 1))
  return decay
