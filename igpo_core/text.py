"""One Unicode form of text: composed letters, and no characters that nobody sees."""

import re
import unicodedata

# Soft hyphen, zero-width space, direction marks, word joiner, invisible operators, byte order mark. The joiners U+200C and U+200D
# and the tags of flags are kept: words of Persian and Hindi and many emoji are other ones without them.
_INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
# Fillers and joiners that are seen only beside another character.
_ALONE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


def one_form(text: str) -> str:
    """Return the text in NFC without invisible characters and white space at its ends; "" where nothing can be seen in it.

    Composed and decomposed letters become equal, and a pasted zero-width space is no letter. Symbols, vowel signs and emoji stay.
    """
    if text.isascii():
        return text.strip()
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text)).strip()
    return text if any(_seen(char) for char in text) else ""


def _seen(char: str) -> bool:
    if char in _ALONE or "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef":
        return False
    return unicodedata.category(char) not in ("Cc", "Cf", "Zs", "Zl", "Zp")
