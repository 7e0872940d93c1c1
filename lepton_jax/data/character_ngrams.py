"""Words with their character n-grams: a rare or unknown word is known by how it is spelt."""

import collections
import functools

import numpy as np

from lepton_jax.data import text
from lepton_jax.registry import TOKENIZERS

MARK = '#'  # before an n-gram, which no word begins with
SIZES = (3, 4, 5)
LEAST = 3  # words that have an n-gram, for it to be one of the vocabulary
MOST = 24  # n-grams of a word; of words with more, the longest at the word's end are left out


@TOKENIZERS.register
def character_ngrams(split=text.tokens):
  """Every word stands for itself and for its n-grams of 3 to 5 characters (arXiv:1607.04606)."""
  return text.Tokenizer(functools.partial(learn, split), lambda vocabulary: split, parts)


def learn(split, texts, size, min_count):
  """(<pad>, <unk>, words, n-grams by the number of these words that have them), `size` at most.

  Words are as in `text.build_vocabulary` and get half of the places, so that there are n-grams.
  """
  words = text.build_vocabulary(texts, -(-size // 2), min_count, split)
  counts = collections.Counter(gram for word in words[2:] for gram in set(ngrams(word)))
  common = sorted((gram for gram, count in counts.items() if count >= LEAST),
                  key=lambda gram: (-counts[gram], gram))
  return (*words, *common[:size - len(words)])


def ngrams(word):
  """'#<so', '#so>', '#<so>': all that the word between < and > has, short ones first."""
  bounded = f'<{word}>'
  return [MARK + bounded[start:start + size] for size in SIZES
          for start in range(len(bounded) - size + 1)]


def parts(vocabulary):
  """word -> int32[24], the numbers of its n-grams, then 0."""
  number = {entry: i for i, entry in enumerate(vocabulary)}

  # Bounded, for a service reads texts that it does not choose.
  @functools.lru_cache(maxsize=100_000)
  def of(word):
    known = [number[gram] for gram in ngrams(word[:text.LONGEST]) if gram in number][:MOST]
    return np.array(known + [0] * (MOST - len(known)), np.int32)

  return of
