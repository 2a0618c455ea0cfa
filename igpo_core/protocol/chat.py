"""Turns of any causal LM with a chat template."""

import copy
import itertools
import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from igpo_core.environments.base import Interface
from igpo_core.errors import ConfigError
from igpo_core.protocol.base import MARKERS, AnswerProbe, between
from igpo_core.protocol.calls import parse_call, turn_parts
from igpo_core.protocol.ends import control_tokens, possible_ends
from igpo_core.protocol.layouts import Frames
from igpo_core.protocol.rendering import with_fixed_date, with_thinking
from igpo_core.protocol.templates import TRIED, Template
from igpo_core.text import one_form
from igpo_core.trajectory import Action, Final, Malformed, ToolCall

REPLACED = "\ufffd"  # for outside text that no space makes harmless
ROUNDS = 8  # of making normalised text harmless
TRIED_AS_TOKENS = tuple(text[-2000:] for text in TRIED)


def _harmless(marker: str) -> str:
    """The marker with a space after its first character: readable, and no control token."""
    return f"{marker[0]} {marker[1:]}" if len(marker) > 1 else REPLACED


def _require_usable(tokenizer: Any, interface: Interface) -> None:
    """Raise ConfigError for a tokenizer that no conversation can be written with."""
    if not tokenizer.is_fast:
        raise ConfigError("this tokenizer does not tell where its tokens stand: use a model with a tokenizer.json")
    if tokenizer.chat_template is None:
        raise ConfigError("this tokenizer has no chat template: use an instruct model, or set tokenizer.chat_template")
    if tokenizer.eos_token_id is None:
        raise ConfigError("this tokenizer has no eos token: a turn could not end")
    try:
        tokenizer.get_chat_template(tools=[tool.schema for tool in interface.tools])
    except ValueError as error:  # some have several, by name, one of them for conversations with tools
        raise ConfigError(
            f"this tokenizer's chat templates have none for conversations with tools: {error}. Name one of them default in the "
            "model's tokenizer_config.json"
        ) from error


def _written_marks(frames: Frames) -> set[str]:
    """Marks between brackets that a template writes around turns and that may be no tokens of their own ([INST] of Mistral)."""
    around = (*frames.reply, frames.question[1], *frames.call, *frames.final)
    return {mark for text in around for mark in re.findall(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,40}\]", text)}


def _from_control(text: str, tokens: Collection[str]) -> str:
    """The end of the text from the last of these tokens on; all of it where it holds none."""
    return text[max((text.rfind(token) for token in tokens), default=0) :] if any(t in text for t in tokens) else text


class ChatProtocol:
    """Any causal LM with a chat template that appends: Qwen2.5's ChatML with tool calls is the model case.

    What stands around a question, a thought, a call, an answer and an observation is what the template itself writes there,
    found once with placeholders (igpo_core/protocol/templates.py). A template that rewrites earlier turns, or changes what is
    put into it, is refused, because the history that was sampled would no longer be the history that the template gives. A
    template that asks for today's date is told a fixed one, in the tokenizer itself: a saved policy has the prompts that it was
    trained on. So it is with thinking that is switched on or off (`thinking`; None: as the template has it).
    """

    def __init__(self, tokenizer: Any, interface: Interface, thinking: bool | None = None) -> None:
        self.tokenizer: Any = tokenizer
        self.interface = interface
        _require_usable(tokenizer, interface)
        tokenizer.chat_template = with_thinking(with_fixed_date(tokenizer.chat_template), thinking)
        added = control_tokens(tokenizer)
        self.control = frozenset(added.values())
        self._special = {index for index in self.control if tokenizer.decode([index]) not in MARKERS}
        # "ü" as an added token: a byte-level decoder takes the letter for the byte that it stands for elsewhere
        self._letters = {
            index: token.content
            for index, token in tokenizer.added_tokens_decoder.items()
            if index not in self.control and REPLACED in tokenizer.decode([index]) and REPLACED not in token.content
        }
        self._known = frozenset(tokenizer.get_vocab().values())
        self._normalizer = tokenizer.backend_tokenizer.normalizer
        self.pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # encoded once, not with each text
        self._frame_controls: dict[tuple[str, ...], list[int]] = {}
        self._lengths: dict[str, int] = {}
        self._mark({*added, *MARKERS})
        template = Template(tokenizer, interface, harmless=self.neutralise, ends=possible_ends(tokenizer))
        self.frames = frames = template.frames()
        if thinking is not None:
            self._require_switch(template, thinking)
        self._mark({*self.markers, *_written_marks(frames)})
        ends = {**added, tokenizer.eos_token: tokenizer.eos_token_id}
        self._call_end, self._final_end = ends[frames.call_end], ends[frames.final_end]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((self._call_end, self._final_end)))
        self._stop_text = frames.final_end
        self._before_turn = _from_control(frames.question[1], added)
        self._require_same_ids(template)
        self._require_read_back(template)

    def _require_switch(self, template: Template, thinking: bool) -> None:
        """Raise ConfigError where the template writes the same whether thinking is switched on or off."""
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.chat_template = with_thinking(tokenizer.chat_template, not thinking)
        other = Template(tokenizer, self.interface, harmless=self.neutralise, ends=possible_ends(tokenizer))
        rounds = template.rounds("word", 2)
        own = template.render(self.frames.layout, "word", rounds)
        try:
            same = other.render(self.frames.layout, "word", rounds) == own
        except ConfigError:  # what it refuses when switched the other way, it looked at
            return
        if same:
            raise ConfigError(
                f"policy.thinking={str(thinking).lower()}: this chat template does not read enable_thinking, and writes the same "
                "whether thinking is switched on or off: leave policy.thinking out, or use a model that can switch it (Qwen3, "
                "Qwen3.5, GLM-4.5)"
            )

    @property
    def shows_tools(self) -> bool:
        """Whether the template tells of the tools and of the form of a call; else the end of the system prompt does."""
        return self.frames.layout.tools == "template"

    def _mark(self, markers: Collection[str]) -> None:
        """Take these as what outside text must not hold."""
        self.markers = tuple(sorted(markers))
        self._pattern = _any_of(self.markers)
        if self._normalizer is not None:
            forms = {self._normalizer.normalize_str(marker).strip("▁ ") for marker in self.markers}
            self._normal_pattern = _any_of({*self.markers, *(form for form in forms if form and not form.isalnum())})

    def _require_same_ids(self, template: Template) -> None:
        """Raise ConfigError where a history that is put together of these tokens is not how the tokenizer writes the template's
        text. Text that is equal may be cut otherwise: tokens may reach over a border."""
        frames = self.frames
        for raw in TRIED_AS_TOKENS:
            text = self.neutralise(raw).strip()
            first, second = template.rounds(text, 2)
            history = self._encode(text.join(frames.question))
            for item in (first, second):
                history += self.turn(text, item.call)[0]
                history += self._encode_behind(frames.call_end, frames.shown(text).join(frames.reply))
            answering, _ = self.turn(text, Final(text))
            whole = template.render(frames.layout, text, [first, second])
            answered = template.render(frames.layout, text, [first, second], answer=(text, text))
            if not answered.startswith(whole):
                raise ConfigError(
                    "this chat template rewrites earlier turns once there is an answer: use another model"
                )
            wanted = self._encode(answered)
            if (
                self._encode(whole) != history
                or wanted[: len(history) + len(answering) - 1] != (history + answering)[:-1]
            ):
                at = next((i for i, pair in enumerate(zip(history, wanted, strict=False)) if pair[0] != pair[1]), 0)
                raise ConfigError(
                    "this model's tokenizer writes the border between two parts of a conversation as one token, which cannot be "
                    f"sampled or added alone: near {self.decode(wanted[max(0, at - 3) : at + 3])!r}: use another model"
                )

    def _require_read_back(self, template: Template) -> None:
        """Raise ConfigError where a turn that is written here is not read back as one: no policy could be taught to write it."""
        for meant, kind in ((template.rounds("word", 1)[0].call, "a call"), (Final("word"), "an answer")):
            ids, _ = self.turn("word", meant)
            read = self.parse(ids)
            if isinstance(read, Malformed):
                inside = [f" ({self.decode([index])!r})" for index in ids[:-1] if index in self._special]
                raise ConfigError(
                    f"this model's tokenizer writes a turn ({kind}) with tokens that are not read back: {read.reason}"
                    f"{''.join(inside[:1])}. Take such added tokens out of its tokenizer.json, or use another model"
                )

    def prompt(self, question: str) -> list[int]:
        """Return the template's prompt, with the question as text."""
        return self._framed("", self.frames.question, self.neutralise(question.strip()))

    def observation(self, text: str) -> list[int]:
        """Return the template's tool message, with the result as text."""
        frames = self.frames
        return self._framed(frames.call_end, frames.reply, frames.shown(self.neutralise(text.strip())))

    def turn(self, thought: str, action: ToolCall | Final) -> tuple[list[int], slice]:
        """Ids of a whole turn with its stop token, and the slice of everything (a BPE has no borders to cut at)."""
        thought = self.neutralise(thought)
        if isinstance(action, ToolCall):
            arguments = {name: self._harmless(value) for name, value in action.arguments.items()}
            text = self.frames.call_text(thought, ToolCall(action.name, arguments))
        else:
            text = self.neutralise(action.text).join(self.frames.final_parts(thought))
        ids = self._encode_behind(self._before_turn, text)
        return ids, slice(0, len(ids))

    def _harmless(self, value: Any) -> Any:
        return self.neutralise(value) if isinstance(value, str) else value

    def parse(self, ids: Sequence[int]) -> Action:
        """Return what a sampled turn does, its stop token included."""
        if not ids or ids[-1] not in self.stop_ids:
            return Malformed("the turn has no stop token")
        if self._special.intersection(ids[:-1]):
            return Malformed("a control token inside the turn")
        if not self._known.issuperset(ids):  # a model's vocabulary may be padded (Qwen's); decoding drops such ids
            return Malformed("a token that no text stands for")
        parts = turn_parts(self.frames.opened + self.decode(ids[:-1]))
        if parts is None or any(marker in parts[0] for marker in MARKERS):
            return Malformed("not <think> .. </think> followed by one <tool_call> or one <answer>")
        if ids[-1] != (self._call_end if parts[1] == "<tool_call>" else self._final_end):
            return Malformed("the turn ends with a token that ends another kind of turn")
        if parts[1] == "<tool_call>":
            return parse_call(parts[2], self.interface)
        answer = one_form(parts[2])
        if not answer or any(marker in answer for marker in MARKERS):
            return Malformed("the answer is empty or contains a marker")
        return Final(answer)

    def probe(self, answer: str) -> AnswerProbe:
        """Return the tokens of an answering turn, cut at the answer.

        The turn is encoded whole, because a BPE merges across the answer's borders: Qwen2.5 writes the end of "D.C." and the
        newline behind it as one token. The answer's tokens are those that cover any of its characters.
        """
        before, after = self.frames.final_parts(self.interface.final_thought)
        text = self.neutralise(answer)
        ids, spans = self._spans_behind(self._before_turn, before + text + after)
        self._require_neutral(ids, (before, after), text)
        start, end = len(before), len(before) + len(text)
        first = next(i for i, (_, stop) in enumerate(spans) if stop > start)
        last = next(i for i, (begin, _) in enumerate(spans) if begin >= end)
        return AnswerProbe(ids[:first], ids[first:last], ids[last:])

    def lesson(self, words: Sequence[str]) -> list[int]:
        """Return the words as plain tokens."""
        return self._plain(" ".join(words))

    def decode(self, ids: Sequence[int]) -> str:
        """Return tokens as text for people, control tokens shown."""
        parts: list[str] = []
        for letter, group in itertools.groupby(ids, self._letters.get):
            if letter is not None:
                parts += [letter] * len(list(group))
            else:
                own = list(group)
                parts.append(
                    str(self.tokenizer.decode(own, skip_special_tokens=False, clean_up_tokenization_spaces=False))
                )
        return "".join(parts)

    def plain(self, ids: Sequence[int]) -> str:
        """Return tokens as text, without JSON's escapes where the template writes results with them: a line break is none of
        the letters of a word."""
        text = self.decode(ids)
        if not self.frames.reply_as_json:
            return text
        return re.sub(r'\\(?:["\\bfnrt]|u[0-9a-f]{4})', lambda found: str(json.loads(f'"{found[0]}"')), text)

    def call_tokens(self, ids: Sequence[int]) -> slice:
        """Return where the call stands within the tokens of its turn: between <tool_call> and </tool_call>.

        Empty where the policy wrote one of the two in pieces: `parse` reads text, and there is no border to cut at.
        Raises ConfigError when these are no tokens of their own in this tokenizer.
        """
        opening, closing = (self._encode(marker) for marker in ("<tool_call>", "</tool_call>"))
        if len(opening) != 1 or len(closing) != 1:
            raise ConfigError(
                "credit=query needs <tool_call> and </tool_call> as tokens of their own, which this tokenizer lacks: use "
                "another credit"
            )
        return between(ids, opening[0], closing[0])

    def neutralise(self, text: str) -> str:
        """Outside text with a space after the first character of every marker: readable, and no control token. Also of what
        becomes a marker when the tokenizer normalises text (wide or capital letters, invisible characters)."""
        text = self._pattern.sub(lambda found: _harmless(found[0]), text)
        if self._normalizer is None:
            return text
        for number in range(ROUNDS):
            pieces, end = [], 0
            for start, stop in self._normal_markers(text):
                marker = text[start:stop]
                pieces += [text[end:start], _harmless(marker) if number < ROUNDS // 2 else REPLACED]
                end = stop
            if not pieces:
                return text
            text = "".join([*pieces, text[end:]])
        return REPLACED

    def _normal_markers(self, text: str) -> list[tuple[int, int]]:
        """Return where characters stand that the tokenizer's normalisation makes a marker of."""
        from tokenizers import NormalizedString

        normal = NormalizedString(text)
        self._normalizer.normalize(normal)
        found, start, seen = [], 0, 0
        for match in self._normal_pattern.finditer(normal.normalized):
            start += _original_length(normal, seen, match.start())
            stop = start + max(1, _original_length(normal, match.start(), match.end()))
            found.append((start, stop))
            start, seen = stop, match.end()
        return found

    def _framed(self, anchor: str, frame: tuple[str, ...], text: str) -> list[int]:
        # Encoded whole, because a BPE merges across the border between the frame's newline and the text.
        before, after = frame
        ids = self._encode_behind(anchor, before + text + after)
        self._require_neutral(ids, frame, text)
        return ids

    def _plain(self, text: str) -> list[int]:
        ids = self._encode(self.neutralise(text))
        self._require_neutral(ids, (), text)
        return ids

    def _require_neutral(self, ids: Sequence[int], frame: Sequence[str], text: str) -> None:
        """Raise ConfigError where ids have other control tokens than the frame's own."""
        key = tuple(frame)
        if key not in self._frame_controls:
            self._frame_controls[key] = [index for part in frame for index in self._controls(self._encode(part))]
        if self._controls(ids) != self._frame_controls[key]:
            raise ConfigError(f"text became a control token in spite of neutralising it: {text[:80]!r}; report this")

    def _controls(self, ids: Sequence[int]) -> list[int]:
        return [index for index in ids if index in self.control]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _encode_behind(self, anchor: str, text: str) -> list[int]:
        """Ids of a text as it is written behind the anchor: some tokenizers put a space before what begins a text."""
        return self._encode(anchor + text)[self._length(anchor) :]

    def _spans_behind(self, anchor: str, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The same, and where in the text each token stands."""
        encoded = self.tokenizer(anchor + text, add_special_tokens=False, return_offsets_mapping=True)
        before, size = self._length(anchor), len(anchor)
        spans = [(start - size, stop - size) for start, stop in encoded["offset_mapping"][before:]]
        return list(encoded["input_ids"][before:]), spans

    def _length(self, anchor: str) -> int:
        if anchor not in self._lengths:
            self._lengths[anchor] = len(self._encode(anchor))
        return self._lengths[anchor]


def _original_length(normal: Any, start: int, stop: int) -> int:
    """How many characters of the original text became this part of a tokenizers.NormalizedString."""
    return len(normal[start:stop].original) if stop > start else 0


def _any_of(texts: Collection[str]) -> re.Pattern[str]:
    """A pattern of any of these texts, longer ones first: one may begin with another."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=lambda text: (-len(text), text))))
