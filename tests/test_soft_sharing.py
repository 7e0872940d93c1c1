"""Weights that gather around values which are learned with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import recipe, trees
from lepton_jax.compress import soft_sharing
from lepton_jax.compress.method import part
from lepton_jax.compress.quantize import cluster
from tests import LONG
from tests.test_train import run_steps

NATS = jax.jit(soft_sharing.nats, static_argnums=2)  # one program where there would be dozens


def test_the_likelihood_by_hand():
  kernel = jnp.array([[0.1, -0.2], [0.0, 0.5]])
  mixture = dict(mean=jnp.array([0.4, -0.3]), logit=jnp.log(jnp.array([3.0, 1.0])),
                 log_width=jnp.log(jnp.array([0.05, 0.1, 0.2])))
  share, mean = [0.8, 0.2 * 0.75, 0.2 * 0.25], [0, 0.4, -0.3]
  width = np.array([0.05, 0.1, 0.2]) + soft_sharing.NARROWEST * np.std(kernel)
  density = lambda w: sum(p / (s * np.sqrt(2 * np.pi)) * np.exp(-(w - m) ** 2 / (2 * s * s))
                          for p, m, s in zip(share, mean, width))
  # What is pruned, the zero, is no weight.
  wanted = -sum(np.log(density(w)) for w in (0.1, -0.2, 0.5))
  np.testing.assert_allclose(NATS(kernel, mixture, 0.8), wanted, rtol=1e-5)
  pull = -jax.grad(NATS)(kernel, mixture, 0.8)
  assert pull[0, 0] < 0 and pull[0, 1] < 0 and pull[1, 1] < 0 and pull[1, 0] == 0


def test_kernels_of_one_value_have_finite_gradients_and_large_ones_come_in_chunks(monkeypatch):
  for kernel in (jnp.zeros((4, 3)), jnp.ones((4, 3)), jnp.full((1, 1), 1e-30)):
    mixture = soft_sharing.first_mixture(kernel, 16)
    found = jax.grad(NATS, (0, 1))(kernel, mixture, 0.9)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
  monkeypatch.setattr(soft_sharing, 'CHUNK', 300)
  kernel = jax.random.normal(jax.random.key(0), (2 * soft_sharing.CHUNK + 5, 1))
  mixture = soft_sharing.first_mixture(kernel, 4)
  whole = NATS(kernel, mixture, 0.9)
  parts = sum(NATS(part, mixture, 0.9) for part in jnp.array_split(kernel, 7))
  np.testing.assert_allclose(whole, parts, rtol=1e-3)


def test_the_first_mixture_covers_the_kernel():
  kernel = jax.random.normal(jax.random.key(0), (40, 30))
  mixture = soft_sharing.first_mixture(kernel, 8)
  apart = float(kernel.max() - kernel.min()) / 8
  np.testing.assert_allclose(np.diff(mixture['mean']), apart, rtol=1e-4)
  np.testing.assert_allclose(mixture['mean'][0] - kernel.min(), apart / 2, rtol=1e-4)
  np.testing.assert_allclose(np.exp(mixture['log_width']), apart / 2, rtol=1e-4)


@pytest.mark.parametrize('model', ['mlp', *['lstm_classifier'] * LONG])
def test_weights_gather_and_lose_less_by_sharing(small, model):
  """The variance of weights around 15 values is a smaller part of theirs than without."""
  left = {}
  for strength in (0.0, 1e-4):
    config = small.replace(model=model, epochs=8, learning_rate=3e-3, soft_sharing=strength,
                           soft_sharing_zero=0.5)
    state, _, _ = run_steps(config, 200)
    kernels = {name: np.asarray(leaf) for name, leaf in trees.named(state.params).items()
               if trees.is_kernel(name)}
    errors = []
    for kernel in kernels.values():
      values = np.sort(np.asarray(cluster.k_means(jnp.asarray(kernel.ravel()), jnp.float32(15))))
      near = values[np.abs(kernel.ravel()[:, None] - values).argmin(1)]
      errors.append(np.mean(np.square(kernel.ravel() - near)) / np.var(kernel))
    left[strength] = np.mean(errors)
    if strength:
      learned = {name: part(trees.named(state.learned['soft_sharing']), name) for name in kernels}
      first = {name: soft_sharing.first_mixture(jnp.asarray(kernel), 16)
               for name, kernel in kernels.items()}
      for name, kernel in kernels.items():
        assert (NATS(jnp.asarray(kernel), learned[name], 0.5)
                < NATS(jnp.asarray(kernel), first[name], 0.5))
    else:
      assert 'soft_sharing' not in state.learned and 'soft_sharing' not in state.hparams
  assert left[1e-4] < 0.7 * left[0.0], left


def test_a_recipe_shares_once(small):
  stages = recipe.parse('share(1e-5,values=8):2,prune(0.5):1')
  one, two = recipe.configs(stages, small, {})
  assert one.soft_sharing.soft_sharing == 1e-5 and one.soft_sharing.soft_sharing_values == 8
  assert two.soft_sharing.soft_sharing == 0 and two.prune.prune_sparsity == 0.5
