"""Render conversations with a tokenizer's chat template, and settle in the template what a run must not see change.

What is settled is written into the template itself: a policy that is saved with it renders the same wherever it is loaded.
"""

import re
from collections.abc import Sequence
from typing import Any

from igpo_core.errors import ConfigError

# The day that templates are told which ask for a date (strftime_now), so that a run sees the same prompts tomorrow, by the codes
# of strftime. Llama 3.2's own template names this day where it knows no date.
TODAY = {
    "%-d": "26", "%-m": "7", "%Y": "2024", "%y": "24", "%m": "07", "%B": "July", "%b": "Jul", "%d": "26", "%e": "26",
    "%A": "Friday", "%a": "Fri", "%j": "208", "%F": "2024-07-26", "%H": "12", "%I": "12", "%M": "00", "%S": "00", "%p": "PM",
}  # fmt: skip
# what with_thinking wrote: the first line of all; elsewhere such a line is the template's own
SETTLED = re.compile(r"\A\{% set enable_thinking = (?:true|false) %\}\n")


def with_fixed_date(template: Any) -> Any:
    """Return the chat template with a date of its own in place of today's; also where a tokenizer has several, by name."""
    if isinstance(template, dict):
        return {name: with_fixed_date(text) for name, text in template.items()}
    if "strftime_now" not in template or "macro strftime_now" in template:
        return template
    named = "".join(f" | replace({code!r}, {name!r})" for code, name in TODAY.items())
    # transformers takes the line's end behind a block away
    return f"{{% macro strftime_now(form) %}}{{{{ form{named} }}}}{{% endmacro %}}\n{template}"


def with_thinking(template: Any, thinking: bool | None) -> Any:
    """Return the chat template with thinking switched on or off for good; None: as it is.

    Templates that can switch it read `enable_thinking`, which whoever renders may give. What was settled before is replaced.
    """
    if thinking is None:
        return template
    if isinstance(template, dict):
        return {name: with_thinking(text, thinking) for name, text in template.items()}
    # transformers takes the line's end behind a block away
    return f"{{% set enable_thinking = {str(thinking).lower()} %}}\n{SETTLED.sub('', template)}"


def render(
    tokenizer: Any, messages: Sequence[dict[str, Any]], *, tools: Sequence[Any] | None = None, before_a_turn: bool
) -> str:
    """Return a conversation as the template writes it. before_a_turn: up to what stands before an assistant's next message.

    Raises ConfigError where the template cannot render it.
    """
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            messages,
            tools=tools,
            add_generation_prompt=before_a_turn,
            tokenize=False,
        )
    # a template is a program of somebody else's: it may call, add and look up what is not there
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise ConfigError(
            f"this chat template cannot render a {messages[-1]['role']} message after the others: {error}. It must take a "
            "system message, tools, and a tool's reply, each with text as its content: use another model, or another "
            "template"
        ) from error
    return str(text)
