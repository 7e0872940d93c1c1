"""Words to numbers: tokens, a vocabulary of the training part, padded arrays."""

import collections
import re
import typing

import numpy as np

from lepton_jax.errors import UserError
from lepton_jax.registry import TOKENIZERS

PAD, UNKNOWN = '<pad>', '<unk>'
TOKEN = re.compile(r"[\w']+|[^\w\s]")


class Tokenizer(typing.NamedTuple):
  """How texts become tokens.

  Attributes:
    learn: (texts, most entries, least count of a word) -> vocabulary, which begins with <pad> and
      <unk>.
    reader: vocabulary -> (text -> its tokens); tokens out of the vocabulary are unknown.
  """
  learn: typing.Callable
  reader: typing.Callable


@TOKENIZERS.register
def words():
  """Every word of the training part is a token, if it is frequent enough; others are unknown."""
  return Tokenizer(build_vocabulary, lambda vocabulary: tokens)


def tokens(text):
  """Lower-case words (with their apostrophes) and single punctuation marks."""
  return TOKEN.findall(text.lower())


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


def encode(texts, vocabulary, max_length, tokenize=tokens):
  """int32[n, longest]: word numbers, 0 after the end; longer texts are cut at `max_length` words.

  Raises UserError for a text without a single token, naming its place.
  """
  # A text's own '<pad>' is an unknown word, not an end.
  number = {word: i for i, word in enumerate(vocabulary) if i}
  rows = []
  for place, text in enumerate(texts):
    row = [number.get(word, 1) for word in tokenize(text)[:max_length]]
    if not row:
      raise UserError(f'example {place} has no word: {text!r}')
    rows.append(row)
  array = np.zeros((len(rows), max(map(len, rows), default=1)), np.int32)
  for i, row in enumerate(rows):
    array[i, :len(row)] = row
  return array


def encode_splits(parts, options):
  """({split: (int32[n, time], label)}, vocabulary) of text splits.

  Only the words of the training part count. Raises UserError for tags on pieces of words.
  """
  tagged = parts['train'][1].ndim == 2
  size, least = options.vocabulary_size, options.vocabulary_min_count
  if tagged and options.tokenizer != 'words':
    raise UserError(f'--tokenizer={options.tokenizer}: --task=tagging has a class for each word, '
                    f'so it reads words')
  if tagged:
    vocabulary, tokenize = build_vocabulary(parts['train'][0], size, least, spaced), spaced
  else:
    tokenizer = TOKENIZERS.get(options.tokenizer)()
    vocabulary = tokenizer.learn(parts['train'][0], size, least)
    tokenize = tokenizer.reader(vocabulary)
  encoded = {split: (encode(texts, vocabulary, options.max_length, tokenize), label)
             for split, (texts, label) in parts.items()}
  if tagged:
    encoded = {split: (inputs, label[:, :inputs.shape[1]])
               for split, (inputs, label) in encoded.items()}
  return encoded, vocabulary
