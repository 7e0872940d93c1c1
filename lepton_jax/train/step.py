"""The train step: a pure function of (state, batch), made from replaceable parts.

jit, sharding and pmap are applied outside, in parallel.py, and give the same numbers.
"""

import functools
import typing

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax import trees
from lepton_jax.train.state import lasting


def as_it_is(value, *_):
  return value


class Parts(typing.NamedTuple):
  """What a step is made of. `weights` holds 'params', 'learned' and 'held'.

  Attributes:
    apply_fn: (weights, model_state, batch, hparams, key, axis) -> (logits, new model_state, what
      is added to the loss, f32[batch] or 0).
    optimizer: `init(trained)` and `update(gradients, opt_state, trained, step, hparams)`.
    loss_fn: (logits, batch, hparams) -> f32[batch].
    measure: (logits, batch) -> {name: f32[batch]}, averaged and reported beside the loss.
    prepare: (batch, key, hparams, model_state) -> batch; normalises and augments.
    kept: (weights, hparams) -> weights without what is frozen or removed; penalties see them.
    counted: (kept weights, hparams, key) -> weights that count: disturbed, then rounded.
    finish: (params, held, hparams) -> params without what an update may not change.
    after: (params, gradients, held) -> held after an update.
    terms: each (kept weights, hparams) -> scalar, added to the loss.
    output_terms: each (logits, other, batch, hparams) -> f32[batch], added likewise; `other` is
      from a second pass.
    twice: whether there is that second pass, with a dropout of its own; the loss is then the mean
      of both.
    uphill: (trained, gradients, hparams) -> where the gradient that counts is taken.
    disturb: (gradients, step, hparams, key) -> gradients.
    average: step, hparams -> how much of the moving average is kept; None: there is no average.
    norm: gradients -> their Euclidean norm, for the report.
  """
  apply_fn: typing.Callable
  optimizer: typing.Any
  loss_fn: typing.Callable
  measure: typing.Callable
  prepare: typing.Callable = as_it_is
  kept: typing.Callable = as_it_is
  counted: typing.Callable = as_it_is
  finish: typing.Callable = as_it_is
  after: typing.Callable = lambda params, gradients, held: held
  terms: tuple = ()
  output_terms: tuple = ()
  twice: bool = False
  uphill: typing.Callable | None = None
  disturb: typing.Callable = as_it_is
  average: typing.Callable | None = None
  norm: typing.Callable = trees.global_norm


def make_train_step(parts, axis=None):
  """A pure `(state, batch) -> (state, measurements)`.

  `axis` is the device axis under pmap, over which gradients and measurements are averaged.
  """
  across = as_it_is if axis is None else functools.partial(lax.pmean, axis_name=axis)

  def train_step(state, batch):
    augment_key, model_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    batch = parts.prepare(batch, augment_key, state.hparams, state.model_state)

    def answer(kept, key):
      weights = parts.counted(kept, state.hparams, key)
      logits, model_state, inside = parts.apply_fn(weights, state.model_state, batch,
                                                   state.hparams, key, axis)
      return logits, model_state, parts.loss_fn(logits, batch, state.hparams), inside

    def objective(trained):
      kept = parts.kept(dict(trained, held=state.held), state.hparams)
      logits, model_state, loss, inside = answer(kept, model_key)
      other = None
      if parts.twice:
        other, _, second, _ = answer(kept, jax.random.fold_in(model_key, 1))
        loss = (loss + second) / 2
      loss = jnp.mean(loss)
      on_answers = jnp.mean(inside) + sum(jnp.mean(term(logits, other, batch, state.hparams))
                                          for term in parts.output_terms)
      penalty = sum(term(kept, state.hparams) for term in parts.terms)
      measured = jax.tree.map(jnp.mean, parts.measure(logits, batch))
      return loss + penalty + on_answers, (loss, measured, model_state)

    where = state.trained
    if parts.uphill is not None:
      gradients = jax.grad(lambda trained: objective(trained)[0])(where)
      where = parts.uphill(where, across(gradients), state.hparams)
    gradients, (loss, measured, model_state) = jax.grad(objective, has_aux=True)(where)
    gradients, loss, measured = across((gradients, loss, measured))
    noise_key = jax.random.fold_in(model_key, 2)
    gradients = parts.disturb(gradients, state.step, state.hparams, noise_key)
    updates, opt_state = parts.optimizer.update(gradients, state.opt_state, state.trained,
                                                state.step, state.hparams)
    held = parts.after(state.params, gradients['params'], state.held)
    trained = jax.tree.map(jnp.add, state.trained, updates)
    trained = dict(trained, params=parts.finish(trained['params'], held, state.hparams))
    measurements = dict(loss=loss, **measured, gradient_norm=parts.norm(gradients))
    measurements = jax.tree.map(lambda m: m.astype(jnp.float32), measurements)
    totals = {name: total + measurements.get(name, 1.0) for name, total in state.totals.items()}
    ema = state.ema
    if ema:
      # Averaged weights see other activations than those of the moment: so do their statistics.
      now = dict(trained, model_state=lasting(model_state))
      ema = blend(ema, now, parts.average(state.step, state.hparams))
      ema = dict(ema, params=parts.finish(ema['params'], held, state.hparams))
    return state.replace(step=state.step + 1, **trained, model_state=model_state,
                         opt_state=opt_state, held=held, ema=ema, totals=totals), measurements

  return train_step


def blend(average, trained, decay):
  """A moving average, `decay` of which is kept."""
  return jax.tree.map(lambda old, new: (old + (1 - decay) * (new - old)).astype(old.dtype), average,
                      trained)


def kept_share(step, hparams, total_steps):
  """How much of the moving average of weights a step keeps.

  Under 'ema_decay' less over the first steps, so that the initial weights are soon forgotten. From
  the share 'swa_start' of the run on all weights since then count alike (arXiv:1803.05407).
  """
  decay = 0.0
  if 'ema_decay' in hparams:
    now = step.astype(hparams['ema_decay'].dtype)
    decay = jnp.minimum(hparams['ema_decay'], (1 + now) / (10 + now))
  if 'swa_start' in hparams:
    since = step.astype(hparams['swa_start'].dtype) - jnp.floor(hparams['swa_start'] * total_steps)
    decay = jnp.where(since < 0, decay, since / (since + 1))
  return decay
