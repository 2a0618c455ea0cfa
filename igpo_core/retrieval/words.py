"""Which words BM25 indexes of a passage and asks for with a query, in three kinds.

Ordinary words are stems of words of two letters or more that are no English stop words.

Small words are the rest: stop words, single letters and digits, words with signs ("c++") and signs alone ("÷"). They are names in
a title, and in a query of few words: the film "It", the band "The The", the language "C". In a long question they are grammar,
and left out.

Pieces are of scripts without spaces between words (Han, kana, Thai, Lao, Khmer, Myanmar and others). Such a text is indexed by
single characters and by pairs, and asked for by pairs. Korean words are ordinary and give their pairs besides, since particles
are written to them.

Words of other scripts are ordinary as they stand, with their vowel signs: only English words lose their endings.
"""

import itertools
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import Stemmer

from igpo_core.retrieval.alone import bm25s
from igpo_core.text import MARKS, UNSPACED, clusters, one_form

FEW = 3  # words of a query that is taken for a name
# They begin small words and pieces, so that none is an ordinary word, and that each kind stands together in alphabetical order.
SMALL, PIECE = " ", "  "

_STOP_WORDS = frozenset(bm25s.stopwords.STOPWORDS_EN)
_IN_WORD = f"\\w{MARKS}\u200c\u200d"
# A word with the signs behind it, without "'s" and its like; or what stands between spaces and has no letter or digit.
_PART = re.compile(
    f"([{_IN_WORD}]+(?:[+#]+(?![{_IN_WORD}]))?)(?:['\u2019][a-z](?![{_IN_WORD}]))?|(?<!\\S)([^\\s{_IN_WORD}]+)(?!\\S)"
)
_RUN = re.compile(f"([{UNSPACED}{MARKS}]*[{UNSPACED}][{UNSPACED}{MARKS}]*)|[^{UNSPACED}]+")
_HANGUL = re.compile("[\uac00-\ud7a3]{3,}")
# Radicals, ligatures, presentation forms, full-width and half-width forms: the same letters in another shape.
_SHAPES = re.compile("[\u2e80-\u2fdf\ufb00-\ufdff\ufe30-\ufefc\uff01-\uffee]+")
_POINTS = re.compile("[\u0591-\u05c7\u0640\u064b-\u0652\u0670]+")  # of Hebrew and Arabic, which most texts leave out


class Words(NamedTuple):
    """The words of a text, repeats included, in order."""

    pieces: list[str]
    small: list[str]
    ordinary: list[str]


class _Token(NamedTuple):
    """What a part of a text gives. asked: in place of `pieces`, in a query. stops: whether `small` is a stop word."""

    pieces: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    ordinary: tuple[str, ...] = ()
    stops: bool = False


class Tokenizer:
    """The words of passages and queries. It keeps what it learned of a word: make one for a corpus, or for some queries."""

    def __init__(self) -> None:
        self._stem = Stemmer.Stemmer("english").stemWord
        self._known: dict[tuple[str, str], _Token] = {}

    def passage(self, title: str, text: str) -> Words:
        """Every word of a title. Of a text all but stop words, which it keeps where it has no other words."""
        named, told = self._tokens(title), self._tokens(text)
        bare = not any(token.ordinary or token.pieces for token in told)
        whole = named + told
        small = [word for token in named for word in token.small]
        small += [word for token in told if token.small and (bare or not token.stops) for word in token.small]
        return Words(
            [word for token in whole for word in token.pieces],
            small,
            [word for token in whole for word in token.ordinary],
        )

    def query(self, text: str) -> Words:
        """The words of a query; small ones where it has no others, or no more than FEW words."""
        tokens = self._tokens(text)
        pieces = [word for token in tokens for word in token.asked]
        ordinary = [word for token in tokens for word in token.ordinary]
        names = len(tokens) <= FEW or not (pieces or ordinary)
        return Words(pieces, [word for token in tokens for word in token.small] if names else [], ordinary)

    def _tokens(self, text: str) -> list[_Token]:
        text = one_form(text)
        if not text.isascii():
            text = _SHAPES.sub(lambda found: unicodedata.normalize("NFKC", found[0]), _POINTS.sub("", text))
        found = []
        for part in _PART.findall(text.casefold()):
            token = self._known.get(part)
            if token is None:
                word, signs = part
                token = self._known[part] = self._word(word) if word else _Token(small=(SMALL + signs,))
            found.append(token)
        return found

    def _word(self, word: str) -> _Token:
        pieces: list[str] = []
        asked: list[str] = []
        small: list[str] = []
        ordinary: list[str] = []
        stops = False
        plain = word.rstrip("+#")
        for run in _RUN.finditer(plain):
            if run[1]:
                single = clusters(run[1])
                pairs = _pairs(single)
                pieces += single + pairs
                asked += pairs or single
            elif run[0] in _STOP_WORDS or (len(run[0]) == 1 and run[0].isascii()):
                small.append(SMALL + run[0])
                stops = run[0] in _STOP_WORDS
            else:
                ordinary.append(self._stem(run[0]))
                pairs = [pair for korean in _HANGUL.findall(run[0]) for pair in _pairs(korean)]
                pieces += pairs
                asked += pairs
        if plain != word:
            small.append(SMALL + word)
        return _Token(
            tuple(PIECE + piece for piece in pieces),
            tuple(PIECE + piece for piece in asked),
            tuple(small),
            tuple(ordinary),
            stops,
        )


def _pairs(characters: Sequence[str]) -> list[str]:
    return [first + second for first, second in itertools.pairwise(characters)]
