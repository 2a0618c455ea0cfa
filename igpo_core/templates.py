"""What a chat template writes around questions, turns and tool replies, and why a template cannot be continued.

A sampled history is put together piece by piece. It has to be what the template gives for the whole conversation, so templates
are tried on conversations of several turns before anything is sampled, with plain text and with text that templates are known
to change (quotes, line breaks, markup, JSON, long text).
"""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from igpo_core.errors import ConfigError

ROUNDS_TRIED = 3  # of a turn and a reply: what is done to all turns but the last one shows in the second
EDIT = "into the model's chat_template.jinja"
# Text of questions, queries and replies that templates were seen to change or to treat in another way.
TRIED = (
    "He said \"yes\" & 'no': <b>{x}</b> {{ y }} {% z %} C:\\new\\1 &amp; #1 *c*",
    "1. Title\n\n  two  spaces \n\tand a tab\r\nlast line.",
    "Łódź, 東京, e\u0301, \u00a0\u200b\u2028, مرحبا, 😀",
    '{"name": "search", "arguments": {"query": "x"}}',
    '["a", 1]',
    "1984",
    "true",
    "word " * 20_000 + "end",
)


@dataclass(frozen=True)
class Frames:
    """What stands before and behind a question, and before and behind a tool's reply. shows_tools: whether the prompt tells of
    the tools."""

    question: tuple[str, str]
    reply: tuple[str, str]
    shows_tools: bool


@dataclass(frozen=True)
class _Piece:
    """A part of a conversation's text, and what it is."""

    what: str
    text: str


class Template:
    """The chat template of a tokenizer, with a system message and tools.

    turn: the text of a turn that thinks and calls a tool, from its thought and an argument. harmless: outside text as it is given
    to the template, without markers. end: the text of the token that ends a turn.
    """

    def __init__(
        self,
        tokenizer: Any,
        system: str,
        tools: Sequence[dict[str, Any]],
        *,
        turn: Callable[[str, str], str],
        harmless: Callable[[str], str],
        end: str,
    ) -> None:
        self._tokenizer, self._system, self._tools = tokenizer, system, list(tools)
        self._turn, self._harmless, self._end = turn, harmless, end

    def frames(self) -> Frames:
        """Raise ConfigError with the reason where a sampled history would not be what the template gives."""
        asked, seen = "PLACEHOLDER-Q", "PLACEHOLDER-R"
        prompt = self._render(self._messages(asked))
        if prompt.count(asked) != 1:
            raise ConfigError(
                f"this chat template {_times(prompt, asked)} the user's question: write {{{{ message.content }}}}, text and no "
                f"list of parts, once for a user message {EDIT}"
            )
        before, after = prompt.split(asked)
        self._require_no_thought(after)
        if self._render(self._messages(asked, system="another")) == prompt:
            raise ConfigError(
                "this chat template drops the system message, which tells the policy how to think, call tools and answer: write "
                f"{{{{ message.content }}}} for a system message {EDIT}"
            )
        turn = self._turn("PLACEHOLDER-T", "PLACEHOLDER-S")
        whole = self._render(self._messages(asked, [(turn, seen)]))
        self._require_kept(whole, prompt, turn)
        behind = whole[len(prompt) + len(turn) :]
        self._require_end(behind, prompt, after)
        behind = behind[len(self._end) :]
        if behind.count(seen) != 1:
            raise ConfigError(
                f"this chat template {_times(behind, seen)} the tool's reply: write {{{{ message.content }}}} once for a message "
                f"of the role tool {EDIT}"
            )
        first, last = behind.split(seen)
        self._require_no_thought(last)
        without = self._render(self._messages(asked), with_tools=False)
        frames = Frames((before, after), (first, last), shows_tools=without != prompt)
        self._require_same(frames, asked, turn, seen)
        self._require_same(frames, asked, turn.replace("\n", " "), seen)  # as a policy may write it too
        for text in TRIED:
            plain = self._harmless(text).strip()
            self._require_same(frames, plain, self._turn(plain, plain), plain)
        return frames

    def _messages(
        self, question: str, rounds: Sequence[tuple[str, str]] = (), system: str | None = None
    ) -> list[dict[str, Any]]:
        """rounds: each a turn and the reply to it."""
        messages = [
            {"role": "system", "content": self._system if system is None else system},
            {"role": "user", "content": question},
        ]
        for turn, reply in rounds:
            messages += [{"role": "assistant", "content": turn}, {"role": "tool", "content": reply}]
        return messages

    def _render(self, messages: list[dict[str, Any]], *, with_tools: bool = True) -> str:
        from jinja2 import TemplateError

        tools = self._tools if with_tools else None
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=True, tokenize=False
            )
        # a template is a program of somebody else's: it may call, add and look up what is not there
        except (
            TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise ConfigError(
                f"this chat template cannot render a {messages[-1]['role']} message after the others: {error}. It must take a "
                "system message, tools, and a tool's reply, each with text as its content: use another model, or another "
                "template"
            ) from error
        return str(text)

    @staticmethod
    def _require_no_thought(generation_prompt: str) -> None:
        """Raise ConfigError where the policy's turn would begin within a thought or behind one."""
        if "<think>" not in generation_prompt:
            return
        opened = generation_prompt[generation_prompt.rindex("<think>") :]
        raise ConfigError(
            f"this chat template opens the thought itself{' and closes it' if '</think>' in opened else ''}: its generation "
            f"prompt ends with {opened!r}, and every turn of the policy has to begin with <think>: take that out of the end of "
            "the model's chat_template.jinja"
        )

    def _require_kept(self, whole: str, prompt: str, turn: str) -> None:
        """Raise ConfigError where the prompt and the turn behind it are not kept as they were."""
        if whole.startswith(prompt + turn):
            return
        rest = whole[_agree(whole, prompt) :]
        if "PLACEHOLDER-S" not in rest:
            how = "it drops them once a tool has replied"
        elif "PLACEHOLDER-T" not in rest:
            how = "it drops their thoughts (<think> .. </think>)"
        elif "<think>" not in rest or "</think>" not in rest:
            how = "it takes <think> and </think> out of them"
        else:
            how = _difference(whole, prompt + turn)
        raise _rewrites(how)

    def _require_end(self, behind: str, prompt: str, opening: str) -> None:
        """behind: what the template writes behind a turn. opening: the prompt's end behind the question."""
        if behind.startswith(self._end):
            return
        tokens = sorted((t.content for t in self._tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        token = next((token for token in tokens if token.strip() and behind.startswith(token)), None)
        later = next((token for token in tokens if token.strip() and behind.lstrip().startswith(token)), None)
        begins = prompt.removeprefix(self._tokenizer.bos_token or "")
        if token is not None and opening.find(token) <= 0 and not begins.startswith(token):  # else it opens a message
            raise ConfigError(
                f"this chat template ends a turn with {token!r}, and the tokenizer's eos_token, at which sampling stops, is "
                f"{self._end!r}: set eos_token to {token!r} in the model's tokenizer_config.json"
            )
        if later == self._end:
            raise ConfigError(
                f"this chat template writes {behind[: behind.index(later)]!r} between a turn and the eos_token {self._end!r} "
                f"that ends it, which no policy samples: take it out of the model's chat_template.jinja"
            )
        raise ConfigError(
            f"this chat template does not end a turn with the eos_token {self._end!r}, at which sampling stops: behind a turn "
            f"stands {behind[:40]!r}; write {{{{ eos_token }}}} behind an assistant's message {EDIT}"
        )

    def _require_same(self, frames: Frames, question: str, turn: str, reply: str) -> None:
        """Raise ConfigError where a conversation of these pieces is not what the template gives."""
        pieces = [
            _Piece("what stands before the user's question", frames.question[0]),
            _Piece("the user's question", question),
            _Piece("what stands behind the user's question", frames.question[1]),
        ]
        for _ in range(ROUNDS_TRIED):
            pieces += [
                _Piece("an assistant's turn", turn),
                _Piece("what stands around the tool's reply", self._end + frames.reply[0]),
                _Piece("the tool's reply", reply),
                _Piece("what stands around the tool's reply", frames.reply[1]),
            ]
        wanted = "".join(piece.text for piece in pieces)
        whole = self._render(self._messages(question, [(turn, reply)] * ROUNDS_TRIED))
        if whole == wanted:
            return
        at = _agree(whole, wanted)
        ends = list(itertools.accumulate(len(piece.text) for piece in pieces))
        number = next((i for i, end in enumerate(ends) if at < end), len(pieces) - 1)
        piece, start = pieces[number], ends[number] - len(pieces[number].text)
        if piece.what == "an assistant's turn":
            raise _rewrites(_difference(whole, wanted))
        from markupsafe import escape

        behind = pieces[number + 1].text if number + 1 < len(pieces) else ""
        if not piece.what.startswith("the"):
            how = f"{piece.what} is not always the same: {_difference(whole, wanted)}"
        elif whole[start:].startswith(json.dumps(piece.text, ensure_ascii=False)[1:-1]):
            how = (
                f"it writes {piece.what} as JSON, with its quotes and line breaks escaped: {_difference(whole, wanted)}"
            )
        elif whole[start:].startswith(str(escape(piece.text))):
            how = f"it escapes {piece.what} as HTML: {_difference(whole, wanted)}"
        elif behind and at > start and whole[at:].startswith(behind):
            how = f"it cuts {piece.what} after {at - start} characters"
        else:
            how = f"it changes {piece.what}: {_difference(whole, wanted)}"
        raise ConfigError(
            f"this chat template does not keep text as it is, and {how}. A sampled history, to which text is added as it is, "
            f"would not be what the template gives: write {{{{ message.content }}}} alone in its place {EDIT}"
        )


def _rewrites(how: str) -> ConfigError:
    return ConfigError(
        f"this chat template rewrites earlier turns: {how}. A sampled history could not be continued token for token: write "
        f"{{{{ message.content }}}} alone for an assistant's message {EDIT}, or use another model"
    )


def _times(text: str, part: str) -> str:
    """How often a part was written that should be there once, as a verb."""
    count = text.count(part)
    return "drops" if count == 0 else f"writes {count} times"


def _agree(left: str, right: str) -> int:
    """Characters that both begin with."""
    pairs = zip(left, right, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _difference(whole: str, wanted: str) -> str:
    """Where the template's text leaves what was expected, with some characters before."""
    at = _agree(whole, wanted)
    start = max(0, at - 20)
    return f"it writes {whole[start : at + 25]!r} where {wanted[start : at + 25]!r} is expected"
