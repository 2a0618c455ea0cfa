"""Turns of any causal LM with a chat template."""

import itertools
import re
from collections.abc import Collection, Sequence
from typing import Any

from igpo_core.environments.base import Interface, Tool
from igpo_core.errors import ConfigError
from igpo_core.protocol.base import MARKERS, AnswerProbe, between
from igpo_core.protocol.calls import call_of, parse_call, turn_parts, turn_text
from igpo_core.templates import Template
from igpo_core.text import one_form
from igpo_core.trajectory import Action, Final, Malformed, ToolCall

REPLACED = "\ufffd"  # for outside text that no space makes harmless
ROUNDS = 8  # of making normalised text harmless


def _template_text(tokenizer: Any, tools: Sequence[Tool]) -> str:
    """The chat template that is used: some tokenizers have several, by name, one of them for conversations with tools."""
    try:
        return str(tokenizer.get_chat_template(tools=[tool.schema for tool in tools]))
    except ValueError as error:
        raise ConfigError(
            f"this tokenizer's chat templates have none for conversations with tools: {error}. Name one of them default in the "
            "model's tokenizer_config.json"
        ) from error


def _harmless(marker: str) -> str:
    """The marker with a space after its first character: readable, and no control token."""
    return f"{marker[0]} {marker[1:]}" if len(marker) > 1 else REPLACED


def _controls_text(token: Any, template: str) -> bool:
    """Whether an added token controls something. Others are pieces of ordinary text that some tokenizers keep as tokens of their
    own: letters as "ü" (DeepSeek), words of a field, runs of white space (NeoX, OLMo, Phi, Gemma)."""
    text = token.content.replace("▁", " ").strip()
    if not text:
        return False
    if token.special:
        return True
    return len(text) > 1 and (any(sign in text for sign in "<>[]{}|｜＜＞") or text in template)


class ChatProtocol:
    """Any causal LM with a chat template that appends: Qwen2.5's ChatML with tool calls is the model case.

    The frame around an observation is what the template itself puts between an assistant's turn and the next
    generation prompt, found once with placeholders; a template that rewrites earlier turns, or changes what is put into
    it, is refused (igpo_core/templates.py), because the history that was sampled would no longer be the history that the
    template gives. shows_tools: whether its prompt tells of the tools.
    """

    def __init__(self, tokenizer: Any, interface: Interface) -> None:
        self.tokenizer: Any = tokenizer
        self.interface = interface
        if not tokenizer.is_fast:
            raise ConfigError("this tokenizer does not tell where its tokens stand: use a model with a tokenizer.json")
        if tokenizer.chat_template is None:
            raise ConfigError(
                "this tokenizer has no chat template: use an instruct model, or set tokenizer.chat_template"
            )
        if "strftime_now" in _template_text(tokenizer, interface.tools):
            raise ConfigError(
                "this chat template writes today's date into the prompt (strftime_now), so that the same run would see other "
                "prompts tomorrow: write a fixed date in its place into the model's chat_template.jinja"
            )
        added = {
            token.content: index
            for index, token in tokenizer.added_tokens_decoder.items()
            if _controls_text(token, str(tokenizer.chat_template)) or index == tokenizer.eos_token_id
        }
        self.control = frozenset(added.values())
        self.markers = tuple(sorted({*added, *MARKERS}))
        self._pattern = _any_of(self.markers)
        # "ü" as an added token: a byte-level decoder takes the letter for the byte that it stands for elsewhere
        self._letters = {
            index: token.content
            for index, token in tokenizer.added_tokens_decoder.items()
            if index not in self.control and REPLACED in tokenizer.decode([index]) and REPLACED not in token.content
        }
        self._known = frozenset(tokenizer.get_vocab().values())
        self._normalizer = tokenizer.backend_tokenizer.normalizer
        if self._normalizer is not None:
            forms = {self._normalizer.normalize_str(marker).strip("▁ ") for marker in self.markers}
            self._normal_pattern = _any_of({*self.markers, *(form for form in forms if form and not form.isalnum())})
        self._special = {index for index in self.control if tokenizer.decode([index]) not in MARKERS}
        if tokenizer.eos_token_id is None:
            raise ConfigError("this tokenizer has no eos token: a turn could not end")
        self.stop_ids: tuple[int, ...] = (tokenizer.eos_token_id,)
        self.pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._stop_text = tokenizer.eos_token
        self._frame_controls: dict[tuple[str, ...], list[int]] = {}  # encoded once, not with each text
        frames = Template(
            tokenizer,
            interface.system_prompt,
            [tool.schema for tool in interface.tools],
            turn=lambda thought, text: turn_text(thought, call_of(interface.tools[0], text)),
            harmless=self.neutralise,
            end=self._stop_text,
        ).frames()
        self._prompt_frame, self._observation_frame = frames.question, frames.reply
        self.shows_tools = frames.shows_tools

    def prompt(self, question: str) -> list[int]:
        """Return the template's prompt, with the question as text."""
        return self._framed(self._prompt_frame, question.strip())

    def observation(self, text: str) -> list[int]:
        """Return the template's tool message, with the result as text."""
        return self._framed(self._observation_frame, text.strip())

    def turn(self, thought: str, action: ToolCall | Final) -> tuple[list[int], slice]:
        """Ids of a whole turn with its stop token, and the slice of everything (a BPE has no borders to cut at)."""
        plain: ToolCall | Final = (
            ToolCall(action.name, {name: self._harmless(value) for name, value in action.arguments.items()})
            if isinstance(action, ToolCall)
            else Final(self.neutralise(action.text))
        )
        ids = self._encode(turn_text(self.neutralise(thought), plain) + self._stop_text)
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
        parts = turn_parts(self.decode(ids[:-1]))
        if parts is None or any(marker in parts[0] for marker in MARKERS):
            return Malformed("not <think> .. </think> followed by one <tool_call> or one <answer>")
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
        before = f"<think>\n{self.interface.final_thought}\n</think>\n<answer>\n"
        text = self.neutralise(answer)
        after = f"\n</answer>{self._stop_text}"
        encoded = self.tokenizer(before + text + after, add_special_tokens=False, return_offsets_mapping=True)
        ids, spans = list(encoded["input_ids"]), encoded["offset_mapping"]
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

    def _framed(self, frame: tuple[str, ...], text: str) -> list[int]:
        # Encoded whole, because a BPE merges across the border between the frame's newline and the text.
        before, after = frame
        ids = self._encode(before + self.neutralise(text) + after)
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


def _original_length(normal: Any, start: int, stop: int) -> int:
    """How many characters of the original text became this part of a tokenizers.NormalizedString."""
    return len(normal[start:stop].original) if stop > start else 0


def _any_of(texts: Collection[str]) -> re.Pattern[str]:
    """A pattern of any of these texts, longer ones first: one may begin with another."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=lambda text: (-len(text), text))))
