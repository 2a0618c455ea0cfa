"""benchmarks/findings.py: what a study left in a folder is read whole, and what differs by one bit is named."""

import json
import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.findings import BrokenStudy, Comparison, Findings, Meant, compare, leaves, read_study, renamed

WEIGHTS = torch.tensor([[1.0, -0.0], [float("nan"), 3.0]])
LINE = {"question": "where ?", "turns": [{"text": "a", "gain": 0.1}, {"text": "b", "gain": None}]}


class Laboratory:
    """A home with one trained run of study `s` as MLflow 3 and the flows leave it; each part can be set to another value."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "runs" / "key1"
        self.artifacts = home / "mlflow" / "artifacts" / "1" / "run1" / "artifacts"
        self.artifacts.mkdir(parents=True)
        (self.artifacts / "trajectories.jsonl").write_text(json.dumps(LINE) + "\n")
        self.save("best/step-000002", WEIGHTS)
        with sqlite3.connect(home / "mlflow" / "mlflow.db") as db:
            db.execute("pragma synchronous = off")  # the disk of a busy machine
            db.executescript(
                "create table experiments (experiment_id, name);"
                "create table runs (run_uuid, status, experiment_id, lifecycle_stage);"
                "create table tags (key, value, run_uuid);"
                "create table metrics (key, value, step, is_nan, timestamp, run_uuid);"
                "create table trace_request_metadata (key, value, request_id);"
                "create table spans (trace_id, name, content, start_time_unix_nano);"
                "insert into experiments values (1, 's'), (2, 'another');"
                "insert into runs values ('run1', 'FINISHED', 1, 'active'), ('gone', 'FAILED', 1, 'deleted'),"
                "  ('foreign', 'FAILED', 2, 'active');"
                "insert into tags values ('kind', 'train', 'run1'), ('arm', 'igpo', 'run1'), ('seed', '0', 'run1'),"
                "  ('run_key', 'key1', 'run1');"
                "insert into runs values ('run9', 'FINISHED', 1, 'active');"
                "insert into tags values ('kind', 'data', 'run9');"
                "insert into metrics values ('data/train', 64, 0, 0, 70, 'run9');"
                "insert into metrics values ('train/f1', 0.1, 1, 0, 77, 'run1'), ('train/f1', 0.0, 2, 1, 78, 'run1'),"
                "  ('time/step', 5.0, 1, 0, 77, 'run1'), ('progress/seconds', 9.0, 1, 0, 77, 'run1');"
                "insert into trace_request_metadata values ('mlflow.sourceRun', 'run1', 'tr-1');"
            )
            for title, started, attributes in (
                (
                    "igpo seed 0",
                    10,
                    {"mlflow.spanInputs": '{"question": "who ?"}', "question_id": '"q7"', "turns": "2"},
                ),
                ("turn 1: search", 20, {"belief_before": "-0.5", "mlflow.spanType": '"TOOL"'}),
            ):
                content = {
                    "start_time_unix_nano": started,
                    "attributes": {"mlflow.traceRequestId": '"x"', **attributes},
                }
                db.execute("insert into spans values ('tr-1', ?, ?, ?)", (title, json.dumps(content), started))
        db.close()

    def save(self, place: str, weights: torch.Tensor) -> None:
        (self.folder / place).mkdir(parents=True, exist_ok=True)
        save_file({"w": weights}, self.folder / place / "model.safetensors")

    def change(self, *statements: str) -> None:
        with sqlite3.connect(self.home / "mlflow" / "mlflow.db") as db:
            db.executescript("".join(f"{statement};" for statement in statements))
        db.close()


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Laboratory]:
    return lambda name: Laboratory(tmp_path / name)


def compared(old: Laboratory, new: Laboratory, *meant: Meant) -> Comparison:
    return compare(read_study(old.home, "s"), read_study(new.home, "s"), "s", meant)


def test_a_study_is_read_whole_and_without_times(make: Callable[[str], Laboratory]) -> None:
    found = read_study(make("old").home, "s")
    assert found.values == {
        "data data/train at step 0": "64.0",
        "train igpo 0 train/f1 at step 1": "0.1",
        "train igpo 0 train/f1 at step 2": "nan",
    }
    assert list(found.tensors) == ["train igpo 0 step 2 model.safetensors w"]
    assert found.trajectories == {
        "train igpo 0 test q7": {
            "0.name": '"igpo seed 0"', "0.mlflow.spanInputs.question": '"who ?"', "0.question_id": '"q7"', "0.turns": "2",
            "1.name": '"turn 1: search"', "1.belief_before": "-0.5", "1.mlflow.spanType": '"TOOL"',
        },
        "train igpo 0 trajectories.jsonl line 0": {
            "question": '"where ?"', "turns.0.text": '"a"', "turns.0.gain": "0.1", "turns.1.text": '"b"', "turns.1.gain": "null",
        },
    }  # fmt: skip


def test_equal_sides_are_equal_wherever_a_step_is_kept(make: Callable[[str], Laboratory]) -> None:
    old, new = make("old"), make("new")
    new.save("checkpoints/step-000002", WEIGHTS)  # kept twice; by another code in another place
    new.change("update metrics set timestamp = 99, value = 1000 where key in ('time/step', 'progress/seconds')")
    found = compared(old, new)
    assert (found.values, found.tensors, found.trajectories) == (3, 1, 2)
    assert found.different == () and found.verdict == "equal"


def next_float(value: float) -> float:
    return math.nextafter(value, 1)


METRIC = "train igpo 0 train/f1 at step"
TENSOR = "train igpo 0 step 2 model.safetensors w"
TRAJECTORY = "train igpo 0 trajectories.jsonl line 0"
SPANS = "train igpo 0 test q7"
CHANGES: dict[str, tuple[Callable[[Laboratory], Any], str]] = {
    "last bit of a metric": (
        lambda lab: lab.change(f"update metrics set value = {next_float(0.1)!r} where step = 1 and key = 'train/f1'"),
        f"{METRIC} 1: 0.1 became 0.10000000000000002",
    ),
    "NaN that became a number": (
        lambda lab: lab.change("update metrics set is_nan = 0 where step = 2"),
        f"{METRIC} 2: nan became 0.0",
    ),
    "metric that is gone": (
        lambda lab: lab.change("delete from metrics where step = 2"),
        f"{METRIC} 2: only in the old one",
    ),
    "metric that is new": (
        lambda lab: lab.change("insert into metrics values ('train/em', 1, 3, 0, 79, 'run1')"),
        "train igpo 0 train/em at step 3: only in the new one",
    ),
    "weight": (
        lambda lab: lab.save("best/step-000002", torch.tensor([[1.0, -0.0], [float("nan"), 3.25]])),
        f"{TENSOR}: 1 of 4 elements, off by 0.25 at most",
    ),
    "sign of zero": (
        lambda lab: lab.save("best/step-000002", torch.tensor([[1.0, 0.0], [float("nan"), 3.0]])),
        f"{TENSOR}: 1 of 4 elements, off by 0 at most",
    ),
    "type of a weight": (
        lambda lab: lab.save("best/step-000002", WEIGHTS.bfloat16()),
        f"{TENSOR}: float32 [2, 2] became bfloat16 [2, 2]",
    ),
    "shape of a weight": (
        lambda lab: lab.save("best/step-000002", WEIGHTS.reshape(4, 1)),
        f"{TENSOR}: float32 [2, 2] became float32 [4, 1]",
    ),
    "gain of a turn": (
        lambda lab: (lab.artifacts / "trajectories.jsonl").write_text(json.dumps(LINE).replace("0.1", "0.2")),
        f"{TRAJECTORY} turns.0.gain: 0.1 became 0.2",
    ),
    "belief of a traced turn": (
        lambda lab: lab.change("update spans set content = replace(content, '-0.5', '-0.25')"),
        f"{SPANS} 1.belief_before: -0.5 became -0.25",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_one_difference_is_found_and_named(make: Callable[[str], Laboratory], what: str) -> None:
    old, new = make("old"), make("new")
    change, words = CHANGES[what]
    change(new)
    found = compared(old, new)
    assert found.different == (words,) and found.verdict == "1 DIFFER"


def test_a_weight_s_difference_is_its_largest() -> None:
    old = Findings({"v": "1"}, {"w": torch.tensor([1.0, 2.0])}, {"t": {"f": "1"}})
    new = Findings({"v": "1"}, {"w": torch.tensor([1.5, 2.25])}, {"t": {"f": "1"}})
    assert compare(old, new, "s", ()).different == ("w: 2 of 2 elements, off by 0.5 at most",)


def test_what_may_lack_may_not_differ() -> None:
    old, new = Findings({}, {"w": torch.tensor([1.0]), "x": torch.tensor([1.0])}, {}), Findings({}, {}, {})
    lacks = Meant("s", "w", "it is not kept", "only in the old one")
    found = compare(old, new, "s", (lacks,))
    assert found.meant == (("w: only in the old one", "it is not kept"),) and found.different == (
        "x: only in the old one",
    )
    differs = Findings({}, {"w": torch.tensor([2.0]), "x": torch.tensor([1.0])}, {})
    assert compare(old, differs, "s", (lacks,)).different == ("w: 1 of 1 elements, off by 1 at most",)


def test_a_value_that_holds_a_meant_name_is_not_meant() -> None:
    old, new = Findings({"status": "paper_f1, em"}, {}, {}), Findings({"status": "failed; paper_f1, em"}, {}, {})
    assert len(compare(old, new, "s", (Meant("*", "*paper_f1*", "it is new"),)).different) == 1


def test_what_is_meant_is_told_with_its_reason_and_hides_nothing_else(make: Callable[[str], Laboratory]) -> None:
    old, new = make("old"), make("new")
    for what in ("last bit of a metric", "gain of a turn"):
        CHANGES[what][0](new)
    by_design = Meant("s", "* train/f1 at step *", "f1 is rounded otherwise")
    found = compared(old, new, by_design)
    assert found.meant == ((CHANGES["last bit of a metric"][1], "f1 is rounded otherwise"),)
    assert found.different == (CHANGES["gain of a turn"][1],) and found.verdict == "1 DIFFER, 1 by design"
    elsewhere = Meant("atlas", "* train/f1 at step *", "f1 is rounded otherwise")
    assert len(compared(old, new, elsewhere).different) == 2


BROKEN: dict[str, tuple[Callable[[Laboratory], Any], str]] = {
    "unfinished": (lambda lab: lab.change("update runs set status = 'RUNNING' where run_uuid = 'run1'"), "is RUNNING"),
    "no metrics": (lambda lab: lab.change("delete from metrics"), "holds no values"),
    "no weights": (
        lambda lab: (lab.folder / "best/step-000002/model.safetensors").unlink(),
        "no weights of run 'train igpo 0'",
    ),
    "no study": (lambda lab: lab.change("update experiments set name = 'x'"), "holds no values"),
    "metric twice": (
        lambda lab: lab.change("insert into metrics values ('train/f1', 0.1, 1, 0, 80, 'run1')"),
        "at step 1 was logged twice",
    ),
    "run twice": (
        lambda lab: lab.change(
            "insert into runs values ('run2', 'FINISHED', 1, 'active')",
            "insert into tags select key, value, 'run2' from tags where run_uuid = 'run1'",
        ),
        "two runs 'train igpo 0'",
    ),
    "step kept twice": (lambda lab: lab.save("checkpoints/step-000002", WEIGHTS + 1), "is there twice and differs"),
    "no database": (lambda lab: (lab.home / "mlflow" / "mlflow.db").unlink(), "holds 0 databases"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_study_is_not_compared(make: Callable[[str], Laboratory], what: str) -> None:
    lab = make("old")
    change, words = BROKEN[what]
    change(lab)
    with pytest.raises(BrokenStudy, match=words):
        read_study(lab.home, "s")


def test_leaves_keep_what_is_empty() -> None:
    assert dict(leaves({"a": [], "b": {"c": [1, None]}, "d": {}})) == {
        "a": "[]",
        "b.c.0": "1",
        "b.c.1": "null",
        "d": "{}",
    }


def test_a_name_of_the_old_side_is_the_new_one_and_hides_no_number() -> None:
    old = Findings(values={"train igpo 0 train/searches at step 1": "2.0"}, trajectories={"t": {"f1": "1", "em": "0"}})
    table = [("/searches at step ", "/tool_calls at step "), (r"^(f1|em)$", r"scores.\1")]
    found = renamed(old, table)
    assert found.values == {"train igpo 0 train/tool_calls at step 1": "2.0"}
    assert found.trajectories == {"t": {"scores.f1": "1", "scores.em": "0"}}
    assert renamed(found, table) == found
    with pytest.raises(BrokenStudy, match="two names became one"):
        renamed(old, [("f1|em", "score")])
