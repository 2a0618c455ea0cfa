"""Turns of chat models as text: written from a thought and an action, and read back."""

import json
import sys
from typing import Any

from igpo_core.environments.base import Interface, Parameter, Tool
from igpo_core.text import one_form
from igpo_core.trajectory import Action, Malformed, ToolCall


def turn_parts(text: str) -> tuple[str, str, str] | None:
    """Return (thought, opening marker, what it opens) of a whole turn; None where it has another form. In linear time: a
    policy may write thousands of markers."""
    opening, end, body = text.strip().partition("</think>")
    if not end or not opening.startswith("<think>"):
        return None
    body = body.strip()
    for marker, closing in (("<tool_call>", "</tool_call>"), ("<answer>", "</answer>")):
        if body.startswith(marker) and body.endswith(closing):
            return opening.removeprefix("<think>"), marker, body.removeprefix(marker).removesuffix(closing)
    return None


def call_json(call: ToolCall) -> str:
    """Return what stands between <tool_call> and </tool_call>."""
    return json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)


def call_of(tool: Tool, text: str) -> ToolCall:
    """A call of the tool with this text in every parameter that takes one."""
    return ToolCall(tool.name, {item.name: text if item.kind == "string" else 1 for item in tool.parameters})


class _Twice(ValueError):
    """A name that an object of JSON has twice: which of two queries was meant is not known."""


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Twice(name)
        found[name] = value
    return found


def parse_call(text: str, interface: Interface) -> Action:
    """The JSON between <tool_call> and </tool_call>: {"name": <a tool>, "arguments": {<parameter>: <value>, ..}}."""
    try:
        call = json.loads(text, object_pairs_hook=_each_name_once)
    except _Twice as error:
        return Malformed(f"the tool call gives {str(error)[:40]!a} twice")
    except (ValueError, RecursionError):  # ValueError: no JSON, or an integer of thousands of digits
        return Malformed("the tool call is not JSON")
    names = " or ".join(f'"{tool.name}"' for tool in interface.tools)
    if not isinstance(call, dict) or not isinstance(call.get("arguments"), dict):
        return Malformed(f'the tool call is not {{"name": {names}, "arguments": {{..}}}}')
    tool = interface.tool(call["name"]) if isinstance(call.get("name"), str) else None
    if tool is None:
        return Malformed(f'the tool call is not {{"name": {names}, "arguments": {{..}}}}')
    arguments = {}
    for parameter in tool.parameters:
        value = _argument(parameter, call["arguments"].get(parameter.name))
        if isinstance(value, Malformed):
            return value
        arguments[parameter.name] = value
    return ToolCall(tool.name, arguments)


def _argument(parameter: Parameter, value: Any) -> Any:
    """A parameter's value as the tool gets it; Malformed, in words, where it is of another kind."""
    if parameter.kind == "number":
        # NaN compares false; a whole number of 400 digits is none that a tool could compute with
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            return Malformed(f"the tool call has no number as {parameter.name}")
        return value
    if not isinstance(value, str) or not one_form(value):
        return Malformed(f"the tool call has no {parameter.name} text")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in value):
        return Malformed(f"the {parameter.name} holds half a character (an unpaired surrogate)")
    return one_form(value)
