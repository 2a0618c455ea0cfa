"""What is wrong with given settings, in words: pydantic's errors with the field, the reason and what would be right."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that a misspelt one comes near to, as " (did you mean hops?)"; "" where none does."""
    near = difflib.get_close_matches(name, [*known], 1)
    return f" (did you mean {near[0]}?)" if near else ""


def reasons(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Each fault of the model's input as "field: what is wrong"; a rule over several fields names them itself."""
    return [
        _reason(fault["loc"], fault["type"], fault["msg"], fault["input"], fault.get("ctx", {}), model)
        for fault in error.errors()
    ]


def _reason(
    place: tuple[int | str, ...],
    kind: str,
    message: str,
    given: Any,
    context: Mapping[str, Any],
    model: type[BaseModel],
) -> str:
    field = ".".join(map(str, place))
    if kind == "extra_forbidden":
        known = _beside(model, place)
        message = (
            f"there is no such setting{nearest(str(place[-1]), known)}: remove it or correct its name, here are "
            f"{', '.join(known)}"
        )
    elif not kind.startswith("value_error") and isinstance(given, str | int | float):
        message += f", got {given!r}"
        if kind in ("literal_error", "union_tag_invalid"):
            expected = str(context.get("expected", context.get("expected_tags", "")))
            message += nearest(str(given), re.findall(r"'([^']+)'", expected))
    message = message.removeprefix("Value error, ")
    return f"{field}: {message}" if field else message


def _beside(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The settings that exist where the last part of a fault's place was looked for."""
    found = [model]
    for part in place[:-1]:
        held = [one.model_fields[str(part)].annotation for one in found if part in one.model_fields]
        if held:
            found = _models(held)
        elif isinstance(part, str):  # pydantic puts the kind that decided between models into the place
            found = [
                one for one in found if "kind" in one.model_fields and one.model_fields["kind"].default == part
            ] or found
    return [name for one in found for name in one.model_fields]


def _models(annotations: Sequence[Any]) -> list[type[BaseModel]]:
    """Those that annotations name at any depth."""
    found: list[type[BaseModel]] = []
    for one in annotations:
        found += [one] if isinstance(one, type) and issubclass(one, BaseModel) else _models(get_args(one))
    return found
