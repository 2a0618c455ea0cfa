"""The messages that a chat template is given for a conversation, and what it writes around their texts."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from igpo_core.environments.base import Interface
from igpo_core.protocol.calls import call_json
from igpo_core.trajectory import ToolCall

CALL_ID = "toolcall1"  # nine letters and digits, as Mistral's templates ask for


@dataclass(frozen=True)
class Layout:
    """How a conversation is put into messages. The first value of each field is what most templates expect."""

    system: Literal["message", "question"]
    """The system prompt is a message of its own, or stands in front of the question.

    The second is for templates that have no system message, change it or move it."""
    tools: Literal["template", "prompt"]
    """Who describes the tools and the form of a call: the template, or the end of the system prompt."""
    thought: Literal["reasoning_content", "content", "none"]
    """A field of its own, or between <think> and </think> in the content; none where the template closes an empty thought before
    every turn (Qwen3 with thinking switched off)."""
    call: Literal["tool_calls", "content"]
    """A field of its own, or between <tool_call> and </tool_call> in the content."""
    reply: Literal["tool", "user"]
    """The role of a tool's reply. Of the user it stands between <tool_response> and </tool_response>."""


@dataclass(frozen=True)
class Round:
    """A turn that calls a tool, and the tool's reply."""

    thought: str
    call: ToolCall
    reply: str


@dataclass(frozen=True)
class Frames:
    """What a template writes around the texts of a conversation."""

    layout: Layout
    question: tuple[str, str]
    """Before and behind a question; the end is what stands before a turn."""
    call: tuple[str, str, str]
    """Before a thought, between it and the JSON of a call, and behind that up to the token that ends the turn."""
    final: tuple[str, str, str]
    """The same of a turn that answers."""
    reply: tuple[str, str]
    """Before and behind a tool's reply; the end is what stands before the next turn."""
    reply_as_json: bool
    """A reply is written with JSON's escapes (Llama 3.1)."""
    opened: str
    """What stands before every turn already: the beginning of a thought (Qwen3-Thinking), or an empty one; "" where the policy
    writes it all."""
    call_end: str
    final_end: str
    """The texts of the tokens that end a turn which calls, and one which answers."""

    def call_text(self, thought: str, call: ToolCall) -> str:
        """Return a turn that calls a tool, with the token that ends it."""
        before, between, behind = self.call
        return f"{before}{self.shaped(thought)}{between}{call_json(call)}{behind}{self.call_end}"

    def final_parts(self, thought: str) -> tuple[str, str]:
        """Return a turn that answers, up to the answer and behind it, with the token that ends it."""
        before, between, behind = self.final
        return f"{before}{self.shaped(thought)}{between}", f"{behind}{self.final_end}"

    def shaped(self, thought: str) -> str:
        """Return the thought as the template writes it: fields of their own lose the white space at their ends."""
        if self.layout.thought == "none":
            return ""
        return thought.strip() if self.layout.thought == "reasoning_content" else thought

    def shown(self, reply: str) -> str:
        """Return a tool's reply as the template writes it between the frames."""
        return json.dumps(reply, ensure_ascii=False)[1:-1] if self.reply_as_json else reply


def turn_message(layout: Layout, thought: str, call: ToolCall | None, text: str) -> dict[str, Any]:
    """An assistant's message that calls a tool, or says `text`."""
    message: dict[str, Any] = {"role": "assistant"}
    parts = []
    if layout.thought != "content":
        # Qwen3's template writes an empty thought for white space, and nothing for ""
        message["reasoning_content"] = "\n" if layout.thought == "none" else thought
    else:
        parts.append(f"<think>\n{thought}\n</think>")
    if call is not None and layout.call == "tool_calls":
        function = {"name": call.name, "arguments": dict(call.arguments)}
        message["tool_calls"] = [{"id": CALL_ID, "type": "function", "function": function}]
    else:
        parts.append(text if call is None else f"<tool_call>\n{call_json(call)}\n</tool_call>")
    return {**message, "content": "\n".join(parts)}


def reply_message(layout: Layout, call: ToolCall, text: str) -> dict[str, Any]:
    """Return the message of a tool's reply."""
    if layout.reply == "user":
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
    return {"role": "tool", "name": call.name, "tool_call_id": CALL_ID, "content": text}


NO_THOUGHTS = "Thoughts are switched off: begin every turn with the call or with the answer."


def tool_section(interface: Interface) -> str:
    """Return what tells a policy of its tools and of how to call one, for templates that do not."""
    tools = "\n".join(json.dumps(tool.schema["function"], ensure_ascii=False) for tool in interface.tools)
    return (
        f"Your tools, each as a JSON schema:\n{tools}\n\n"
        "A call is one JSON object with the tool's name and its arguments, between <tool_call> and </tool_call>:\n"
        '<tool_call>\n{"name": <the tool\'s name>, "arguments": {<parameter>: <value>}}\n</tool_call>'
    )
