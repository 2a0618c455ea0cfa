"""Which tokens of a tokenizer control something, and which of them ends an assistant's turn."""

import itertools
from collections.abc import Sequence
from typing import Any

from igpo_core.errors import ConfigError
from igpo_core.protocol.base import MARKERS
from igpo_core.protocol.rendering import render
from igpo_core.protocol.template_faults import EDIT, no_end, times

SYSTEM, ASKED, THOUGHT, ANSWER = (f"PLACEHOLDER-{letter}" for letter in "PQTA")


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Return text -> id of the added tokens that control something, and of eos_token where it is an added one."""
    return {
        token.content: index
        for index, token in tokenizer.added_tokens_decoder.items()
        if _controls_text(token, str(tokenizer.chat_template)) or index == tokenizer.eos_token_id
    }


def _controls_text(token: Any, template: str) -> bool:
    """Whether an added token controls something. Others are pieces of ordinary text that some tokenizers keep as tokens of their
    own: letters as "ü" (DeepSeek), words of a field, runs of white space (NeoX, OLMo, Phi, Gemma)."""
    text = token.content.replace("▁", " ").strip()
    if not text:
        return False
    if token.special:
        return True
    return len(text) > 1 and (any(sign in text for sign in "<>[]{}|｜＜＞") or text in template)


def possible_ends(tokenizer: Any) -> tuple[str, ...]:
    """Return the texts of the tokens that may end a turn, eos_token first."""
    return tokenizer.eos_token, *sorted(control_tokens(tokenizer).keys() - MARKERS)


def end_of_turn(behind: str, prompt: str, opening: str, ends: Sequence[str]) -> tuple[str, str]:
    """Return the white space behind a turn, and the text of the token that ends it. Raises ConfigError where none does.

    behind: what the template writes behind a turn. prompt: without bos_token. opening: its end behind the question. ends: of
    possible_ends.
    """
    bare = behind.lstrip()
    for token in sorted(ends, key=len, reverse=True):
        if bare.startswith(token):
            opens = opening.lstrip().find(token) > 0 or prompt.startswith(token)  # a message
            if token != ends[0] and (token in MARKERS or opens):
                break
            return behind[: len(behind) - len(bare)], token
    raise no_end(behind, ends[0])


def answer_end(tokenizer: Any) -> tuple[str, str]:
    """Return the text of the token that the template writes behind an answer, "" where it leaves that to the sampler (GLM-4);
    and its prompt before the answer, without bos_token.

    Asked with a system message and without, and with the thought in a field of its own and in the content: what else a template
    does to a conversation does not matter here. Raises ConfigError with the last reason where it takes none of these, or ends
    turns with no token at which sampling could stop.
    """
    turns = (
        {"role": "assistant", "reasoning_content": THOUGHT, "content": ANSWER},
        {"role": "assistant", "content": f"<think>\n{THOUGHT}\n</think>\n{ANSWER}"},
    )
    reason: ConfigError | None = None
    for system, turn in itertools.product(([{"role": "system", "content": SYSTEM}], []), turns):
        try:
            return _answer_end(tokenizer, [*system, {"role": "user", "content": ASKED}], turn)
        except ConfigError as error:
            reason = error
    assert reason is not None
    raise reason


def _answer_end(tokenizer: Any, asking: list[dict[str, Any]], turn: dict[str, Any]) -> tuple[str, str]:
    prompt = render(tokenizer, asking, before_a_turn=True).removeprefix(tokenizer.bos_token or "")
    answered = render(tokenizer, [*asking, turn], before_a_turn=False)
    for text, part, what in ((prompt, ASKED, "the user's question"), (answered, ANSWER, "an assistant's message")):
        if text.count(part) != 1:
            raise ConfigError(
                f"this chat template {times(text, part)} {what}: write {{{{ message.content }}}} once for it {EDIT}"
            )
    behind = answered.partition(ANSWER)[2]
    if not behind.strip():
        return "", prompt
    return end_of_turn(behind, prompt, prompt.partition(ASKED)[2], possible_ends(tokenizer))[1], prompt
