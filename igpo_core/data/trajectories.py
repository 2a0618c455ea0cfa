"""Expert trajectories in the messages form (roles, tool calls), as demonstrations in the protocol that policies are taught.

A row has `messages`. A system message before the question is left out, for a policy is told its own. The question is the user's.
Then each turn of the assistant either calls one tool (`tool_calls`, or <tool_call> in its text), which a message of the role tool
answers, or gives the final answer, with which the trajectory ends. The thought is `reasoning_content`, or <think> .. </think> in
the text, and then the text beside a call.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from igpo_core.data.reading import Row, present, read_table
from igpo_core.data.schema import TRAJECTORY_SCHEMA, table
from igpo_core.environments.base import DemonstrationTurn, Interface
from igpo_core.protocol.base import MARKERS
from igpo_core.protocol.calls import parse_call
from igpo_core.trajectory import Action, Final, Malformed, ToolCall

ROLES = ("system", "user", "assistant", "tool")


def load_trajectories(path: str | Path, interface: Interface) -> pandas.DataFrame:
    """Trajectories of a file as a frame with TRAJECTORY_SCHEMA and `defect`, in file order. interface: the tools that they may
    call.

    Raises DataError: a file that cannot be read, or without `messages`.
    """
    raw = read_table(path)
    raw.require(["messages"], "a file of trajectories")
    rows = []
    for index in range(len(raw.rows)):
        row = Row.of(raw, index)
        name = row.identifier("id") if "id" in row.values else row.name
        question, turns = _read(row, row.get("messages", required=True), interface)
        told = json.dumps([_written(turn) for turn in turns], ensure_ascii=False)
        answer = turns[-1].action.text if turns and isinstance(turns[-1].action, Final) else ""
        rows.append({"id": name, "question": question, "answer": answer, "turns": told, "defect": row.defect})
    return table(rows, TRAJECTORY_SCHEMA)


def to_turns(told: str) -> tuple[DemonstrationTurn, ...]:
    """Return the turns of a row of the table."""
    return tuple(
        DemonstrationTurn(turn["thought"], Final(turn["answer"]))
        if "answer" in turn
        else DemonstrationTurn(turn["thought"], ToolCall(turn["tool"], turn["arguments"]), turn["observation"])
        for turn in json.loads(told)
    )


def _written(turn: DemonstrationTurn) -> dict[str, Any]:
    if isinstance(turn.action, Final):
        return {"thought": turn.thought, "answer": turn.action.text}
    called = {"tool": turn.action.name, "arguments": dict(turn.action.arguments)}
    return {"thought": turn.thought, **called, "observation": turn.observation}


def _read(row: Row, messages: Any, interface: Interface) -> tuple[str, list[DemonstrationTurn]]:
    """The question and the turns of a row; what does not fit is a defect of the row, and reading it ends there."""
    question = ""
    turns: list[DemonstrationTurn] = []
    called: tuple[str, ToolCall] | None = None  # thought and call that no tool has answered yet
    if messages is not None and not isinstance(messages, list):
        row.bad("messages", f"is {type(messages).__name__}, not a list")
    for place, message in enumerate(messages if isinstance(messages, list) else ()):
        where = f"messages[{place}]"
        misplaced = _misplaced(message, question, turns, called)
        if misplaced:
            row.bad(where, misplaced)
        elif message["role"] == "user":
            question = _text(row, where, message)
        elif message["role"] == "tool" and called is not None:
            turns.append(DemonstrationTurn(*called, _text(row, where, message)))
            called = None
        elif message["role"] == "assistant":
            thought, action = _turn(row, where, message, interface)
            if isinstance(action, ToolCall):
                called = (thought, action)
            elif isinstance(action, Final):
                turns.append(DemonstrationTurn(thought, action))
        if row.defects:
            return question, []
    if row.readable and not row.defects and not (turns and isinstance(turns[-1].action, Final)):
        row.bad("messages", "do not end with a final answer of the assistant")
    return question, turns


def _misplaced(message: Any, question: str, turns: Sequence[DemonstrationTurn], called: object) -> str:
    """Say why a message cannot follow the ones before it; "" where it can."""
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ROLES:
        return f"has the role {str(role)[:40]!a}, not one of {', '.join(ROLES)}"
    if called is not None and role != "tool":
        return "comes before a message of the role tool has answered the call"
    if turns and isinstance(turns[-1].action, Final):
        return "comes after the final answer"
    if role == "system" and question:
        return "is a system message behind the question: a policy is told nothing in between, so leave the message out"
    if role == "user" and question:
        return "is a second message of the user: a trajectory is one question, tool calls and an answer"
    if role == "tool" and called is None:
        return "answers no tool call"
    if role == "assistant" and not question:
        return "comes before the user's question"
    return ""


def _turn(
    row: Row, where: str, message: Mapping[str, Any], interface: Interface
) -> tuple[str, ToolCall | Final | None]:
    """Thought and action of an assistant's message; None where it does not fit, which is noted."""
    text = _text(row, where, message, required=False)
    thought = row.checked(f"{where}.reasoning_content", present(message.get("reasoning_content")) or "")
    if not thought and text.startswith("<think>") and "</think>" in text:
        thought, _, text = text.removeprefix("<think>").partition("</think>")
        thought, text = thought.strip(), text.strip()
    calls = present(message.get("tool_calls"))
    action: Action
    beside = ""
    if not calls and text.endswith("</tool_call>"):
        before, _, written = text.removesuffix("</tool_call>").partition("<tool_call>")
        action = parse_call(written, interface)
        beside = before.strip()
    elif calls:
        action = _called(calls, interface)
        beside = text
    else:
        answer = text.removeprefix("<answer>").removesuffix("</answer>").strip()
        action = Final(answer) if answer else Malformed("there is neither a tool call nor an answer")
        if any(marker in answer for marker in MARKERS):
            action = Malformed(f"the answer has a tag of the protocol in it ({', '.join(MARKERS)})")
    thought = "\n".join(filter(None, (thought, beside)))
    if any(marker in thought for marker in MARKERS):
        action = Malformed(f"the thought has a tag of the protocol in it ({', '.join(MARKERS)})")
    if isinstance(action, Malformed):
        row.bad(where, action.reason)
        return thought, None
    return thought, action


def _called(calls: Any, interface: Interface) -> ToolCall | Final | Malformed:
    """The one call of `tool_calls`: {"function": {"name": .., "arguments": an object or its JSON}}, or without "function"."""
    if not isinstance(calls, list) or len(calls) != 1:
        count = len(calls) if isinstance(calls, list) else "no list of"
        return Malformed(f"there are {count} tool calls, and a turn makes one: give each its own turn and reply")
    call = calls[0].get("function", calls[0]) if isinstance(calls[0], Mapping) else {}
    if not isinstance(call, Mapping):
        return Malformed("the tool call is no object with name and arguments")
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return Malformed("the arguments of the tool call are not JSON")
    if isinstance(arguments, Mapping):  # parquet has every argument of any row in each, empty
        arguments = {name: value for name, value in arguments.items() if present(value) is not None}
    try:
        written = json.dumps({"name": call.get("name"), "arguments": arguments})
    except TypeError as error:  # bytes, dates and decimal numbers of parquet
        return Malformed(f"a value of the tool call is none that JSON has ({error}): write it as text")
    return parse_call(written, interface)


def _text(row: Row, where: str, message: Mapping[str, Any], *, required: bool = True) -> str:
    """The text of a message, given as text or as a list of parts of type text."""
    content = present(message.get("content"))
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(parts):
            row.bad(where, "has a part that is no text")
            return ""
        content = "".join(texts)
    if content is None:
        content = ""
    text = row.checked(f"{where}.content", content)
    if required and not text and not row.defects:
        row.bad(where, "is empty")
    return text
