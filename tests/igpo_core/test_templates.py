"""Chat templates as other models have them: each is continued to the letter, or refused with its own reason and the cure."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from igpo_core.environments.searching import SEARCH, search_for
from igpo_core.errors import ConfigError
from igpo_core.policies import CHAT_TEMPLATE, make_policy
from igpo_core.protocol import ChatProtocol
from igpo_core.trajectory import Final, Malformed
from tests.igpo_core.conversations import put_together, rendered

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


def pieces_and_whole(tokenizer: Any, template: Any, seen: str) -> tuple[str, str]:
    """A history of two replies as it is put together, and as the template gives it."""
    tokenizer.chat_template = template
    chat = ChatProtocol(tokenizer, SEARCH)
    made, whole = (way(chat, "Who?", [("t", "q", seen)] * 2) for way in (put_together, rendered))
    assert made == whole
    answered = put_together(chat, "Who?", [("t", "q", seen)], ("so", "Ida"))
    assert rendered(chat, "Who?", [("t", "q", seen)], ("so", "Ida"))[: len(answered)] == answered
    assert chat.parse(chat.turn("t", search_for("q"))[0]) == search_for("q")
    return chat.decode(made), chat.decode(whole)


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


@pytest.mark.parametrize("eos", ["<|endoftext|>", "<|im_start|>"])
def test_a_turn_ends_with_what_the_template_ends_it_with(tokenizer: Any, eos: str) -> None:
    """Base models of Qwen2.5, Gemma: the tokenizer's eos_token is another one."""
    tokenizer.eos_token = eos
    made, whole = pieces_and_whole(tokenizer, CHAT_TEMPLATE, SEEN)
    assert made == whole
    chat = ChatProtocol(tokenizer, SEARCH)
    assert chat.stop_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    turn, _ = chat.turn("t", search_for("q"))
    assert isinstance(chat.parse([*turn[:-1], tokenizer.eos_token_id]), Malformed)


@pytest.mark.parametrize("end", ["'\\n'", "''"])
def test_a_turn_without_an_end_of_its_own_is_refused(tokenizer: Any, end: str) -> None:
    ended = PLAIN.replace("+ '<|im_end|>\\n'", f"+ {end}")
    assert ended != PLAIN
    reason = r"does not end a turn with the eos_token .* behind a turn stands '(\\n)?<\|im_start\|>"
    assert re.search(reason, refusal(tokenizer, ended))


def test_a_call_may_end_with_the_token_that_opens_its_reply(tokenizer: Any) -> None:
    """GLM-4: behind a call stands <|observation|>, behind an answer nothing."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|seen|>"]})
    template = (
        "{%- for m in messages -%}{{- '<|seen|>' if m.role == 'tool' else '<|im_start|>' + m.role -}}{{- '\\n' + m.content -}}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )
    tokenizer.chat_template = template
    chat = ChatProtocol(tokenizer, SEARCH)
    rounds = [("t", "q", SEEN)] * 2
    assert put_together(chat, "Who?", rounds) == rendered(chat, "Who?", rounds)
    seen, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|seen|>", "<|im_end|>"))
    assert put_together(chat, "Who?", rounds, ("t", "a")) == [*rendered(chat, "Who?", rounds, ("t", "a")), end]
    assert chat.stop_ids == (seen, end)
    turns = {seen: chat.turn("t", search_for("q"))[0], end: chat.turn("t", Final("a"))[0]}
    assert chat.parse(turns[seen]) == search_for("q") and chat.parse(turns[end]) == Final("a")
    for own, other in ((seen, end), (end, seen)):
        assert isinstance(chat.parse([*turns[own][:-1], other]), Malformed)


# refused once, continued now: what the template has no place for is said in another way
TAKEN = {
    "the reply as JSON (Llama 3.1)": CHAT_TEMPLATE.replace(REPLY, "+ (message.content | tojson) + '\\n</tool_response>"),
    "no system message (Gemma 2)": "{%- if messages[0].role == 'system' -%}{{ raise_exception('System role not supported') }}"
    "{%- endif -%}" + CHAT_TEMPLATE,
    "the system message without its markers (SmolLM3)": CHAT_TEMPLATE.replace(
        TURN, "message.role + '\\n' + (message.content | replace('/think', '') if loop.first and message.role == 'system' "
        "else message.content)"
    ),
    "no place for the system message": "{%- set messages = messages | rejectattr('role', 'equalto', 'system') | list -%}" + PLAIN,
    "roles must alternate (Mistral)": "{%- for m in messages[1:] -%}{%- if m.role not in ['user', 'assistant'] -%}"
    "{{ raise_exception('roles must alternate') }}{%- endif -%}{%- endfor -%}" + CHAT_TEMPLATE,
    "tool call ids of nine letters (Mistral)": CHAT_TEMPLATE.replace(
        "{%- if message.role == 'tool' -%}",
        "{%- if message.role == 'tool' -%}{%- if message.tool_call_id is undefined or message.tool_call_id | length != 9 -%}"
        "{{ raise_exception('tool call ids should have length 9') }}{%- endif -%}",
    ),
    "thoughts laid out anew (Qwen3)": CHAT_TEMPLATE.replace(
        TURN, "message.role + '\\n' + message.content | replace('</think>\\n', '</think>\\n\\n')"
    ),
    "the thought opened by the template (R1, QwQ)": CHAT_TEMPLATE.replace(OPENING, "<|im_start|>assistant\\n<think>\\n'"),
    "a space behind the generation prompt (Mistral)": CHAT_TEMPLATE.replace(
        TURN, "message.role + '\\n' + (' ' if message.role == 'assistant' else '') + message.content"
    ),
    "a space before the end": PLAIN.replace("+ '<|im_end|>\\n'", "+ ' <|im_end|>\\n'"),
    "no place for a tool's reply (Phi-4)": PLAIN.replace(
        "{{- '<|im_start|>'", "{%- if m.role != 'tool' -%}{{- '<|im_start|>'"
    ).replace("{%- endfor -%}", "{%- endif -%}{%- endfor -%}"),
    "the tool's name wanted": CHAT_TEMPLATE.replace(
        "message.role == 'tool'", "message.role == 'tool' and message['name'].startswith('s')"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_what_has_no_place_is_said_in_another_way(tokenizer: Any, name: str) -> None:
    assert TAKEN[name] not in (CHAT_TEMPLATE, PLAIN)
    made, whole = pieces_and_whole(tokenizer, TAKEN[name], SEEN)
    assert made == whole and SEARCH.system_prompt in made


def test_todays_date_is_a_fixed_one_and_stays_so(tokenizer: Any, tmp_path: Path) -> None:
    """SmolLM3, Llama 3.2: the prompts of tomorrow are the same, of the saved model too."""
    made, whole = pieces_and_whole(tokenizer, "{{- strftime_now('%d %B %Y, %d %b') -}}" + CHAT_TEMPLATE, SEEN)
    assert made == whole and made.startswith("26 July 2024, 26 Jul<|im_start|>")
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert loaded.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False).startswith("26 July 2024")
    again = ChatProtocol(loaded, SEARCH)
    assert loaded.chat_template == tokenizer.chat_template and again.decode(again.prompt("Who?")) == made.split("Who?")[
        0
    ] + ("Who?" + again.frames.question[1])


REFUSED = {
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
    "the thought opened and closed (Qwen3 without thinking)": (
        CHAT_TEMPLATE.replace(OPENING, "<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n'"),
        "opens the thought itself and closes it",
    ),
    "the thought opened behind a reply alone": (
        CHAT_TEMPLATE.replace(OPENING, "<|im_start|>assistant\\n' + ('<think>' if messages[-1].role == 'tool' else '')"),
        "opens the thought itself",
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
    "the last messages alone": (
        "{%- if messages | length > 30 -%}{%- set messages = messages[:2] + messages[-28:] -%}{%- endif -%}" + CHAT_TEMPLATE,
        "rewrites earlier turns",
    ),
    "no more than fifty messages": (
        "{%- if messages | length > 50 -%}{{- raise_exception('too many messages') -}}{%- endif -%}" + CHAT_TEMPLATE,
        "too many messages",
    ),
    "another word for no results": (
        CHAT_TEMPLATE.replace(REPLY, "+ (message.content | replace('No results.', 'none')) + '\n</tool_response>"),
        "changes the tool's reply",
    ),
    "a short reply left out": (
        CHAT_TEMPLATE.replace(REPLY, "+ (message.content if message.content | length > 3 else '-') + '\n</tool_response>"),
        "changes the tool's reply",
    ),
    "chance": ("{{- range(1000) | random -}}" + CHAT_TEMPLATE, "gives another text each time"),
    "no prompt for a turn": (CHAT_TEMPLATE.replace("add_generation_prompt", "false"), "writes nothing for add_generation_prompt"),
    "a fault of Jinja": ("{%- for m in messages -%}{{ m.content }}", "Unexpected end of template"),
    "a text and a number added": (PLAIN.replace("m.content", "m.content + 1"), "cannot render .*str"),
    "an argument of another type": (PLAIN.replace("m.content", "m.content.split(1)[0]"), "cannot render"),
}  # fmt: skip


@pytest.mark.parametrize("piece", ["<think>\n", '{"name":', "</"])
def test_added_tokens_that_hide_a_turns_marks_are_refused(tokenizer: Any, piece: str) -> None:
    """A turn of the protocol could not be read back: such a token counts as a control token within it."""
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=False)])
    with pytest.raises(ConfigError, match=r"are not read back: .*control token inside"):
        ChatProtocol(tokenizer, SEARCH)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_its_reason(tokenizer: Any, name: str) -> None:
    template, reason = REFUSED[name]
    assert re.search(reason, refusal(tokenizer, template))


def test_templates_by_name_are_the_one_for_tools(tokenizer: Any) -> None:
    """Some tokenizers have several: a fault in another one than is used is none."""
    assert refusal(tokenizer, {"default": "{{ now('%d') }}", "tool_use": CHAT_TEMPLATE}) == ""
    assert "'now' is undefined" in refusal(tokenizer, {"default": "{{ now('%d') }}"})
    made, whole = pieces_and_whole(
        tokenizer, {"default": PLAIN, "tool_use": "{{ strftime_now('%Y') }}" + CHAT_TEMPLATE}, SEEN
    )
    assert made == whole and made.startswith("2024")
    assert "none for conversations with tools" in refusal(tokenizer, {"rag": CHAT_TEMPLATE})


@pytest.mark.parametrize(("change", "shown"), [(lambda template: template, True), (lambda _: PLAIN, False)])
def test_whether_the_tool_is_shown_is_known(tokenizer: Any, change: Callable[[str], str], shown: bool) -> None:
    tokenizer.chat_template = change(CHAT_TEMPLATE)
    assert ChatProtocol(tokenizer, SEARCH).shows_tools is shown


def test_qwen2_5s_own_template_is_taken(tokenizer: Any) -> None:
    template = (Path(__file__).resolve().parents[1] / "data" / "qwen2_5_chat_template.jinja").read_text()
    made, whole = pieces_and_whole(tokenizer, template, SEEN)
    assert made == whole


def test_marks_that_are_no_tokens_are_kept_out_of_text_too(tokenizer: Any) -> None:
    """[INST] of Mistral's first models is plain text: a passage that holds it must not look like the end of a reply."""
    tokenizer.chat_template = (
        "{%- for m in messages -%}{{- m.content + '<|im_end|>' if m.role == 'assistant' else "
        "'[INST] ' + m.content + '[/INST]' -}}"
        "{%- endfor -%}"
    )
    chat = ChatProtocol(tokenizer, SEARCH)
    shown = chat.decode(chat.observation("so[/INST]<think>"))
    assert shown.count("[/INST]") == 1 and "so[ /INST]< think>" in shown


@pytest.mark.parametrize(
    "call", ["'CALL ' ~ m.tool_calls[0].function.name ~ m.tool_calls[0].function.arguments.query", "''"]
)
def test_a_template_whose_calls_are_of_another_form_is_not_left_to_tell_of_them(tokenizer: Any, call: str) -> None:
    """It tells of the tools, and of calls by another name, or drops them: the prompt then tells of both itself."""
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        "{%- if message.role == 'tool' -%}",
        "{%- set m = message -%}{%- if m.tool_calls -%}{{- '<|im_start|>assistant\\n' ~ "
        + call
        + " ~ '<|im_end|>\\n' -}}"
        "{%- elif message.role == 'tool' -%}",
    )
    chat = ChatProtocol(tokenizer, SEARCH)
    assert chat.shows_tools is (call == "''")
    rounds = [("t", "q", SEEN)] * 2
    assert put_together(chat, "Who?", rounds) == rendered(chat, "Who?", rounds)
    assert chat.decode(chat.prompt("Who?")).count("What to look for.") == 1


def test_a_border_that_the_tokenizer_merges_is_refused(tokenizer: Any) -> None:
    """The text is equal, and the tokens are not: the end of a prompt and the beginning of a turn are one token."""
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken("\n<thi", special=False, normalized=False)])
    assert "as one token" in refusal(tokenizer, PLAIN)


def test_words_of_a_reply_in_json_are_found(tokenizer: Any) -> None:
    """Llama 3.1: an answer at the end of a line is one word, and not that word, a backslash and an n."""
    tokenizer.chat_template = TAKEN["the reply as JSON (Llama 3.1)"]
    chat = ChatProtocol(tokenizer, SEARCH)
    ids = chat.observation(SEEN + " \\ \x01")
    assert "town\\n2." in chat.decode(ids) and SEEN + " \\ \x01" in chat.plain(ids)


def test_an_eos_token_that_ends_no_turn_ends_a_rollouts_turn_all_the_same(chat_policy: Any) -> None:
    """Gemma: a sampled <eos> ends the turn, which is malformed, whether or not the model's generation_config names it."""
    tokenizer = copy.deepcopy(chat_policy.protocol.tokenizer)
    assert make_policy(chat_policy.model, tokenizer, SEARCH).end_ids == chat_policy.end_ids
    tokenizer.eos_token = "<|endoftext|>"
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    model = copy.deepcopy(chat_policy.model)
    model.generation_config.eos_token_id = None
    assert make_policy(model, tokenizer, SEARCH).end_ids == tuple(ends)
