"""What a chat template writes around questions, turns and tool replies, learnt from the template itself.

A sampled history is put together piece by piece. It has to be what the template gives for the whole conversation. So structured
messages (a thought, a tool call, a tool's reply) are rendered with placeholders, and what the template writes around these is
taken over. Then it is tried on conversations of several turns, with plain text and with text that templates are known to change
(quotes, line breaks, markup, JSON, long text). Where a template has no place for one of these messages, the next best way to say
the same is tried (Layout). Where none can be continued, the template is refused with the reason.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from igpo_core.environments.base import Interface
from igpo_core.errors import ConfigError
from igpo_core.protocol.calls import call_json, call_of
from igpo_core.protocol.ends import end_of_turn
from igpo_core.protocol.layouts import NO_THOUGHTS, Frames, Layout, Round, reply_message, tool_section, turn_message
from igpo_core.protocol.rendering import render
from igpo_core.protocol.template_faults import (
    EDIT,
    Lost,
    Piece,
    first_difference,
    lost_turn,
    opens_the_thought,
    rewrites,
    times,
)

MANY_ROUNDS = 64  # what a trajectory can have: some templates keep the last messages alone
ROUNDS_TRIED = 3  # of a turn and a reply: what is done to all turns but the last one shows in the second
TIMES_TRIED = 8  # that the same is rendered
ASKED, THOUGHT, ARGUMENT, SEEN, ANSWER = (f"PLACEHOLDER-{letter}" for letter in "QTSRA")
# Text of questions, queries and replies that templates were seen to change or to treat in another way.
TRIED = (
    "He said \"yes\" & 'no': <b>{x}</b> {{ y }} {% z %} C:\\new\\1 &amp; #1 *c*",
    "1. Title\n\n  two  spaces \n\tand a tab\r\nlast line.",
    "Łódź, 東京, e\u0301, \u00a0\u200b\u2028, مرحبا, 😀",
    '{"name": "look", "arguments": {"place": "x"}}',
    '["a", 1]',
    "1984",
    "true",
    "null",
    "[]",
    "{}",
    "x",
    "No results.",
    "The call failed. Try again or ask for something else.",
    "Error: not found",
    "word " * 20_000 + "end",
)


class Template:
    """The chat template of a tokenizer, with what the policy is told.

    harmless: outside text as it is given to the template, without markers. ends: the texts of tokens that may end a turn, the
    tokenizer's eos_token first.
    """

    def __init__(
        self, tokenizer: Any, interface: Interface, *, harmless: Callable[[str], str], ends: Sequence[str]
    ) -> None:
        self._tokenizer, self._interface, self._harmless, self._ends = tokenizer, interface, harmless, tuple(ends)
        self._call = call_of(interface.tools[0], ARGUMENT)

    def frames(self) -> Frames:
        """Return the frames of the first layout that is continued. Raises ConfigError with the reason where none is.

        The reason is that of the layout that asks least of the template; with a system message, unless that is what it lacks.
        """
        reasons: list[ConfigError] = []
        for system in ("message", "question"):
            reason: ConfigError | None = None
            for layout in self._layouts(system):
                try:
                    frames = self._learnt(layout)
                    self._require_same(frames)
                    return frames
                except ConfigError as error:
                    reason = error
            reasons += [reason] if reason else []
        raise next((reason for reason in reasons if not isinstance(reason, Lost)), reasons[0])

    def render(
        self, layout: Layout, question: str, rounds: Sequence[Round] = (), answer: tuple[str, str] | None = None
    ) -> str:
        """Return a conversation as the template writes it: up to the next turn, or to its end where it has an answer, which is
        given with the thought before it."""
        messages = self._asking(layout, question)
        for item in rounds:
            messages += [
                turn_message(layout, item.thought, item.call, ""),
                reply_message(layout, item.call, item.reply),
            ]
        if answer is not None:
            messages.append(turn_message(layout, answer[0], None, f"<answer>\n{answer[1]}\n</answer>"))
        return self._apply(messages, layout.tools == "template", answer is None)

    def _asking(self, layout: Layout, question: str) -> list[dict[str, Any]]:
        told = self._told(layout)
        if layout.system == "question":
            return [{"role": "user", "content": f"{told}\n\n{question}"}]
        return [{"role": "system", "content": told}, {"role": "user", "content": question}]

    def _told(self, layout: Layout) -> str:
        parts = [self._interface.system_prompt]
        parts += [NO_THOUGHTS] if layout.thought == "none" else []
        parts += [tool_section(self._interface)] if layout.tools == "prompt" else []
        return "\n\n".join(parts)

    def _apply(self, messages: list[dict[str, Any]], with_tools: bool, before_a_turn: bool) -> str:
        tools = [tool.schema for tool in self._interface.tools] if with_tools else None
        return render(self._tokenizer, messages, tools=tools, before_a_turn=before_a_turn)

    # ------------------------------------------------------------------------------------------------ which layouts

    def _layouts(self, system: Any) -> Iterator[Layout]:
        """Layouts that the template has a place for, what it is made for first."""
        plain = Layout(system, "template", "content", "content", "tool")
        form = self._form_of_calls(plain)
        tools: Any = "prompt" if form == "other" or not self._tells_of_tools(plain) else "template"
        reply: Any = "tool" if self._takes_replies(replace(plain, tools=tools)) else "user"
        calls: list[Any] = ["tool_calls", "content"] if form == "own" else ["content"]
        thoughts: list[Any] = ["none"] if self._closes_thoughts(plain) else ["reasoning_content", "content"]
        for thought, call in itertools.product(thoughts, calls):
            yield Layout(system, tools, thought, call, reply)

    def _closes_thoughts(self, plain: Layout) -> bool:
        """Whether an empty thought stands before a turn already."""
        try:
            return "</think>" in _opened(self.render(plain, ASKED).partition(ASKED)[2])
        except ConfigError:  # said of the layout that is tried
            return False

    def _form_of_calls(self, plain: Layout) -> Literal["own", "other", "none"]:
        """How the template writes a message's tool_calls: as <tool_call> {"name": .., "arguments": ..} </tool_call>, in another
        form, or not at all."""
        called, written = (
            [*self._asking(layout, ASKED), turn_message(layout, THOUGHT, self._call, "")]
            for layout in (replace(plain, call="tool_calls"), plain)
        )
        try:
            whole = self._apply(called, with_tools=True, before_a_turn=True)
        except ConfigError:
            try:  # the template may need the thought in a field of its own
                self._apply(written, with_tools=True, before_a_turn=True)
            except ConfigError:
                return "none"
            return "other"
        if re.search(rf"<tool_call>\s*{re.escape(call_json(self._call))}\s*</tool_call>", whole):
            return "own"
        return "other" if ARGUMENT in whole else "none"

    def _tells_of_tools(self, plain: Layout) -> bool:
        """Whether `tools=` puts the names, the parameters and the form of a call into the prompt."""
        try:
            prompt = self.render(plain, ASKED)
        except ConfigError:  # said of the layout that is tried
            return False
        told, words = self._told(plain), ["<tool_call>"]
        for tool in self._interface.tools:
            words += [tool.name, *(item.name for item in tool.parameters)]
        return all(prompt.count(word) > told.count(word) for word in words)

    def _takes_replies(self, plain: Layout) -> bool:
        """Whether the template takes messages of the role tool and writes anything for them, in every round."""
        rounds = [Round(THOUGHT, self._call, SEEN)] * ROUNDS_TRIED
        try:
            whole = self.render(plain, ASKED, rounds)
        except ConfigError:
            try:  # is it the role?
                self.render(replace(plain, reply="user"), ASKED, rounds)
            except ConfigError:
                return True
            return False
        other = self.render(plain, ASKED, [replace(item, reply="another") for item in rounds])
        turns = [turn_message(plain, item.thought, item.call, "") for item in rounds]
        try:
            silent = self._apply([*self._asking(plain, ASKED), *turns], plain.tools == "template", True)
        except ConfigError:  # roles must alternate, and a tool's reply is what stands between
            return True
        return whole != other or len(whole) > len(silent)

    # ------------------------------------------------------------------------------------------------ what is learnt

    def _learnt(self, layout: Layout) -> Frames:
        prompt = self.render(layout, ASKED)
        if any(self.render(layout, ASKED) != prompt for _ in range(TIMES_TRIED)):
            raise ConfigError(
                "this chat template gives another text each time (random, or a clock): take that out of the model's "
                "chat_template.jinja"
            )
        if prompt.count(ASKED) != 1:
            raise Lost(
                f"this chat template {times(prompt, ASKED)} the user's question: write {{{{ message.content }}}}, text and no "
                f"list of parts, once for a user message {EDIT}"
            )
        before, after = prompt.split(ASKED)
        whole = self.render(layout, ASKED, [Round(THOUGHT, self._call, SEEN)])
        call, behind = self._turn_parts(layout, whole, prompt, call_json(self._call), "tool_call")
        space, call_end = self._end(behind, prompt, after)
        rest = behind[len(space) + len(call_end) :]
        if rest.count(SEEN) != 1:
            raise ConfigError(
                f"this chat template {times(rest, SEEN)} the tool's reply: write {{{{ message.content }}}} once for a message "
                f"of the role tool {EDIT}"
            )
        first, last = rest.split(SEEN)
        opened = _opened(after)
        if _opened(last) != opened:
            raise opens_the_thought(last if "<think>" in last else after)
        answered = self.render(layout, ASKED, answer=(THOUGHT, ANSWER))
        final, ending = self._turn_parts(layout, answered, prompt, ANSWER, "answer")
        self._require_system(layout, before)
        final_space, final_end = ("", self._ends[0]) if not ending.strip() else self._end(ending, prompt, after)
        return Frames(
            layout,
            question=(before, after),
            call=(*call[:2], call[2] + space),
            final=(*final[:2], final[2] + final_space),
            reply=(first, last),
            reply_as_json=self._writes_json(layout),
            opened=opened,
            call_end=call_end,
            final_end=final_end,
        )

    def _require_system(self, layout: Layout, before: str) -> None:
        """Raise ConfigError where what the policy is told does not stand before the question."""
        if self._told(layout).strip() not in before:
            known = self._interface.system_prompt.strip()[:40] in before
            raise Lost(
                f"this chat template {'changes' if known else 'drops'} the system message, which tells the policy how to think, "
                f"call tools and answer: write {{{{ message.content }}}} for a system message {EDIT}"
            )

    def _turn_parts(
        self, layout: Layout, whole: str, prompt: str, said: str, marker: str
    ) -> tuple[tuple[str, str, str], str]:
        """Return what stands around a turn's thought and what it says, and all that follows."""
        after = prompt[prompt.index(ASKED) + len(ASKED) :]
        body, opened = whole[len(prompt) :], _opened(after)
        argument, thoughts = (ARGUMENT if marker == "tool_call" else ANSWER), int(layout.thought != "none")
        if not whole.startswith(prompt) or body.count(THOUGHT) != thoughts or said not in body:
            raise lost_turn(whole, prompt, THOUGHT, argument, after)
        before, _, rest = body.partition(THOUGHT) if thoughts else ("", "", body)
        between, _, rest = rest.partition(said)
        closing = re.match(rf"\s*</{marker}>", rest)
        if not re.match(r"\s*<think>\s*$" if thoughts else r"\s*<think>\s*</think>\s*$", opened + before):
            control = next((end for end in self._ends if end in before), None)
            if control is not None and not self._opens_a_turn(layout):
                raise ConfigError(
                    "this chat template writes nothing for add_generation_prompt: a turn would not begin as an assistant's. "
                    f"Write what stands before an assistant's message at the end of a prompt {EDIT}"
                )
            if control is not None:
                raise ConfigError(
                    f"this chat template begins a turn with {before.partition('<think>')[0]!r}, in which {control!r} is a "
                    "control token: such a turn is several messages (channels), which a policy here does not write: use another "
                    "model"
                )
            raise lost_turn(whole, prompt, THOUGHT, argument, after)
        end_of_thought = r"\s*</think>" if thoughts else ""
        if closing is None or not re.fullmatch(rf"{end_of_thought}\s*<{marker}>\s*", between):
            raise rewrites(f"it writes {between!r} between a thought and {said!r}")
        return (before, between, closing[0]), rest[closing.end() :]

    def _opens_a_turn(self, layout: Layout) -> bool:
        """Whether a prompt that a turn follows ends otherwise than one that is whole."""
        asking = self._asking(layout, ASKED)
        with_tools = layout.tools == "template"
        return self._apply(asking, with_tools, True) != self._apply(asking, with_tools, False)

    def _end(self, behind: str, prompt: str, opening: str) -> tuple[str, str]:
        return end_of_turn(behind, prompt.removeprefix(self._tokenizer.bos_token or ""), opening, self._ends)

    def _writes_json(self, layout: Layout) -> bool:
        text = '"a"\nb'
        whole = self.render(layout, ASKED, [Round(THOUGHT, self._call, text)])
        return text not in whole and json.dumps(text) in whole

    # ------------------------------------------------------------------------------------------------ what is compared

    def rounds(self, text: str, count: int) -> list[Round]:
        """Return turns that hold this text everywhere, each of another tool."""
        tools = itertools.cycle(self._interface.tools)
        return [Round(text, call_of(next(tools), text), text) for _ in range(count)]

    def _require_same(self, frames: Frames) -> None:
        """Raise ConfigError where a conversation that is put together of these frames is not what the template gives."""
        for raw, count in ((ASKED, MANY_ROUNDS), *((raw, ROUNDS_TRIED) for raw in (ASKED, *TRIED))):
            text = self._harmless(raw).strip()
            pieces = _pieces(frames, text, self.rounds(text, count))
            whole = self.render(frames.layout, text, self.rounds(text, count))
            wanted = "".join(piece.text for piece in pieces)
            if whole != wanted:
                raise first_difference(whole, wanted, pieces)
            whole = self.render(frames.layout, text, self.rounds(text, 1), answer=(text, text))
            before, behind = frames.final_parts(text)
            pieces = [
                *_pieces(frames, text, self.rounds(text, 1)),
                Piece("an assistant's turn", before + text + behind),
            ]
            wanted = "".join(piece.text for piece in pieces)
            if not (whole + frames.final_end).startswith(wanted):  # a template may leave the last end to the sampler
                raise first_difference(whole, wanted, pieces)


def _opened(generation_prompt: str) -> str:
    """The thought that a prompt ends with: one that is left open, or an empty one."""
    _, opening, rest = generation_prompt.rpartition("<think>")
    return opening + rest if opening else ""


def _pieces(frames: Frames, question: str, rounds: Sequence[Round]) -> list[Piece]:
    pieces = [
        Piece("what stands before the user's question", frames.question[0]),
        Piece("the user's question", question),
        Piece("what stands behind the user's question", frames.question[1]),
    ]
    for item in rounds:
        pieces += [
            Piece("an assistant's turn", frames.call_text(item.thought, item.call)),
            Piece("what stands around the tool's reply", frames.reply[0]),
            Piece("the tool's reply", frames.shown(item.reply)),
            Piece("what stands around the tool's reply", frames.reply[1]),
        ]
    return pieces
