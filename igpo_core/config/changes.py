"""Settings by their path, as factors and the start of a sweep name them: "rollout.group_size", "warm_start.stages.2.steps"."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any


def put(content: Any, path: str, value: Any) -> None:
    """Set content["a"]["b"][2] for path "a.b.2"; sections of which all is default so far are made. Raises ValueError where
    there is no such place."""
    *places, last = path.split(".")
    try:
        for place in places:
            if isinstance(content, list):
                content = content[_index(place)]
            else:
                if content.get(place) is None:
                    content[place] = {}
                content = content[place]
        content[_index(last) if isinstance(content, list) else last] = value
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"there is no setting {path!r} in base ({error})") from error


def _index(place: str) -> int:
    """The place in a list that a part of a path names: 0, 1, .. and no other way of writing these."""
    if not place.isdecimal() or str(int(place)) != place:
        raise ValueError(f"{place!r} is no place in a list: the first is 0")
    return int(place)


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


def differing(before: Any, after: Any) -> list[str]:
    """Return the path of every single setting that only one of two bases has, or each otherwise."""
    one, other = dict(_leaves(before)), dict(_leaves(after))
    return [path for path in {**one, **other} if one.get(path, _MISSING) != other.get(path, _MISSING)]


def _leaves(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    parts = content if isinstance(content, Mapping) else dict(enumerate(content)) if _is_sections(content) else {}
    if not parts:
        yield path, content
    for name, value in parts.items():
        yield from _leaves(value, f"{path}.{name}" if path else str(name))


def changed(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return the single settings of `after` that `before` lacks or has otherwise, by path: put into `before`, they make `after`.
    A section of another kind is one, with all that its kind needs; so is one of which names are gone that somebody chose, and a
    list of sections where there was none, or one of more or fewer."""
    if path and (before.keys() - after.keys() or before.get("kind") != after.get("kind")):
        return {path: dict(after)}
    found: dict[str, Any] = {}
    for name, value in after.items():
        found |= _changed_at(before.get(name, _MISSING), value, f"{path}.{name}" if path else name)
    return found


_MISSING = object()


def _changed_at(before: Any, after: Any, path: str) -> dict[str, Any]:
    """Return the same of what stands at one place."""
    if isinstance(after, Mapping):
        if isinstance(before, Mapping):
            return changed(before, after, path)
        if before is not _MISSING and before is not None:  # a number cannot be given parts
            return {path: dict(after)}
        return changed({}, after, path) or {path: {}}
    if _is_sections(before) and _is_sections(after) and len(before) == len(after):
        pairs = zip(before, after, strict=True)
        parts = [_changed_at(one, other, f"{path}.{place}") for place, (one, other) in enumerate(pairs)]
        return {leaf: value for part in parts for leaf, value in part.items()}
    return {} if before == after else {path: after}


def _is_sections(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
