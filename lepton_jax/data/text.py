"""Words to numbers: tokens, a vocabulary of the training part, padded arrays."""

import collections
import functools
import inspect
import re
import typing

import numpy as np

from lepton_jax.errors import UserError
from lepton_jax.registry import TOKENIZERS

PAD, UNKNOWN = '<pad>', '<unk>'
LONGEST = 100  # characters of a word that is taken apart
TOKEN = re.compile(r"[\w']+|[^\w\s]")


class Tokenizer(typing.NamedTuple):
  """How texts become tokens.

  Attributes:
    learn: (texts, most entries, least count of a word) -> vocabulary, which begins with <pad> and
      <unk>.
    reader: vocabulary -> (text -> its tokens); tokens out of the vocabulary are unknown.
    parts: vocabulary -> (token -> int32[n], numbers of what it consists of, then 0), where a token
      is read with its parts.
  """
  learn: typing.Callable
  reader: typing.Callable
  parts: typing.Callable | None = None

  def numbers(self, vocabulary, most):
    """text -> int32[tokens], of `most` tokens; with parts int32[tokens, 1 + n], the token first."""
    # A text's own '<pad>' is an unknown word, not an end.
    number = {word: i for i, word in enumerate(vocabulary) if i}
    read, parts = self.reader(vocabulary), self.parts and self.parts(vocabulary)

    def of(text):
      found = read(text)[:most]
      alone = np.array([number.get(token, 1) for token in found], np.int32)
      if parts is None or not found:
        return alone
      return np.column_stack([alone, np.stack([parts(token) for token in found])])

    return of


def tokens(text):
  """Lower-case words (with their apostrophes) and single punctuation marks."""
  return TOKEN.findall(text.lower())


# A tokenizer whose tokens are words takes the function that finds them in a text, `split`.


@TOKENIZERS.register
def words(split=tokens):
  """Every word of the training part is a token, if it is frequent enough; others are unknown."""
  return Tokenizer(functools.partial(build_vocabulary, tokenize=split), lambda vocabulary: split)


def spaced(text):
  """Lower-case words as spaces separate them, so that tags written beside them fit."""
  return text.lower().split()


def build_vocabulary(texts, size, min_count, tokenize=tokens):
  """(<pad>, <unk>, words by falling count, then alphabet), `size` entries at most.

  Each word is at least `min_count` times in `texts`.
  """
  counts = collections.Counter(word for text in texts for word in tokenize(text)
                               if word not in (PAD, UNKNOWN))
  frequent = sorted((word for word, count in counts.items() if count >= min_count),
                    key=lambda w: (-counts[w], w))
  return (PAD, UNKNOWN, *frequent[:size - 2])


def encode(texts, numbers):
  """int32[n, longest, ...]: what `Tokenizer.numbers` made of each, 0 after the end.

  Raises UserError for a text without a single token, naming its place.
  """
  rows = []
  for place, text in enumerate(texts):
    rows.append(numbers(text))
    if not len(rows[-1]):
      raise UserError(f'example {place} has no word: {text!r}')
  width = rows[0].shape[1:] if rows else ()
  array = np.zeros((len(rows), max(map(len, rows), default=1), *width), np.int32)
  for i, row in enumerate(rows):
    array[i, :len(row)] = row
  return array


def alone(inputs):
  """int32[n, time]: the numbers of tokens without their parts."""
  return inputs if inputs.ndim == 2 else inputs[..., 0]


def tokenizer_of(options, tagged):
  """The Tokenizer of `config.Data` options; `tagged` where every word has a class.

  Raises UserError for tags on tokens that are not words.
  """
  make = TOKENIZERS.get(options.tokenizer)
  if tagged and 'split' not in inspect.signature(make).parameters:
    raise UserError(f'--tokenizer={options.tokenizer}: --task=tagging has a class for each word, '
                    f'and these tokens are not words')
  return make(split=spaced) if tagged else make()


def encode_splits(parts, options):
  """({split: (int32[n, time], label)}, vocabulary) of text splits.

  Only the words of the training part count. Raises UserError for tags on pieces of words.
  """
  tagged = parts['train'][1].ndim == 2
  size, least = options.vocabulary_size, options.vocabulary_min_count
  tokenizer = tokenizer_of(options, tagged)
  vocabulary = tokenizer.learn(parts['train'][0], size, least)
  numbers = tokenizer.numbers(vocabulary, options.max_length)
  encoded = {split: (encode(texts, numbers), label) for split, (texts, label) in parts.items()}
  if tagged:
    encoded = {split: (inputs, label[:, :inputs.shape[1]])
               for split, (inputs, label) in encoded.items()}
  return encoded, vocabulary
