"""Words in pieces: what is rare or unknown is read as parts that are known."""

import collections
import functools
import heapq

from lepton_jax.data import text
from lepton_jax.registry import TOKENIZERS

INSIDE = '##'  # before a piece that does not begin its word


@TOKENIZERS.register
def word_pieces():
  """Pieces by pairs that are most frequent (BPE, arXiv:1508.07909), read longest first (WordPiece).

  The vocabulary alone says how a word is read, as in arXiv:1609.08144 and arXiv:2012.15524: the
  longest piece that it begins with, then the longest that goes on.
  """
  return text.Tokenizer(learn, reader)


def learn(texts, size, min_count):
  """(<pad>, <unk>, characters, pieces in the order they were joined), `size` entries at most.

  Words rarer than `min_count` in `texts` teach nothing.
  """
  counts = collections.Counter(word for one in texts for word in text.tokens(one))
  words = [(parts(word), count) for word, count in counts.items()
           if count >= min_count and len(word) <= text.LONGEST]
  letters = collections.Counter()
  for word, count in words:
    for piece in word:
      letters[piece] += count
  found = dict.fromkeys(sorted(letters, key=lambda piece: (-letters[piece], piece))[:size - 2])
  pairs = Pairs(words)
  while len(found) < size - 2 and (pair := pairs.most_frequent()):
    found[pairs.join(pair)] = None
  return (text.PAD, text.UNKNOWN, *found)


def parts(word):
  """A word's characters, as pieces."""
  return [word[0], *(INSIDE + letter for letter in word[1:])]


class Pairs:
  """Neighbouring pieces of all words, and how often each pair occurs."""

  def __init__(self, words):
    self._words, self._counts = words, collections.Counter()
    self._places = collections.defaultdict(set)
    for place in range(len(words)):
      self._add(place, 1)
    self._heap = [(-count, pair) for pair, count in self._counts.items()]
    heapq.heapify(self._heap)

  def _add(self, place, sign):
    word, count = self._words[place]
    for pair in zip(word, word[1:]):
      self._counts[pair] += sign * count
      self._places[pair].add(place)

  def most_frequent(self):
    """The pair that occurs most, the first in the alphabet of equal ones; None if none is twice."""
    while self._heap:
      count, pair = heapq.heappop(self._heap)
      now = self._counts[pair]
      if now == -count:
        return pair if now > 1 else None
      if now > 1:  # it occurs less often since it was put here
        heapq.heappush(self._heap, (-now, pair))
    return None

  def join(self, pair):
    """Makes the pair one piece in all words; returns it."""
    piece = pair[0] + pair[1].removeprefix(INSIDE)
    touched = set()
    for place in sorted(self._places[pair]):
      word, count = self._words[place]
      self._add(place, -1)
      self._words[place] = joined(word, pair, piece), count
      self._add(place, 1)
      touched.update(zip(self._words[place][0], self._words[place][0][1:]))
    del self._counts[pair]
    for other in touched:
      heapq.heappush(self._heap, (-self._counts[other], other))
    return piece


def joined(word, pair, piece):
  """The pieces of a word with every `pair` made one `piece`."""
  found, i = [], 0
  while i < len(word):
    both = tuple(word[i:i + 2]) == pair
    found.append(piece if both else word[i])
    i += 2 if both else 1
  return found


def reader(vocabulary):
  """text -> its pieces; a word of which some part is no piece, or which is longer than
  `text.LONGEST`, is one unknown token."""
  known = frozenset(vocabulary)
  # Bounded, for a service reads texts that it does not choose.
  pieces = functools.lru_cache(maxsize=100_000)(lambda word: tuple(apart(word, known)))
  return lambda one: [piece for word in text.tokens(one) for piece in pieces(word)]


def apart(word, known):
  """A word's pieces, the longest first; [word] where it cannot be read in pieces."""
  found, start = [], 0
  while start < len(word) <= text.LONGEST:
    for end in range(len(word), start, -1):
      piece = (INSIDE if start else '') + word[start:end]
      if piece in known:
        break
    else:
      return [word]
    found.append(piece)
    start = end
  return found or [word]
