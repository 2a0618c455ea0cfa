"""One Unicode form of text, and what a word is in scripts with spaces between words and without.

The one form has composed letters and no characters that nobody sees. Everything that is compared, indexed or sent to a service is
brought into it where it enters. Sampled tokens are never rewritten: what is read from them is.
"""

import re
import sys
import unicodedata
from itertools import groupby

# Controls but white space, soft hyphen, zero-width space, direction marks, word joiner, invisible operators, byte order mark,
# placeholders, vowels that are never drawn.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u17b4\u17b5\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffc\U0001d173-\U0001d17a]"
)
# Joiners, variation selectors and tags are seen in what stands before them: words of Persian and Hindi, emoji and flags are other
# ones without them. Behind a letter of these or at a border they are nothing.
_PLAIN = "A-Za-z\u00c0-\u024f\u0370-\u052f\\s"
_JOINERS = re.compile(
    f"(?<![^{_PLAIN}0-9])[\u200c\u200d]+|(?<=\\w)[\u200c\u200d]+(?![^{_PLAIN}])|(?<![^{_PLAIN}])[\ufe00-\ufe0f\U000e0100-\U000e01ef]+"
    "|(?<![\U0001f3f4\U000e0020-\U000e007e])[\U000e0000-\U000e007f]+"
)
# Blanks that Unicode calls letters or symbols, white space at the ends.
_BLANKS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u2800\u3164\uffa0"
# Fillers and joiners that are seen only beside another character.
_ALONE = frozenset("\u115f\u1160\u2800\u3164\uffa0")


def one_form(text: str) -> str:
    """Return the text in NFC without invisible characters and white space at its ends; "" where nothing can be seen in it.

    Composed and decomposed letters become equal, and a pasted zero-width space is no letter. Symbols, vowel signs and emoji stay,
    and so does white space inside the text.
    """
    if text.isascii():
        return (text if text.isprintable() else _INVISIBLE.sub("", text)).strip()
    text = composed(_JOINERS.sub("", _INVISIBLE.sub("", text))).strip(_BLANKS)
    return text if any(_seen(char) for char in text) else ""


def composed(text: str) -> str:
    """Return the text in NFC. Python brings marks behind a letter into their order by insertion, in time that grows with the
    square of their number: 80,000 take seconds. So long runs are given to it in their order, which is the same text."""
    return unicodedata.normalize("NFC", _MANY_MARKS.sub(lambda found: _in_order(found[0]), text))


def _in_order(marks: str) -> str:
    """Marks in Unicode's canonical order (UAX 15): sorted by class between those of class 0, equal ones as they stood."""
    parts = "".join(unicodedata.normalize("NFD", char) for char in marks)
    ordered: list[str] = []
    for moves, run in groupby(parts, key=lambda char: unicodedata.combining(char) > 0):
        found = list(run)
        ordered += sorted(found, key=unicodedata.combining) if moves else found
    return "".join(ordered)


def _seen(char: str) -> bool:
    if char in _ALONE or "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef":
        return False
    return unicodedata.category(char) not in ("Cc", "Cf", "Zs", "Zl", "Zp")


# --------------------------------------------------------------------------------------------------------- words


def _marks() -> str:
    """Every combining mark, as the inside of a class of characters: Python's \\w leaves vowel signs out."""
    ranges: list[list[int]] = []
    for code in range(0x300, 0x1F000):
        if unicodedata.category(chr(code))[0] == "M":
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


MARKS = sys.intern(_marks())
"""The inside of a class of characters: combining marks."""
_MANY_MARKS = re.compile(f"[{MARKS}]{{31,}}")  # no script stacks as many; UAX 15 allows 30 in a stream

# Han, kana, Bopomofo, Yi; Thai, Lao, Myanmar, Khmer, the Tai scripts, Balinese, Javanese. Digits of these scripts are left out.
UNSPACED = (
    "\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f"
    "\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua48c\uf900-\ufaff\uff66-\uff9f\U0001aff0-\U0001b16f"
    "\U00020000-\U000323af\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf\u1000-\u103f\u1050-\u108f\ua9e0-\ua9ef"
    "\uaa60-\uaa7f\u1780-\u17d3\u17d7\u17dc\u17dd\u1950-\u1974\u1980-\u19cf\u1a20-\u1a7f\uaa80-\uaadf\u1b00-\u1b4b\ua980-\ua9c0"
)
"""The inside of a class of characters: scripts that put no space between words."""

CLUSTER = f"[{UNSPACED}](?:[{MARKS}]|(?<=[\u17d2\u1039])[{UNSPACED}])*"
"""A pattern: a character of such a script with its marks. Khmer and Myanmar stack consonants by U+17D2 and U+1039."""

_UNSPACED = re.compile(f"[{UNSPACED}]")
_PAIR = re.compile(f"{CLUSTER}(?:{CLUSTER})?")
_CLUSTERS = re.compile(CLUSTER)


def clusters(text: str) -> list[str]:
    """Return the characters of scripts without spaces, each with its marks, in order."""
    return _CLUSTERS.findall(text)


def mostly_unspaced(text: str) -> bool:
    """Whether more than half of the letters are of scripts without spaces between words."""
    return not text.isascii() and 2 * len(_UNSPACED.findall(text)) > sum(map(str.isalpha, text))


def count_words(text: str) -> int:
    """Return the number of words. Where a script has no spaces between them, two characters count as one."""
    return len(text.split()) if text.isascii() else sum(_words_in(piece) for piece in text.split())


def first_words(text: str, most: int) -> str | None:
    """Return the first `most` words of a text, as count_words counts them, with single spaces; None where it has no more."""
    pieces: list[str] = []
    left = most
    for piece in text.split():
        count = 1 if piece.isascii() else _words_in(piece)
        if count > left:
            return " ".join([*pieces, *([_start(piece, left)] if left else [])])
        pieces.append(piece)
        left -= count
    return None


def windows(text: str, most: int, overlap: int) -> list[str]:
    """Return a text in parts of `most` words, as count_words counts them, with single spaces; the text itself where it has no
    more.

    Neighbours share at least `overlap` words, so that any `overlap` + 1 words in a row stand whole in one part. Parts are as few
    as can be, spread evenly. Raises ValueError where overlap is not below most.
    """
    if not 0 <= overlap < most:
        raise ValueError(f"overlap={overlap} of parts of {most} words: it must be below that")
    units = [unit for piece in text.split() for unit in _units(piece)]
    if len(units) <= most:
        return [text]
    gaps = -(-(len(units) - most) // (most - overlap))
    starts = [number * (len(units) - most) // gaps for number in range(gaps + 1)]
    return ["".join(units[start : start + most]).strip() for start in starts]


def _units(piece: str) -> list[str]:
    """A piece between spaces as its words, which begin with a space where one stands before them."""
    starts = [] if piece.isascii() else [pair.start() for pair in _PAIR.finditer(piece)]
    starts = [0, *starts[1:]]  # what stands behind a pair belongs to it
    parts = [piece[start:end] for start, end in zip(starts, [*starts[1:], len(piece)], strict=True)]
    return [" " + parts[0], *parts[1:]]


def _words_in(piece: str) -> int:
    """Words of a piece between spaces: one, and one for each two characters of scripts without spaces."""
    pairs = sum(1 for _ in _PAIR.finditer(piece))
    return max(1, pairs)


def _start(piece: str, most: int) -> str:
    """The piece up to its word `most`; whole where it has no more."""
    for number, pair in enumerate(_PAIR.finditer(piece), start=1):
        if number == most:
            return piece[: pair.end()]
    return piece
