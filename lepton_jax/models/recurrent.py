"""Recurrent networks over text, series and images read row by row."""

import inspect

import flax.linen as nn
import jax.numpy as jnp

from lepton_jax import layers
from lepton_jax.errors import UserError
from lepton_jax.layers import recurrent
from lepton_jax.models import HEAD, head_init
from lepton_jax.registry import MODELS


class RecurrentNetwork(nn.Module):
  """Embedding, layers of one or two directions with dropout, pooling over time, a head.

  The embedding is for tokens; dropout comes before and between the layers. Input is
  int32[batch, time] tokens, of which 0 is padding at the end; f32[batch, time, features]; or images
  f32[batch, height, width, channels], whose rows are the steps. Output is [batch, outputs], or with
  `pooling` None, one for every step, [batch, time, outputs].
  """
  kind: str
  outputs: int
  hidden: int = 128
  depth: int = 1
  bidirectional: bool = False
  pooling: str | None = 'last'
  activation: str = 'tanh'
  norm: str = 'none'
  vocabulary: int = 0
  embedding: int = 128
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, training):
    x, valid = self.read(x, training)
    found = [x]
    for i in range(self.depth):
      x = jnp.concatenate(found, -1)
      if i:
        x = layers.Dropout(name=f'dropout{i}')(x, training)
      found = self.directions(x, valid, training, i + 1)
    if self.pooling == 'last':
      # Each direction's last step: the backward one ends at the first word.
      found = [recurrent.pool_steps(found[0], valid, 'last'), *(back[:, 0] for back in found[1:])]
    elif self.pooling is not None:
      found = [recurrent.pool_steps(one, valid, self.pooling) for one in found]
    x = jnp.concatenate(found, -1)
    x = layers.Dropout(name='dropout')(x, training)
    return layers.Dense(self.outputs, kernel_init=head_init, name=HEAD)(x)

  def read(self, x, training):
    """Steps f32[batch, time, features] and bool[batch, time], which of them exist."""
    if jnp.issubdtype(x.dtype, jnp.integer):
      words = layers.Embed(self.vocabulary, self.embedding, self.dtype, name='embed')(x)
      return layers.Dropout(name='dropout0')(words, training), layers.exists(x)
    x = x.reshape(*x.shape[:2], -1)
    return x, jnp.ones(x.shape[:2], bool)

  def directions(self, x, valid, training, number):
    """[outputs of one layer forward, and of one backward where the network reads both ways]."""
    def layer(name, x):
      return recurrent.Recurrent(self.kind, self.hidden, self.activation, self.norm == 'layer',
                                 name=f'{name}{number}')(x, valid, training)[0]
    forward = layer('forward', x)
    if not self.bidirectional:
      return [forward]
    backward = recurrent.reverse(layer('backward', recurrent.reverse(x, valid)), valid)
    return [forward, backward]


def takes(function):
  """Gives a registered function of `**options` the options of `function`, for flags to find."""
  def wrap(registered):
    parameters = [p for p in inspect.signature(function).parameters.values()
                  if p.kind is inspect.Parameter.KEYWORD_ONLY]
    registered.__signature__ = inspect.Signature(parameters)
    return registered
  return wrap


def classifier(kind, bidirectional=False, *, outputs, vocabulary=0, hidden=128, depth=1,
               embedding=128, pooling='last', activation='tanh', norm='none', dropout=0.0,
               recurrent_dropout=0.0, dtype='float32'):
  """One answer a sequence."""
  check_norm(norm)
  return RecurrentNetwork(kind, outputs, hidden, depth, bidirectional, pooling, activation, norm,
                          vocabulary, embedding, dtype)


def tagger(kind, bidirectional=False, *, outputs, vocabulary=0, hidden=128, depth=1, embedding=128,
           activation='tanh', norm='none', dropout=0.0, recurrent_dropout=0.0, dtype='float32'):
  """One answer a step."""
  check_norm(norm)
  return RecurrentNetwork(kind, outputs, hidden, depth, bidirectional, None, activation, norm,
                          vocabulary, embedding, dtype)


def check_norm(norm):
  """Statistics of a batch make no sense within a sequence of changing length."""
  if norm not in ('layer', 'none'):
    raise UserError(f'--norm={norm}: recurrent networks take layer or none')


@MODELS.register
@takes(classifier)
def elman_classifier(**options):
  """Simple recurrent network; --activation may be tanh, sigmoid or relu."""
  return classifier('elman', **options)


@MODELS.register
@takes(classifier)
def gru_classifier(**options):
  """Gated recurrent units."""
  return classifier('gru', **options)


@MODELS.register
@takes(classifier)
def lstm_classifier(**options):
  """Long short-term memory; an image is read row by row."""
  return classifier('lstm', **options)


@MODELS.register
@takes(classifier)
def bilstm_classifier(**options):
  """LSTM in both directions."""
  return classifier('lstm', True, **options)


@MODELS.register
@takes(tagger)
def elman_tagger(**options):
  """Simple recurrent network with an answer a step."""
  return tagger('elman', **options)


@MODELS.register
@takes(tagger)
def gru_tagger(**options):
  """Gated recurrent units with an answer a step."""
  return tagger('gru', **options)


@MODELS.register
@takes(tagger)
def lstm_tagger(**options):
  """LSTM with an answer a step."""
  return tagger('lstm', **options)


@MODELS.register
@takes(tagger)
def bilstm_tagger(**options):
  """LSTM in both directions with an answer a step."""
  return tagger('lstm', True, **options)


class LanguageModel(nn.Module):
  """Predicts the next of int32[batch, time] tokens at every step: [batch, time, vocabulary].

  The state after the last step is kept in collection 'carry' and continued by the next call.
  """
  kind: str
  vocabulary: int
  hidden: int
  depth: int
  embedding: int
  norm: str
  tied: bool
  dtype: str

  @nn.compact
  def __call__(self, x, training):
    embed = layers.Embed(self.vocabulary, self.embedding, self.dtype, name='embed')
    x = embed(x)
    for i in range(self.depth):
      x = layers.Dropout(name=f'dropout{i}')(x, training)
      layer = recurrent.Recurrent(self.kind, self.hidden, layer_norm=self.norm == 'layer',
                                  name=f'forward{i + 1}')
      carry = self.variable('carry', f'layer{i + 1}', layer.zero_states, x)
      x, last = layer(x, None, training, carry.value)
      if self.is_mutable_collection('carry') and not self.is_initializing():
        carry.value = last
    x = layers.Dropout(name='dropout')(x, training)
    if self.tied:
      return embed.attend(x)
    return layers.Dense(self.vocabulary, kernel_init=head_init, name=HEAD)(x)


@MODELS.register
def lstm_lm(*, outputs, vocabulary, hidden=256, depth=1, embedding=64, norm='none', tied=False,
            dropout=0.0, recurrent_dropout=0.0, dtype='float32'):
  """LSTM language model; with --tied the embedding, as wide as the state, is the output layer."""
  check_norm(norm)
  if tied and embedding != hidden:
    raise UserError(
        f'--tied needs --embedding equal to --hidden; they are {embedding} and {hidden}')
  del outputs
  return LanguageModel('lstm', vocabulary, hidden, depth, embedding, norm, tied, dtype)


@MODELS.register
@takes(classifier)
def elman_regressor(**options):
  """Simple recurrent network that predicts values."""
  return classifier('elman', **options)


@MODELS.register
@takes(classifier)
def gru_regressor(**options):
  """Gated recurrent units that predict values."""
  return classifier('gru', **options)


@MODELS.register
@takes(classifier)
def lstm_regressor(**options):
  """LSTM that predicts values, such as the next of a series."""
  return classifier('lstm', **options)


@MODELS.register
@takes(classifier)
def bilstm_regressor(**options):
  """LSTM in both directions that predicts values."""
  return classifier('lstm', True, **options)
