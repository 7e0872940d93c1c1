"""The recurrence itself: a scan over time, and the same with a gradient of its own."""

import functools

import jax
import jax.numpy as jnp


def plain(join, step, kernel, bias, gates, valid, keep, states):
  """The reference. Time leads.

  Args:
    join: (input gates, recurrent gates) -> what the gates see, linear in both.
    step: (joined gates, states) -> states, element by element.
    kernel, bias: of the recurrent projection, [features, width] and [width].
    gates: [time, batch, width], the input projection of all steps.
    valid: bool[time, batch], the steps that exist, for each example the first ones, or None where all do.
    keep: [batch, features], what the state is multiplied by before it is projected, or None.
    states: tuple of [batch, features] to start from.

  Returns (states after the last step, outputs[time, batch, features]).
  """
  def body(states, inputs):
    gate, exists = inputs
    new = elementwise(step, exists, join(gate, project(kernel, bias, states[0], keep)), states)
    return new, output(new[0], exists)

  return jax.lax.scan(body, states, (gates, valid))


def project(kernel, bias, h, keep):
  """The recurrent gates [batch, width]."""
  return (h if keep is None else h * keep) @ kernel + bias


def elementwise(step, exists, z, states):
  """The next states; a step that does not exist leaves them as they are."""
  new = step(z, states)
  return new if exists is None else tuple(jnp.where(exists[:, None], n, old) for n, old in zip(new, states))


def output(h, exists):
  """The state, or 0 where the step does not exist."""
  return h if exists is None else jnp.where(exists[:, None], h, jnp.zeros_like(h))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def fused(join, step, kernel, bias, gates, valid, keep, states):
  """`plain`, with little to remember and the kernel's gradient as one product over all steps.

  Differentiated by JAX, the scan would store every intermediate of a step, and each step backwards
  would add a product of its own to the kernel's gradient. Here a step stores its joined gates and its
  states; what is element by element is computed again. Reverse mode only, and `keep` gets no gradient.
  """
  return plain(join, step, kernel, bias, gates, valid, keep, states)


def _forward(join, step, kernel, bias, gates, valid, keep, states):
  def body(states, inputs):
    gate, exists = inputs
    z = join(gate, project(kernel, bias, states[0], keep))
    new = elementwise(step, exists, z, states)
    return new, (output(new[0], exists), z, new[1:])

  last, (outputs, z, others) = jax.lax.scan(body, states, (gates, valid))
  # Steps that do not exist come last, so each that does finds its old state one place before.
  before = tuple(jnp.concatenate([first[None], after])[:-1] for first, after in zip(states, (outputs, *others)))
  return (last, outputs), (kernel, gates[:0], valid, keep, before, z)


def _backward(join, step, saved, gradient):
  kernel, gates, valid, keep, before, z = saved
  last, outputs = gradient
  template = jax.ShapeDtypeStruct((*z.shape[1:-1], gates.shape[-1]), z.dtype)
  parts = jax.linear_transpose(join, template, template)  # joined gates' gradient -> (input gates', recurrent gates')

  def body(states, inputs):
    gradient, exists, old, z = inputs
    _, back = jax.vjp(functools.partial(elementwise, step, exists), z, old)
    joined, old = back((states[0] + output(gradient, exists), *states[1:]))
    h = parts(joined)[1] @ kernel.T
    return (old[0] + (h if keep is None else h * keep), *old[1:]), joined

  first, joined = jax.lax.scan(body, last, (outputs, valid, before, z), reverse=True)
  gates, projected = jax.vmap(parts)(joined)
  flat = projected.reshape(-1, projected.shape[-1])
  h = (before[0] if keep is None else before[0] * keep).reshape(-1, kernel.shape[0])
  return h.T @ flat, flat.sum(0), gates, None, None, first


fused.defvjp(_forward, _backward)
