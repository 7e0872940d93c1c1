"""The recurrence itself: a scan over time, and the same with a gradient of its own."""

import functools

import jax
import jax.numpy as jnp

from lepton_jax.layers import platform


def plain(join, step, read, kernel, bias, gates, valid, states):
  """The reference. Time leads.

  Args:
    join: (input gates, recurrent gates) -> what the gates see, linear in both.
    step: (joined gates, states) -> states, element by element.
    read: state -> what is projected of it, element by element.
    kernel, bias: of the recurrent projection, [features, width] and [width].
    gates: [time, batch, width], the input projection of all steps.
    valid: bool[time, batch], the steps that exist, for each example the first ones, or None where
      all do.
    states: tuple of [batch, features] to start from.

  Returns (states after the last step, outputs[time, batch, features]).
  """
  def body(states, inputs):
    gate, exists = inputs
    projected = read(states[0]) @ kernel + bias
    new = elementwise(step, exists, join(gate, projected), states)
    return new, output(new[0], exists)

  return jax.lax.scan(body, states, (gates, valid))


def elementwise(step, exists, z, states):
  """The next states; a step that does not exist leaves them as they are."""
  new = step(z, states)
  if exists is None:
    return new
  return tuple(jnp.where(exists[:, None], n, old) for n, old in zip(new, states))


def output(h, exists):
  """The state, or 0 where the step does not exist."""
  return h if exists is None else jnp.where(exists[:, None], h, jnp.zeros_like(h))


def fused(join, step, read, kernel, bias, gates, valid, states):
  """`plain`, with little to remember and the kernel's gradient as one product over all steps.

  Differentiated by JAX, the scan would store every intermediate of a step, and each step backwards
  would add a product of its own to the kernel's gradient. Here a step stores its joined gates and
  its states; what is element by element is computed again. Reverse mode only.
  """
  # What they close over, such as the ends of a range, becomes an argument with a gradient.
  read, closed = jax.closure_convert(read, states[0])
  z = jax.eval_shape(lambda gate, h: join(gate, h @ kernel + bias), gates[0], states[0])
  step, inside = jax.closure_convert(step, z, states)
  return _fused(join, step, read, kernel, bias, gates, valid, (closed, inside), states)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _fused(join, step, read, kernel, bias, gates, valid, closed, states):
  read, step = open_again(read, step, closed)
  return plain(join, step, read, kernel, bias, gates, valid, states)


def open_again(read, step, closed):
  """Functions without the arguments that they closed over."""
  of_read, of_step = closed
  return lambda h: read(h, *of_read), lambda z, states: step(z, states, *of_step)


def _forward(join, step, read, kernel, bias, gates, valid, closed, states):
  read, step = open_again(read, step, closed)

  def body(states, inputs):
    gate, exists = inputs
    z = join(gate, read(states[0]) @ kernel + bias)
    new = elementwise(step, exists, z, states)
    return new, (output(new[0], exists), z, new[1:])

  last, (outputs, z, others) = jax.lax.scan(body, states, (gates, valid))
  # Steps that do not exist come last, so each that does finds its old state one place before.
  before = tuple(jnp.concatenate([first[None], after])[:-1]
                 for first, after in zip(states, (outputs, *others)))
  return (last, outputs), (kernel, gates[:0], valid, closed, before, z)


def _backward(join, step, read, saved, gradient):
  kernel, gates, valid, closed, before, z = saved
  last, outputs = gradient
  template = jax.ShapeDtypeStruct((*z.shape[1:-1], gates.shape[-1]), z.dtype)
  # joined gates' gradient -> (input gates', recurrent gates')
  parts = jax.linear_transpose(join, template, template)

  def body(carry, inputs):
    states, collected = carry
    gradient, exists, old, z = inputs
    advance = lambda z, old, *of_step: elementwise(
        lambda z, old: step(z, old, *of_step), exists, z, old)
    _, back = jax.vjp(advance, z, old, *closed[1])
    joined, old_gradient, *of_step = back((states[0] + output(gradient, exists), *states[1:]))
    _, read_back = jax.vjp(read, old[0], *closed[0])
    h, *of_read = read_back(parts(joined)[1] @ kernel.T)
    states = (old_gradient[0] + h, *old_gradient[1:])
    return (states, jax.tree.map(jnp.add, collected, (of_read, of_step))), joined

  start = last, jax.tree.map(jnp.zeros_like, closed)
  (first, collected), joined = jax.lax.scan(body, start, (outputs, valid, before, z), reverse=True)
  gates, projected = jax.vmap(parts)(joined)
  h = jax.vmap(lambda h: read(h, *closed[0]))(before[0])
  return (_product_summed(h, projected), projected.sum((0, 1)), gates, None, collected, first)


def _product_summed(h, projected):
  """Sum over time and batch of h[time, batch, features] times projected[time, batch, width].

  Flat on a CPU alone, for the reasons of product.product.
  """
  if not platform.own_forms():
    return jnp.tensordot(h, projected, ((0, 1), (0, 1)))
  return h.reshape(-1, h.shape[-1]).T @ projected.reshape(-1, projected.shape[-1])


_fused.defvjp(_forward, _backward)
