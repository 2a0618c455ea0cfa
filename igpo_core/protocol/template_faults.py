"""Why a chat template cannot be continued token for token, in words, with the cure."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from igpo_core.errors import ConfigError

EDIT = "into the model's chat_template.jinja"


class Lost(ConfigError):
    """The system message or the question does not reach the policy."""


@dataclass(frozen=True)
class Piece:
    """A part of a conversation's text, and what it is."""

    what: str
    text: str


def rewrites(how: str) -> ConfigError:
    """The refusal of a template that changes turns which were sampled."""
    return ConfigError(
        f"this chat template rewrites earlier turns: {how}. A sampled history could not be continued token for token: write "
        f"{{{{ message.content }}}} alone for an assistant's message {EDIT}, or use another model"
    )


def opens_the_thought(generation_prompt: str) -> ConfigError:
    """The refusal of a template that opens a thought before a turn and does not keep it there."""
    opened = generation_prompt[generation_prompt.rindex("<think>") :]
    return ConfigError(
        f"this chat template opens the thought itself{' and closes it' if '</think>' in opened else ''}: its generation "
        f"prompt ends with {opened!r}, and a turn that it is given back does not begin with that: take that out of the end of "
        "the model's chat_template.jinja"
    )


def lost_turn(whole: str, prompt: str, thought: str, argument: str, after: str) -> ConfigError:
    """The refusal of a template that does not write a turn behind its prompt as it is.

    after: the prompt behind the question.
    """
    rest = whole[agree(whole, prompt) :]
    if argument not in rest:
        return rewrites("it drops them once a tool has replied")
    opens = "<think>" in after and not whole.startswith(prompt)
    if thought not in rest and not (opens and "</think>" in after):
        return rewrites("it drops their thoughts (<think> .. </think>)")
    if opens:
        return opens_the_thought(after)
    if "<think>" not in rest + after or "</think>" not in rest:
        return rewrites("it takes <think> and </think> out of them")
    return rewrites(difference(whole, prompt + "<think>"))


def no_end(behind: str, eos: str) -> ConfigError:
    """The refusal of a template that writes no token behind a turn at which sampling could stop."""
    return ConfigError(
        f"this chat template does not end a turn with the eos_token {eos!r} or another token at which sampling could stop: "
        f"behind a turn stands {behind[:40]!r}; write {{{{ eos_token }}}} behind an assistant's message {EDIT}"
    )


def first_difference(whole: str, wanted: str, pieces: Sequence[Piece]) -> ConfigError:
    """What is wrong with the template's text `whole`, where the pieces, `wanted` when joined, are another one."""
    at = agree(whole, wanted)
    ends = list(itertools.accumulate(len(piece.text) for piece in pieces))
    number = next((i for i, end in enumerate(ends) if at < end), len(pieces) - 1)
    piece, start = pieces[number], ends[number] - len(pieces[number].text)
    if piece.what == "an assistant's turn":
        return rewrites(difference(whole, wanted))
    from markupsafe import escape

    behind = pieces[number + 1].text if number + 1 < len(pieces) else ""
    if not piece.what.startswith("the"):
        how = f"{piece.what} is not always the same: {difference(whole, wanted)}"
    elif whole[start:].startswith(json.dumps(piece.text, ensure_ascii=False)[1:-1]):
        how = f"it writes {piece.what} as JSON, with its quotes and line breaks escaped: {difference(whole, wanted)}"
    elif whole[start:].startswith(str(escape(piece.text))):
        how = f"it escapes {piece.what} as HTML: {difference(whole, wanted)}"
    elif behind and at > start and whole[at:].startswith(behind):
        how = f"it cuts {piece.what} after {at - start} characters"
    else:
        how = f"it changes {piece.what}: {difference(whole, wanted)}"
    return ConfigError(
        f"this chat template does not keep text as it is, and {how}. A sampled history, to which text is added as it is, "
        f"would not be what the template gives: write {{{{ message.content }}}} alone in its place {EDIT}"
    )


def times(text: str, part: str) -> str:
    """How often a part was written that should be there once, as a verb."""
    count = text.count(part)
    return "drops" if count == 0 else f"writes {count} times"


def agree(left: str, right: str) -> int:
    """Characters that both begin with."""
    pairs = zip(left, right, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def difference(whole: str, wanted: str) -> str:
    """Where the template's text leaves what was expected, with some characters before."""
    at = agree(whole, wanted)
    start = max(0, at - 20)
    return f"it writes {whole[start : at + 25]!r} where {wanted[start : at + 25]!r} is expected"
