"""Conversations as the messages that a protocol says it speaks in, written here once more, and as its template renders them."""

import json
from collections.abc import Sequence
from typing import Any

from igpo_core.environments.searching import search_for
from igpo_core.protocol import ChatProtocol
from igpo_core.protocol.layouts import tool_section
from igpo_core.trajectory import Final


def messages(
    chat: ChatProtocol, question: str, rounds: Sequence[tuple[str, str, str]], answer: tuple[str, str] | None = None
) -> list[dict[str, Any]]:
    """rounds: thought, query, reply. answer: thought, answer."""
    layout = chat.frames.layout
    system = chat.interface.system_prompt
    if layout.thought == "none":
        system += "\n\nThoughts are switched off: begin every turn with the call or with the answer."
    if layout.tools == "prompt":
        system = f"{system}\n\n{tool_section(chat.interface)}"
    told = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    if layout.system == "question":
        told = [{"role": "user", "content": f"{system}\n\n{question}"}]
    for thought, query, reply in rounds:
        body = json.dumps({"name": "search", "arguments": {"query": query}}, ensure_ascii=False)
        turn = thinking(layout.thought, thought, f"<tool_call>\n{body}\n</tool_call>")
        if layout.call == "tool_calls":
            function = {"name": "search", "arguments": {"query": query}}
            turn = thinking(layout.thought, thought, "")
            turn["tool_calls"] = [{"type": "function", "id": "toolcall1", "function": function}]
        seen = {"role": "tool", "name": "search", "tool_call_id": "toolcall1", "content": reply}
        if layout.reply == "user":
            seen = {"role": "user", "content": f"<tool_response>\n{reply}\n</tool_response>"}
        told += [turn, seen]
    if answer:
        told.append(thinking(layout.thought, answer[0], f"<answer>\n{answer[1]}\n</answer>"))
    return told


def thinking(way: str, thought: str, content: str) -> dict[str, Any]:
    if way == "none":
        return {"role": "assistant", "reasoning_content": "\n", "content": content}
    if way == "reasoning_content":
        return {"role": "assistant", "reasoning_content": thought, "content": content}
    return {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n{content}".rstrip("\n")}


def rendered(
    chat: ChatProtocol, question: str, rounds: Sequence[tuple[str, str, str]], answer: Any = None
) -> list[int]:
    """The ids of the template's own text of that conversation."""
    tools = [tool.schema for tool in chat.interface.tools] if chat.frames.layout.tools == "template" else None
    text = chat.tokenizer.apply_chat_template(
        messages(chat, question, rounds, answer), tools=tools, add_generation_prompt=answer is None, tokenize=False
    )
    return list(chat.tokenizer(text, add_special_tokens=False)["input_ids"])


def put_together(
    chat: ChatProtocol, question: str, rounds: Sequence[tuple[str, str, str]], answer: Any = None
) -> list[int]:
    """The ids of it piece by piece, as a rollout does."""
    ids = chat.prompt(question)
    for thought, query, reply in rounds:
        ids += [*chat.turn(thought, search_for(query))[0], *chat.observation(reply)]
    return ids + (chat.turn(answer[0], Final(answer[1]))[0] if answer else [])
