"""What a study left in an IGPO_HOME, and how two of them are compared to the bit (benchmarks/bits.py).

Read is what outlives a change of the code's layout: MLflow's database (runs by their tags, metrics, spans of test
trajectories), its artifacts of a run (*.jsonl, *.safetensors), and *.safetensors under runs/<run_key>/.
"""

import contextlib
import fnmatch
import json
import math
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


@dataclass
class Findings:
    """What a study left behind, by name. Numbers and text are kept as text from which they can be had back exactly."""

    values: dict[str, str] = field(default_factory=dict)
    """By `<run> <metric> at step <number>`."""
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """By `<run> step <number> <file> <tensor>`."""
    trajectories: dict[str, dict[str, str]] = field(default_factory=dict)
    """By name and field, as JSON."""


class BrokenStudy(Exception):
    """A study that did not run as it should, or left nothing to compare."""


def read_study(home: Path, study: str) -> Findings:
    """Return what MLflow and the run folders of `home` hold of a study.

    Raises BrokenStudy where a run is missing or not FINISHED, where something is there twice and differs, and where metrics,
    tensors or trajectories are missing altogether: nothing compared would pass for equal.
    """
    databases = list(home.rglob("mlflow.db"))
    if len(databases) != 1:
        raise BrokenStudy(f"{home} holds {len(databases)} databases of MLflow, not one")
    found = Findings()
    with contextlib.closing(sqlite3.connect(f"file:{databases[0]}?mode=ro", uri=True)) as db:
        runs = db.execute(
            "select r.run_uuid, r.status from runs r join experiments e on e.experiment_id = r.experiment_id "
            "where e.name = ? and r.lifecycle_stage = 'active'",
            (study,),
        ).fetchall()
        named: dict[str, tuple[str, dict[str, str]]] = {}
        for run, status in runs:
            tags = dict(db.execute("select key, value from tags where run_uuid = ?", (run,)))
            name = " ".join(
                filter(None, [tags.get("kind", "run"), *(tags.get(n, "") for n in ("cell", "arm", "seed"))])
            )
            if name in named:
                raise BrokenStudy(f"{study}: MLflow has two runs {name!r}")
            if status != "FINISHED":
                raise BrokenStudy(f"{study}: run {name!r} is {status}")
            named[name] = (run, tags)
        for name, (run, tags) in sorted(named.items()):
            _read_metrics(db, run, name, found)
            _read_spans(db, run, name, found)
            folders = [*home.rglob(f"{run}/artifacts")]
            if "run_key" in tags:
                folders.append(home / "runs" / tags["run_key"])
            for folder in folders:
                _read_jsonl(folder, name, found)
                _read_tensors(folder, name, found)
            if tags.get("kind") == "train" and not any(tensor.startswith(f"{name} ") for tensor in found.tensors):
                raise BrokenStudy(f"{study}: no weights of run {name!r} in {', '.join(map(str, folders))}")
    for what in ("values", "tensors", "trajectories"):
        if not getattr(found, what):
            raise BrokenStudy(f"{study}: {home} holds no {what}: nothing would be compared")
    return found


def is_of_the_machine(metric: str) -> bool:
    return metric.startswith(("time/", "system/")) or "seconds" in metric


def _read_metrics(db: sqlite3.Connection, run: str, name: str, found: Findings) -> None:
    points = db.execute(
        "select key, step, value, is_nan from metrics where run_uuid = ? order by step, key", (run,)
    ).fetchall()
    for key, step, value, is_nan in points:
        if not is_of_the_machine(key):
            place = f"{name} {key} at step {step}"
            if place in found.values:
                raise BrokenStudy(f"{place} was logged twice")
            found.values[place] = repr(math.nan if is_nan else float(value))


def _read_spans(db: sqlite3.Connection, run: str, name: str, found: Findings) -> None:
    """A trajectory of the test is a trace, which is told from others by its question: two may have one text, and no id."""
    spans = db.execute(
        "select s.trace_id, s.name, s.content from spans s join trace_request_metadata m on m.request_id = s.trace_id "
        "where m.key = 'mlflow.sourceRun' and m.value = ? order by s.trace_id, s.start_time_unix_nano",
        (run,),
    ).fetchall()
    traces: dict[str, list[dict[str, Any]]] = {}
    for trace, title, content in spans:
        attributes = {key: _parsed(value) for key, value in json.loads(content)["attributes"].items()}
        attributes.pop("mlflow.traceRequestId", None)
        traces.setdefault(trace, []).append({"name": title, **attributes})
    for turns in traces.values():
        _add_trajectory(found, f"{name} test {turns[0]['question_id']}", turns)


def _parsed(text: str) -> Any:
    """MLflow writes most attributes as JSON, and some as they are."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_jsonl(folder: Path, name: str, found: Findings) -> None:
    for path in sorted(folder.rglob("*.jsonl")):
        if path.name != "metrics.jsonl":  # MLflow has them
            for number, line in enumerate(path.read_bytes().splitlines()):
                _add_trajectory(found, f"{name} {path.name} line {number}", json.loads(line))


def _add_trajectory(found: Findings, name: str, content: Any) -> None:
    fields = dict(leaves(content))
    if found.trajectories.setdefault(name, fields) != fields:
        raise BrokenStudy(f"trajectory {name} is there twice and differs")


def leaves(content: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Give every value that nested dicts and lists hold as (its place, JSON); an empty one counts as a value."""
    if isinstance(content, dict | list) and content:
        for key, part in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(part, f"{place}.{key}" if place else str(key))
    else:
        yield place, json.dumps(content, ensure_ascii=False)


STEP = re.compile(r"step-(\d+)")


def step_of(path: Path) -> int | None:
    """The step that a checkpoint's file belongs to; None where its folder names none, as while it is being written."""
    found = STEP.fullmatch(path.parent.name)
    return int(found[1]) if found else None


def _read_tensors(folder: Path, name: str, found: Findings) -> None:
    """A step's weights may be kept more than once (as last, as best, in MLflow): they are the same ones."""
    for path in sorted(folder.rglob("*.safetensors")):
        step = step_of(path)
        where = path.relative_to(folder).as_posix() if step is None else f"step {step} {path.name}"
        for key, tensor in load_file(path).items():
            place = f"{name} {where} {key}"
            if difference(found.tensors.setdefault(place, tensor), tensor):
                raise BrokenStudy(f"{place} is there twice and differs")


def renamed(side: Findings, table: Sequence[tuple[str, str]]) -> Findings:
    """Return the findings of a side with other names of values and of fields: (pattern, replacement) of re.sub, where it
    matches. A side that has the new names already stays as it is."""

    def name(old: str) -> str:
        for pattern, replacement in table:
            old = re.sub(pattern, replacement, old)
        return old

    values = {name(place): value for place, value in side.values.items()}
    told = {place: {name(f): value for f, value in fields.items()} for place, fields in side.trajectories.items()}
    if len(values) != len(side.values) or any(len(told[place]) != len(side.trajectories[place]) for place in told):
        raise BrokenStudy("two names became one: renaming would hide a number")
    return Findings(values, side.tensors, told)


@dataclass(frozen=True)
class Meant:
    """A difference that is there by design."""

    study: str
    """Pattern (fnmatch) of the study's name."""
    name: str
    """Pattern of the name of what differs."""
    reason: str
    words: str = ""
    """What `difference` has to say of it; empty: anything."""

    def covers(self, study: str, name: str, words: str) -> bool:
        matches = fnmatch.fnmatchcase(study, self.study) and fnmatch.fnmatchcase(name, self.name)
        return matches and self.words in ("", words)


@dataclass(frozen=True)
class Comparison:
    """Two sides of a study, compared."""

    values: int
    tensors: int
    trajectories: int
    different: tuple[str, ...]
    """What differs, in the order of the old side, in words."""
    meant: tuple[tuple[str, str], ...]
    """What differs by design: in words, and the reason."""

    @property
    def verdict(self) -> str:
        text = "equal" if not self.different else f"{len(self.different)} DIFFER"
        return f"{text}, {len(self.meant)} by design" if self.meant else text


INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def other_bits(one: torch.Tensor, other: torch.Tensor) -> int:
    """Return the number of elements whose bits differ in two tensors of one type and shape: NaN equals itself, -0 is not 0."""
    return int((_bits(one) != _bits(other)).sum())


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(INTEGERS[tensor.element_size()])


def kind_of(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def compare(old: Findings, new: Findings, study: str, meant: Sequence[Meant]) -> Comparison:
    """Compare everything that either side has. Counts are of what stands on at least one side."""
    before: dict[str, str | torch.Tensor] = {**old.values, **old.tensors, **_fields(old)}
    after: dict[str, str | torch.Tensor] = {**new.values, **new.tensors, **_fields(new)}
    different, expected = [], []
    for name in [*before, *(name for name in after if name not in before)]:
        words = difference(before.get(name), after.get(name))
        if words:
            reasons = [one.reason for one in meant if one.covers(study, name, words)]
            if reasons:
                expected.append((f"{name}: {words}", reasons[0]))
            else:
                different.append(f"{name}: {words}")
    return Comparison(
        values=len(old.values.keys() | new.values.keys()),
        tensors=len(old.tensors.keys() | new.tensors.keys()),
        trajectories=len(old.trajectories.keys() | new.trajectories.keys()),
        different=tuple(different),
        meant=tuple(expected),
    )


def _fields(side: Findings) -> dict[str, str]:
    return {f"{name} {place}": value for name, fields in side.trajectories.items() for place, value in fields.items()}


def difference(old: str | torch.Tensor | None, new: str | torch.Tensor | None) -> str:
    """In words; "" where there is none."""
    if old is None or new is None:
        return "only in the new one" if old is None else "only in the old one"
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        old_kind, new_kind = kind_of(old), kind_of(new)
        if old_kind != new_kind:
            return f"{old_kind} became {new_kind}"
        count, apart = other_bits(old, new), (old.double() - new.double()).abs().nan_to_num(0)
        return f"{count} of {old.numel()} elements, off by {apart.max().item():.3g} at most" if count else ""
    return "" if old == new else f"{_cut(str(old))} became {_cut(str(new))}"


def _cut(text: str, most: int = 90) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
