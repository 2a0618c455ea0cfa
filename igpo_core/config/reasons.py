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
    faults = error.errors()
    return [
        _reason(fault["loc"], fault["type"], fault["msg"], fault["input"], fault.get("ctx", {}), model)
        for fault in faults
        # a list is too short for pydantic where what is in it is at fault, which is told by itself
        if fault["type"] != "too_short" or not any(_within(other["loc"], fault["loc"]) for other in faults)
    ]


def _within(place: tuple[int | str, ...], section: tuple[int | str, ...]) -> bool:
    return len(place) > len(section) and place[: len(section)] == section


def _reason(
    place: tuple[int | str, ...],
    kind: str,
    message: str,
    given: Any,
    context: Mapping[str, Any],
    model: type[BaseModel],
) -> str:
    visible, found = _walk(model, place[:-1])
    if place:
        visible += [] if _is_tag(found, place[-1]) else [str(place[-1])]
    field = ".".join(visible)
    if kind == "extra_forbidden":
        known = [name for one in found for name in one.model_fields]
        message = (
            f"there is no such setting{nearest(str(place[-1]), known)}: remove it or correct its name, here are "
            f"{', '.join(known)}"
        )
    if kind == "union_tag_invalid":
        given = context.get("tag", given)
    if kind != "extra_forbidden" and not kind.startswith("value_error") and isinstance(given, str | int | float):
        message += f", got {given!r}"
        if kind in ("literal_error", "union_tag_invalid"):
            expected = str(context.get("expected", context.get("expected_tags", "")))
            message += nearest(str(given), re.findall(r"'([^']+)'", expected))
    message = message.removeprefix("Value error, ")
    return f"{field}: {message}" if field else message


def _walk(model: type[BaseModel], place: Sequence[int | str]) -> tuple[list[str], list[type[BaseModel]]]:
    """The path as its author wrote it, and the models that may stand at its end: pydantic puts the kind that decided between
    models into the place."""
    found, visible = [model], []
    for part in place:
        if any(part in one.model_fields for one in found):
            held = [one.model_fields[str(part)].annotation for one in found if part in one.model_fields]
            found = _models(held)
            visible.append(str(part))
        elif _is_tag(found, part):
            found = [one for one in found if _tag(one) == part]
        else:
            visible.append(str(part))
    return visible, found


def _is_tag(found: Sequence[type[BaseModel]], part: int | str) -> bool:
    """Whether it is the kind that decided between these models."""
    return len(found) > 1 and any(_tag(one) == part for one in found)


def _tag(model: type[BaseModel]) -> Any:
    """What tells a model from the others of its union."""
    return next((model.model_fields[name].default for name in ("kind", "reward") if name in model.model_fields), None)


def _models(annotations: Sequence[Any]) -> list[type[BaseModel]]:
    """Those that annotations name at any depth."""
    found: list[type[BaseModel]] = []
    for one in annotations:
        found += [one] if isinstance(one, type) and issubclass(one, BaseModel) else _models(get_args(one))
    return found
