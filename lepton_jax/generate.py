"""Text from a trained language model, character by character."""

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.errors import UserError


def text(trained, prompt, length, temperature=1.0, top_k=0, seed=0):
  """`length` characters that continue `prompt`; the same for the same seed.

  `trained` is a folder.Trained of running text. Temperature 0 takes the likeliest character each
  time; top_k > 0 draws among that many. Raises UserError for a run that is no language model or an
  empty prompt.
  """
  if not trained.data.stream:
    raise UserError(f'{trained.config.name()} is not a language model')
  if not prompt:
    raise UserError('the prompt is empty; give at least one character')
  network, characters = trained.network, trained.data.classes
  number = {c: i for i, c in enumerate(characters)}
  advance = jax.jit(network.continue_text)
  carry, logits = network.carry(1), None
  for character in prompt:
    entry = jnp.full((1, 1), number.get(character, 0), jnp.int32)
    logits, carry = advance(trained.weights, carry, entry, trained.hparams)
  rng, written = np.random.default_rng(seed), []
  for _ in range(length):
    chosen = draw(np.asarray(logits[0, -1], np.float64), temperature, top_k, rng)
    written.append(characters[chosen])
    entry = jnp.full((1, 1), chosen, jnp.int32)
    logits, carry = advance(trained.weights, carry, entry, trained.hparams)
  return ''.join(written)


def draw(logits, temperature, top_k, rng):
  """A class number from logits f64[classes].

  Number 0, the character that stands for unknown ones, is never drawn.
  """
  logits = logits.copy()
  logits[0] = -np.inf
  if temperature == 0:
    return int(logits.argmax())
  if top_k:
    logits[logits < np.sort(logits)[-min(top_k, len(logits))]] = -np.inf
  scaled = (logits - logits.max()) / temperature
  probability = np.exp(scaled) / np.exp(scaled).sum()
  return int(rng.choice(len(logits), p=probability))
