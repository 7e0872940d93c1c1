"""What a weight is worth; the lowest scores are pruned first.

Each registered function is Evidence -> {kernel: score like the kernel}.
"""

import typing

import jax
import jax.numpy as jnp

from lepton_jax import trees
from lepton_jax.layers import platform
from lepton_jax.registry import SCORES


class Evidence(typing.NamedTuple):
  """What a score may look at.

  Attributes:
    kernels: {name: kernel}, those that are ranked.
    params: {name: array} of all parameters.
    state: the TrainState.
    tools: the method.Tools of the program.
    step: of the update; the batches from here on are looked at.
    batches: how many of them.
    key: of this update and no other.
    movement: {name: sum over updates of -w * gradient}; empty unless the score asks for it.
  """
  kernels: dict
  params: dict
  state: typing.Any
  tools: typing.Any
  step: int
  batches: int
  key: jax.Array
  movement: dict

  def over_batches(self, name, function):
    """The mean over batches of `function(w, gradient, () -> Hessian * gradient)`, by kernel.

    All of them are of the weights that count. `name` tells functions apart: each is compiled once.
    """
    chosen, loss = frozenset(self.kernels), self.tools.loss

    def of_batch(params, state, batch):
      gradient = lambda at: jax.grad(loss)(at, state, batch)
      found = gradient(params)
      only = lambda tree: {n: leaf for n, leaf in trees.named(tree).items() if n in chosen}

      def curved():
        with platform.using('portable'):  # not all of a CPU's own forms have second derivatives
          along = lambda at: trees.dot(gradient(at), jax.lax.stop_gradient(found))
          return only(jax.grad(along)(params))

      return function(only(params), only(found), curved)

    compiled, params = self.tools.once(name, of_batch), self.tools.counted(self.state)
    found = [compiled(params, self.state, self.tools.batch(self.step + i))
             for i in range(self.batches)]
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)


@SCORES.register
def random(evidence):
  """Uniform numbers: what every other score has to beat."""
  return {name: jax.random.uniform(jax.random.fold_in(evidence.key, i), kernel.shape)
          for i, (name, kernel) in enumerate(sorted(evidence.kernels.items()))}


@SCORES.register
def magnitude(evidence):
  """|w| (Han et al., arXiv:1506.02626)."""
  return {name: jnp.abs(kernel) for name, kernel in evidence.kernels.items()}


@SCORES.register
def saliency(evidence):
  """The mean of |w * gradient| over batches (first-order Taylor term, arXiv:1906.10771)."""
  return evidence.over_batches(
      'saliency', lambda w, g, _: {name: jnp.abs(w[name] * g[name]) for name in w})


@SCORES.register
def snip(evidence):
  """|w * mean gradient| (SNIP, arXiv:1810.02340); made for one update before training."""
  mean = evidence.over_batches('snip', lambda w, g, _: {name: w[name] * g[name] for name in w})
  return {name: jnp.abs(product) for name, product in mean.items()}


@SCORES.register
def grasp(evidence):
  """w * (Hessian * gradient) (GraSP, arXiv:2002.07376): low where removal helps the gradient flow.

  Made for one update before training.
  """
  return evidence.over_batches(
      'grasp', lambda w, g, hg: {name: w[name] * h for name, h in hg().items()})


@SCORES.register
def synflow(evidence):
  """|w * dR/dw|, R the sum of a network's answers with all weights positive (arXiv:2006.05467).

  It reads no data: inputs are ones, tokens those of a batch. Made for many updates before training.
  """
  chosen, outputs = frozenset(evidence.kernels), evidence.tools.outputs

  def score(params, state, batch):
    flow = lambda at: jnp.sum(outputs(jax.tree.map(jnp.abs, at), state, batch))
    found = trees.named(jax.grad(flow)(params))
    return {name: jnp.abs(leaf * found[name]) for name, leaf in trees.named(params).items()
            if name in chosen}

  compiled = evidence.tools.once('synflow', score)
  params, batch = evidence.tools.counted(evidence.state), evidence.tools.batch(evidence.step)
  return compiled(params, evidence.state, batch)


@SCORES.register
def movement(evidence):
  """The sum over updates of -w * gradient (arXiv:2005.07683): high where weights leave zero."""
  return evidence.movement
