"""Settings by their path, as factors and the start of a sweep name them: "rollout.group_size", "warm_start.stages.2.steps"."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any


def put(content: Any, path: str, value: Any) -> None:
    """Set content["a"]["b"][2] for path "a.b.2"; sections of which all is default so far are made. Raises ValueError where
    there is no such place."""
    *places, last = path.split(".")
    try:
        for place in places:
            content = content[int(place)] if isinstance(content, list) else content.setdefault(place, {})
        content[int(last) if isinstance(content, list) else last] = value
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"there is no setting {path!r} in base ({error})") from error


def of_cell(
    base: Mapping[str, Any], factors: Mapping[str, Mapping[str, Mapping[str, Any]]], cell: str
) -> dict[str, Any]:
    """A copy of base with what the levels of a cell ("group=8,gamma=0.9") set; "" is the one without levels."""
    content = copy.deepcopy(dict(base))
    for part in filter(None, cell.split(",")):
        factor, level = part.split("=", 1)
        for path, value in factors[factor][level].items():
            put(content, path, value)
    return content


def look_up(content: Any, path: str) -> Any:
    """Return what is at a path, None where nothing is."""
    for place in path.split("."):
        if isinstance(content, list):
            content = content[int(place)] if place.isdecimal() and int(place) < len(content) else None
        else:
            content = content.get(place) if isinstance(content, Mapping) else None
    return content


def changed_paths(before: Mapping[str, Any], after: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """Return those of the paths at which `after` differs from `before`, with the value that it has there."""
    return {path: look_up(after, path) for path in paths if look_up(before, path) != look_up(after, path)}
