"""Tool calls as models write them: each is a search, or malformed with a reason; never an exception, never another search."""

import json
from typing import Any

import pytest

from igpo_core.environments.base import Parameter
from igpo_core.environments.searching import search_for
from igpo_core.protocol.calls import _argument
from igpo_core.trajectory import Malformed

CALL = '<tool_call>\n{"name": "search", "arguments": {"query": "lake Orla"}}\n</tool_call>'


def parsed(chat_policy: Any, body: str) -> Any:
    chat = chat_policy.protocol
    return chat.parse(chat._encode(f"<think>\nx\n</think>\n{body}{chat._stop_text}"))


@pytest.mark.parametrize(
    "body",
    [
        f"{CALL}\n{CALL}",
        CALL.replace('{"query": "lake Orla"}', '"{\\"query\\": \\"lake Orla\\"}"'),
        CALL.replace("}}", "}}}"),
        CALL.replace('"', "'"),
        CALL.replace('"lake Orla"', '["lake Orla", "Brenn"]'),
        CALL.replace('"lake Orla"', "null"),
        CALL.replace('"lake Orla"', "NaN"),
        CALL.replace('"lake Orla"', "9" * 5000),
        '<tool_call>\n{"name": "search"}\n</tool_call>',
        '<tool_call>\n{"name": "search", "query": "lake Orla"}\n</tool_call>',
        CALL.replace('{"name', '```json\n{"name').replace("}}", "}}\n```"),
        f"{CALL}\nI will wait.",
        f"{CALL}\n<answer>\nIda\n</answer>",
        CALL.replace("search", "browse"),
        CALL.replace('{"query": "lake Orla"}', '{"query": "lake Orla", "query": "Brenn"}'),
        CALL.replace('"name": "search"', '"name": "browse", "name": "search"'),
        f"<tool_call>\n{'[' * 5000}\n</tool_call>",
    ],
)
def test_another_form_is_malformed(chat_policy: Any, body: str) -> None:
    action = parsed(chat_policy, body)
    assert isinstance(action, Malformed) and action.reason


@pytest.mark.parametrize("query", ["what is </tool_call> in html", "Łódź 東京", 'a "quoted" \\ word', "{}"])
def test_a_query_of_any_text_is_that_query(chat_policy: Any, query: str) -> None:
    written = query.replace("\\", "\\\\").replace('"', '\\"')
    assert parsed(chat_policy, CALL.replace("lake Orla", written)) == search_for(query)


def test_ids_without_a_text_make_a_turn_malformed(chat_policy: Any) -> None:
    """A model's vocabulary may be larger than its tokenizer's; decoding drops such ids."""
    chat = chat_policy.protocol
    beyond = [len(chat.tokenizer) + 5]
    answer = [*chat._encode("\n</think>\n<answer>\nIda"), *beyond, *chat._encode(f"\n</answer>{chat._stop_text}")]
    assert isinstance(chat.parse([*chat._encode("<think>\nx"), *beyond, *answer]), Malformed)


@pytest.mark.parametrize("value", ["1" + "0" * 400, "-1" + "0" * 400, "1e999", "true", '"1"'])
def test_what_is_no_number_to_a_tool_is_malformed(value: str) -> None:
    found = _argument(Parameter("k", "a number", "number"), json.loads(value))
    assert isinstance(found, Malformed)
