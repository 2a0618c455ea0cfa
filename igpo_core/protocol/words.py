"""Turns in one token a word, for policies that are built here for a world with a closed vocabulary."""

from collections.abc import Sequence
from typing import Any

from igpo_core.environments.base import Interface
from igpo_core.errors import ConfigError
from igpo_core.protocol.base import MARKERS, AnswerProbe, between
from igpo_core.text import one_form
from igpo_core.trajectory import Action, Final, Malformed, ToolCall


class WordProtocol:
    """One token a word. A turn: `<think> .. </think> <tool_call> .. </tool_call>` or `.. <answer> .. </answer>`.

    A call is the words of its argument alone, so that there is one tool with one text.
    """

    CONTROL = ("<pad>", "<unk>", "<bos>", "<eos>", *MARKERS)

    def __init__(self, tokenizer: Any, interface: Interface) -> None:
        self.tokenizer: Any = tokenizer
        self.interface = interface
        if [[item.kind for item in tool.parameters] for tool in interface.tools] != [["string"]]:
            raise ConfigError(
                "policy.tokenizer=words writes calls of one tool with one text: use tokenizer=chat, or a pretrained policy, for "
                f"the tools {', '.join(tool.name for tool in interface.tools)}"
            )
        (self._tool,) = interface.tools
        self.ids: dict[str, int] = tokenizer.get_vocab()
        self.words = {index: word for word, index in self.ids.items()}
        self.control = frozenset(self.ids[word] for word in self.CONTROL)
        self.pad_id: int = self.ids["<pad>"]
        self.stop_ids = tuple(self.ids[word] for word in ("</tool_call>", "</answer>", "<eos>"))

    def prompt(self, question: str) -> list[int]:
        """Return the question's words after <bos>."""
        return [self.ids["<bos>"], *self._plain(question)]

    def observation(self, text: str) -> list[int]:
        """Return the result's words between its two control tokens."""
        return [self.ids["<tool_response>"], *self._plain(text), self.ids["</tool_response>"]]

    def turn(self, thought: str, action: ToolCall | Final) -> tuple[list[int], slice]:
        """Ids of a whole turn, and the slice of the argument's or answer's own tokens."""
        opening, body, closing = (
            ("<tool_call>", action.arguments[self._tool.parameters[0].name], "</tool_call>")
            if isinstance(action, ToolCall)
            else ("<answer>", action.text, "</answer>")
        )
        head = [self.ids["<think>"], *self._plain(thought), self.ids["</think>"], self.ids[opening]]
        inner = self._plain(body)
        return [*head, *inner, self.ids[closing]], slice(len(head), len(head) + len(inner))

    def parse(self, ids: Sequence[int]) -> Action:
        """Return what a sampled turn does, its stop token included."""
        think, end_think = self.ids["<think>"], self.ids["</think>"]
        if not ids or ids[0] != think or end_think not in ids:
            return Malformed("no <think> .. </think> at the start of the turn")
        if any(index not in self.words for index in ids):
            return Malformed("a token that no text stands for")
        middle = list(ids).index(end_think)
        thought, rest = ids[1:middle], ids[middle + 1 :]
        for opening, closing in (("<tool_call>", "</tool_call>"), ("<answer>", "</answer>")):
            if len(rest) >= 2 and rest[0] == self.ids[opening] and rest[-1] == self.ids[closing]:
                if self.control.intersection(thought) or self.control.intersection(rest[1:-1]):
                    return Malformed("a control token inside the thought, the call or the answer")
                text = one_form(self._text(rest[1:-1]))
                if not text:
                    return Malformed(f"nothing between {opening} and {closing}")
                if opening == "<answer>":
                    return Final(text)
                return ToolCall(self._tool.name, {self._tool.parameters[0].name: text})
        return Malformed("neither <tool_call> .. </tool_call> nor <answer> .. </answer> after the thought")

    def probe(self, answer: str) -> AnswerProbe:
        """Return a last turn that gives this answer, as a prefix and the answer's tokens."""
        thought = self._plain(self.interface.final_thought)
        prefix = [self.ids["<think>"], *thought, self.ids["</think>"], self.ids["<answer>"]]
        return AnswerProbe(prefix, self._plain(answer), (self.ids["</answer>"],))

    def lesson(self, words: Sequence[str]) -> list[int]:
        """Return the words after <bos>."""
        return [self.ids["<bos>"], *self._plain(" ".join(words))]

    def decode(self, ids: Sequence[int]) -> str:
        """Return tokens as their words."""
        return self._text(ids)

    def plain(self, ids: Sequence[int]) -> str:
        """Return tokens as their words."""
        return self._text(ids)

    def call_tokens(self, ids: Sequence[int]) -> slice:
        """Return where the call stands within the tokens of its turn: between <tool_call> and </tool_call>."""
        return between(ids, self.ids["<tool_call>"], self.ids["</tool_call>"])

    def _plain(self, text: str) -> list[int]:
        """Ids of outside text: a word that is unknown, or is a control word, becomes <unk>."""
        unknown = self.ids["<unk>"]
        ids = (self.ids.get(word, unknown) for word in text.split())
        return [unknown if index in self.control else index for index in ids]

    def _text(self, ids: Sequence[int]) -> str:
        return " ".join(self.words.get(index, "<unk>") for index in ids)
