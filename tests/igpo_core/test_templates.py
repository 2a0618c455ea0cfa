"""Chat templates as other models have them: each is continued to the letter, or refused with its own reason and the cure."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from igpo_core.environments.searching import SEARCH, SEARCH_TOOL, search_for
from igpo_core.errors import ConfigError
from igpo_core.policies import CHAT_TEMPLATE
from igpo_core.protocol import ChatProtocol
from igpo_core.protocol.calls import turn_text

REPLY = "+ message.content + '\\n</tool_response>"
TURN = "message.role + '\\n' + message.content"
OPENING = "<|im_start|>assistant\\n'"
SEEN = '1. Brenn: a "market" town\n2. Orla: a lake'
PLAIN = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


@pytest.fixture
def tokenizer(chat_policy: Any) -> Any:
    return copy.deepcopy(chat_policy.protocol.tokenizer)


def refusal(tokenizer: Any, template: Any) -> str:
    """What is said of a template, "" where it is taken."""
    assert template != CHAT_TEMPLATE
    tokenizer.chat_template = template
    try:
        ChatProtocol(tokenizer, SEARCH)
    except Exception as error:
        assert isinstance(error, ConfigError), f"a traceback: {error!r}"
        return str(error)
    return ""


def pieces_and_whole(tokenizer: Any, template: str, seen: str) -> tuple[str, str]:
    """A history of two replies as it is put together, and as the template gives it."""
    tokenizer.chat_template = template
    chat = ChatProtocol(tokenizer, SEARCH)
    turn = turn_text("t", search_for("q"))
    messages = [{"role": "system", "content": SEARCH.system_prompt}, {"role": "user", "content": "Who?"}]
    messages += [{"role": "assistant", "content": turn}, {"role": "tool", "content": seen}] * 2
    whole = tokenizer.apply_chat_template(
        messages, tools=[SEARCH_TOOL.schema], add_generation_prompt=True, tokenize=False
    )
    step = chat.turn("t", search_for("q"))[0] + chat.observation(seen)
    return chat.decode(chat.prompt("Who?") + step * 2), whole


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        CHAT_TEMPLATE.replace(REPLY, "+ message.content | trim + '\\n</tool_response>"),
        CHAT_TEMPLATE.replace(TURN, "message.role + '\\n' + (message.content | trim)"),
        PLAIN,
    ],
)
def test_a_template_that_leaves_text_alone_is_continued_to_the_letter(tokenizer: Any, template: str) -> None:
    made, whole = pieces_and_whole(tokenizer, template, SEEN)
    assert made == whole


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("(message.content | tojson)", "as JSON, with its quotes and line breaks escaped"),
        ("(message.content | e | string)", "escapes the tool's reply as HTML"),
        ("(message.content | replace('\"', '&quot;'))", "changes the tool's reply: .*&quot;yes&quot;"),
        ("message.content[:20]", "cuts the tool's reply after 20 characters"),
        ("message.content[:3000]", "cuts the tool's reply after 3000 characters"),
        ("(message.content | replace('\\n', ' '))", "changes the tool's reply"),
        ("(message.content | replace('\\\\', '\\\\\\\\'))", "changes the tool's reply"),
        ("message.content.split() | join(' ')", "changes the tool's reply"),
        ("(message.content | lower)", "drops the tool's reply"),
        ("(message.content | striptags | string)", "changes the tool's reply"),
        (
            "('' if message.content.startswith('{') else message.content)",
            "(cuts the tool's reply after 0|changes the tool's reply)",
        ),
        ("(message.content + message.content)", "writes 2 times the tool's reply"),
        ("'ok'", "drops the tool's reply"),
    ],
)
def test_a_changed_tool_reply_is_refused_with_what_changes_it(tokenizer: Any, written: str, reason: str) -> None:
    said = refusal(tokenizer, CHAT_TEMPLATE.replace(REPLY, f"+ {written} + '\\n</tool_response>"))
    assert re.search(reason, said) and "rewrites" not in said
    assert "write {{ message.content }}" in said and "chat_template.jinja" in said


def test_a_changed_reply_of_earlier_turns_is_refused(tokenizer: Any) -> None:
    """The newest reply whole, those before cut: no conversation of one turn shows it."""
    written = "(message.content if loop.last else message.content[:5])"
    said = refusal(tokenizer, CHAT_TEMPLATE.replace(REPLY, f"+ {written} + '\\n</tool_response>"))
    assert "cuts the tool's reply after 5 characters" in said


@pytest.mark.parametrize("end", ["<|endoftext|>", "<|im_start|>"])
def test_an_eos_token_that_ends_no_turn_is_named_with_the_one_that_does(tokenizer: Any, end: str) -> None:
    tokenizer.eos_token = end
    with pytest.raises(ConfigError) as caught:
        ChatProtocol(tokenizer, SEARCH)
    said = str(caught.value)
    assert f"is '{end}': set eos_token to '<|im_end|>' in the model's tokenizer_config.json" in said
    tokenizer.eos_token = "<|im_end|>"
    ChatProtocol(tokenizer, SEARCH)  # the cure is one


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("' <|im_end|>\\n'", r"writes ' ' between a turn and the eos_token '<\|im_end\|>'"),
        ("'\\n'", r"does not end a turn with the eos_token .* behind a turn stands '\\n<\|im_start\|>"),
        ("''", r"does not end a turn with the eos_token .* behind a turn stands '<\|im_start\|>"),
    ],
)
def test_a_turn_without_an_end_of_its_own_is_refused(tokenizer: Any, end: str, reason: str) -> None:
    ended = PLAIN.replace("+ '<|im_end|>\\n'", f"+ {end}")
    assert ended != PLAIN
    assert re.search(reason, refusal(tokenizer, ended))


REFUSED = {
    "no system message (Gemma 2)": (
        "{%- if messages[0].role == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}"
        + CHAT_TEMPLATE,
        "System role not supported",
    ),
    "roles must alternate (Mistral)": (
        "{%- for m in messages[1:] -%}{%- if m.role not in ['user', 'assistant'] -%}"
        "{{ raise_exception('roles must alternate') }}{%- endif -%}{%- endfor -%}" + CHAT_TEMPLATE,
        "roles must alternate",
    ),
    "tool call ids of nine letters (Mistral)": (
        CHAT_TEMPLATE.replace(
            "{%- if message.role == 'tool' -%}",
            "{%- if message.role == 'tool' -%}{%- if message.tool_call_id is undefined -%}"
            "{{ raise_exception('tool call ids should have length 9') }}{%- endif -%}",
        ),
        "length 9",
    ),
    "today's date (SmolLM3, Llama 3)": ("{{- strftime_now('%d %B %Y') -}}" + CHAT_TEMPLATE, "today's date"),
    "today's date by another name": ("{{- now().strftime('%d') -}}" + CHAT_TEMPLATE, "'now' is undefined"),
    "thoughts of earlier turns dropped (R1)": (
        CHAT_TEMPLATE.replace(TURN, "message.role + '\\n' + message.content.split('</think>')[-1]"),
        r"rewrites earlier turns: it drops their thoughts",
    ),
    "thoughts of earlier turns dropped, the last one kept": (
        CHAT_TEMPLATE.replace(
            TURN,
            "message.role + '\\n' + (message.content.split('</think>')[-1] if loop.revindex > 2 else message.content)",
        ),
        "rewrites earlier turns",
    ),
    "thoughts laid out anew (Qwen3)": (
        CHAT_TEMPLATE.replace(TURN, "message.role + '\\n' + message.content | replace('</think>\\n', '</think>\\n\\n')"),
        r"rewrites earlier turns: it writes .*</think>\\n\\n<tool_call>",
    ),
    "markers of thoughts taken out": (
        CHAT_TEMPLATE.replace(
            TURN,
            "message.role + '\\n' + (message.content | replace('<think>', '') if message.role == 'assistant' "
            "else message.content)",
        ),
        "rewrites earlier turns: it takes <think> and </think> out of them",
    ),
    "turns dropped once a tool has replied": (
        PLAIN.replace("{{- '<|im_start|>'", "{%- if m.role != 'assistant' -%}{{- '<|im_start|>'").replace(
            "{%- endfor -%}", "{%- endif -%}{%- endfor -%}"
        ),
        "rewrites earlier turns: it drops them once a tool has replied",
    ),
    "the thought opened by the template (R1, QwQ)": (
        CHAT_TEMPLATE.replace(OPENING, "<|im_start|>assistant\\n<think>\\n'"),
        r"opens the thought itself: its generation prompt ends with '<think>\\n'.*take that out",
    ),
    "the thought opened and closed (Qwen3 without thinking)": (
        CHAT_TEMPLATE.replace(OPENING, "<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n'"),
        "opens the thought itself and closes it",
    ),
    "the thought opened behind a reply alone": (
        CHAT_TEMPLATE.replace(OPENING, "<|im_start|>assistant\\n' + ('<think>' if messages[-1].role == 'tool' else '')"),
        "opens the thought itself",
    ),
    "a space behind the generation prompt (Mistral)": (
        CHAT_TEMPLATE.replace(TURN, "message.role + '\\n ' + message.content"),
        r"rewrites earlier turns: it writes .*assistant\\n <think>",
    ),
    "no place for a tool's reply": (
        PLAIN.replace("{{- '<|im_start|>'", "{%- if m.role != 'tool' -%}{{- '<|im_start|>'").replace(
            "{%- endfor -%}", "{%- endif -%}{%- endfor -%}"
        ),
        "drops the tool's reply",
    ),
    "no place for the system message": (
        PLAIN.replace("{%- for m in messages -%}", "{%- for m in messages[1:] -%}"),
        "drops the system message",
    ),
    "no place for the question": (PLAIN.replace("messages -%}", "messages if m.role != 'user' -%}"), "drops the user's question"),
    "the question escaped": (
        PLAIN.replace("m.content", "(m.content | tojson if m.role == 'user' else m.content)"),
        "writes the user's question as JSON",
    ),
    "content as a list of parts (LLaVA)": (PLAIN.replace("m.content", "m.content[0].text"), "each with text as its content"),
    "a fault of Jinja": ("{%- for m in messages -%}{{ m.content }}", "Unexpected end of template"),
    "a text and a number added": (PLAIN.replace("m.content", "m.content + 1"), "cannot render .*str"),
    "an argument of another type": (PLAIN.replace("m.content", "m.content.split(1)[0]"), "cannot render"),
    "the tool's name wanted": (
        CHAT_TEMPLATE.replace("message.role == 'tool'", "message.role == 'tool' and message['name'].startswith('x')"),
        "has no attribute 'name'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_its_reason(tokenizer: Any, name: str) -> None:
    template, reason = REFUSED[name]
    assert re.search(reason, refusal(tokenizer, template))


def test_templates_by_name_are_the_one_for_tools(tokenizer: Any) -> None:
    """Some tokenizers have several: the date in another one than is used is no fault."""
    assert refusal(tokenizer, {"default": "{{ strftime_now('%d') }}", "tool_use": CHAT_TEMPLATE}) == ""
    assert "today's date" in refusal(tokenizer, {"default": "{{ strftime_now('%d') }}"})
    assert "none for conversations with tools" in refusal(tokenizer, {"rag": CHAT_TEMPLATE})


@pytest.mark.parametrize(("change", "shown"), [(lambda template: template, True), (lambda _: PLAIN, False)])
def test_whether_the_tool_is_shown_is_known(tokenizer: Any, change: Callable[[str], str], shown: bool) -> None:
    tokenizer.chat_template = change(CHAT_TEMPLATE)
    assert ChatProtocol(tokenizer, SEARCH).shows_tools is shown


def test_qwen2_5s_own_template_is_taken(tokenizer: Any) -> None:
    template = (Path(__file__).resolve().parents[1] / "data" / "qwen2_5_chat_template.jinja").read_text()
    made, whole = pieces_and_whole(tokenizer, template, SEEN)
    assert made == whole
