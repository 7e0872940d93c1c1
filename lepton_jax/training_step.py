"""What a run's train step is made of: augmentation, noise, compression, penalties, constraints."""

import functools

import jax
import jax.numpy as jnp

from lepton_jax import distill, layers, registry, trees
from lepton_jax import network as network_lib
from lepton_jax.data import augment as augment_lib
from lepton_jax.layers import columns, platform, watch
from lepton_jax.regularize import constraints, feature_maps, noise, outputs
from lepton_jax.strengths import DROPOUTS
from lepton_jax.train import step as step_lib


def parts(network, optimizer, frozen, num_classes, total_steps, teacher=None, hints=frozenset()):
  """The step.Parts of a Network; `frozen` parameters get no gradient.

  `teacher` is the folder.Trained that it learns from as well, `hints` are layers that do so.
  """
  on = network.config.regularize
  return step_lib.Parts(
      apply_fn=functools.partial(answers, network, hints), optimizer=optimizer,
      loss_fn=network.objective.training, measure=network.objective.measure,
      prepare=preparation(network, num_classes, teacher, hints),
      kept=functools.partial(kept, network, frozen),
      counted=functools.partial(counted, network),
      finish=functools.partial(finish, network, frozen), after=network.compression.after,
      terms=tuple(functools.partial(penalty, name) for name in registry.PENALTIES.names()
                  if getattr(on, name)) + (network.compression.penalty,),
      output_terms=tuple(functools.partial(output_term, name) for name in OUTPUT_TERMS
                         if getattr(on, name)) + distilled(network, teacher),
      twice=bool(on.r_drop), uphill=uphill if on.sam else None,
      disturb=disturb if on.gradient_noise else step_lib.as_it_is,
      average=functools.partial(step_lib.kept_share, total_steps=total_steps),
      norm=functools.partial(norm, network.config.run.convolution))


def preparation(network, num_classes, teacher, hints):
  """(batch, key, hparams, model_state) -> batch: scaled, augmented, taught, noisy."""
  augment = augment_lib.make_augment(network.config.augment, num_classes, network.scaling.std)
  teach = teacher and distill.teaching(teacher, network.scaling, hints)

  def prepare(batch, key, hparams, model_state):
    batch = network.scaled(batch)
    if augment is not None:
      batch = augment(batch, key, hparams)
    if teach is not None:
      batch = teach(batch, model_state)
    if 'input_noise' in hparams:
      noisy = noise.input_noise(batch['inputs'], batch['example'], hparams['input_noise'],
                                jax.random.fold_in(key, 1))
      batch = dict(batch, inputs=noisy)
    return batch

  return prepare


def answers(network, hints, weights, model_state, batch, hparams, key, axis):
  """(logits, model_state, what --distill_hints cost) of weights that count on a prepared batch."""
  with watch.answers(hints) as found:
    logits, changed = logits_of(network, weights, model_state, batch, hparams, key, axis)
  if not hints:
    return logits, changed, 0.0
  words = batch['inputs'].dtype == jnp.int32
  exists = layers.exists(batch['inputs']) if words and 'carry' not in model_state else None
  far = distill.hint(found, batch[distill.HINTS], exists)
  return logits, changed, hparams['distill_hints'] * far


def logits_of(network, weights, model_state, batch, hparams, key, axis):
  """(logits, model_state) of weights that count on a prepared batch."""
  rates = {name: hparams.get(name) for name in DROPOUTS}
  training = layers.Training(example=batch['example'], axis=axis, **rates)
  run = functools.partial(network.forward, weights, inputs=batch['inputs'], hparams=hparams,
                          training=training, key=key)
  if 'spatial_dropout' in hparams:
    with feature_maps.spatial_dropout(training, hparams['spatial_dropout']):
      return run(model_state)
  if 'carry' not in model_state:
    return run(model_state)
  carry = model_state['carry']
  logits, changed = run(dict(model_state, carry=network_lib.rows_of(carry, batch)))
  if distill.CARRY in batch:
    changed['carry'] = dict(changed['carry'], **{distill.TEACHER: batch[distill.CARRY]})
  if axis is not None:  # all devices share the result
    changed['carry'] = jax.lax.all_gather(changed['carry'], axis, tiled=True)
  return logits, changed


def kept(network, frozen, weights, hparams):
  """Weights without gradients where they are frozen and without what compression removed."""
  def held_fast(name, leaf):
    return jax.lax.stop_gradient(leaf) if name in frozen else leaf

  weights = dict(weights, params=trees.map_named(held_fast, weights['params']))
  return network.compression.kept(weights, hparams)


def counted(network, weights, hparams, key):
  """Kept weights with the noise of this step, then rounded: what multiplies is on its levels."""
  kernels = {n: leaf for n, leaf in trees.named(weights['params']).items() if trees.is_kernel(n)}
  for i, name in enumerate(('weight_noise', 'drop_connect')):
    if name in hparams:
      disturbed = getattr(noise, name)
      kernels = disturbed(kernels, hparams[name], jax.random.fold_in(key, 3 + i))
  params = trees.map_named(lambda n, leaf: kernels.get(n, leaf), weights['params'])
  return network.compression.rounded(dict(weights, params=params), hparams)


def penalty(name, weights, hparams):
  kernels = {n: leaf for n, leaf in trees.named(weights['params']).items() if trees.is_kernel(n)}
  return hparams[name] * registry.PENALTIES.get(name)(kernels)


def finish(network, frozen, params, held, hparams):
  """Parameters after an update: masked, and no longer than --max_norm."""
  params = network.compression.finish(params, held)
  if 'max_norm' not in hparams:
    return params

  def limited(name, leaf):
    free = trees.is_kernel(name) and name not in frozen
    return constraints.max_norm(leaf, hparams['max_norm']) if free else leaf

  return trees.map_named(limited, params)


def norm(choice, gradients):
  with platform.using(choice):
    return columns.global_norm(gradients)


def confidence(logits, other, label):
  del other
  return outputs.confidence_penalty(logits, label)


# Terms on answers: (logits, those of the second pass or None, labels) -> f32[batch].
OUTPUT_TERMS = dict(confidence_penalty=confidence, r_drop=outputs.r_drop)


def output_term(name, logits, other, batch, hparams):
  return hparams[name] * OUTPUT_TERMS[name](logits, other, batch['label'])


def distilled(network, teacher):
  """The term of what the teacher answered, if there is one."""
  if teacher is None or not network.config.distill.distill:
    return ()

  def term(logits, other, batch, hparams):
    del other
    theirs = batch[distill.TEACHER]
    if network.objective.regression:
      return hparams['distill'] * distill.distance(logits, theirs)
    return hparams['distill'] * distill.term(logits, theirs, batch['label'],
                                             network.config.distill.distill_temperature)

  return (term,)


def uphill(trained, gradients, hparams):
  return constraints.sharpest(trained, gradients, hparams['sam'])


def disturb(gradients, step, hparams, key):
  """Noise on the gradients of weights; what compression learns is left alone."""
  noisy = noise.gradient_noise(gradients['params'], hparams['gradient_noise'], step, key)
  return dict(gradients, params=noisy)
