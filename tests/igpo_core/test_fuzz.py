"""The fuzzer: it finds what is put there for it, keeps it as a file, and finds nothing in the seeds."""

import datetime
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from benchmarks import fuzz, fuzz_inputs
from benchmarks.fuzz_targets import ALL, MIB, Target, require
from igpo_core.data import reading
from igpo_core.errors import DataError
from igpo_core.text import one_form


def target(check: Callable[[bytes], None], **changes: Any) -> Target:
    @contextmanager
    def ready() -> Iterator[Callable[[bytes], None]]:
        yield check

    given = {
        "seeds": lambda: [b"seed"],
        "inputs": lambda corpus: st.binary(max_size=30),
        "seconds": 60.0,
        "memory": 50 * MIB,
    }
    return Target("made", ready=ready, **{**given, **changes})


def hunt(one: Target, check: Callable[[bytes], None], folder: Path) -> fuzz.Hunt:
    return fuzz.Hunt(one, check, folder, fuzz.Coverage())


def misbehave(content: bytes) -> None:
    if content == b"refused":
        raise DataError("bad file")
    if content == b"foreign":
        raise KeyError("organic")
    require(content != b"broken", "rows are lost")
    while content == b"slow":
        pass
    if content == b"large":
        bytearray(100 * MIB)[::4096] = b"x" * (100 * MIB // 4096)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"good", None),
        (b"refused", None),
        (b"foreign", "foreign exception"),
        (b"broken", "broken invariant"),
        (b"slow", "too slow"),
        (b"large", "too large"),
    ],
)
def test_what_is_a_find(tmp_path: Path, content: bytes, kind: str | None) -> None:
    # only what never ends is held to a short time: 100 MiB of new pages take a slow machine a while
    one = hunt(target(misbehave, seconds=0.3 if content == b"slow" else 60.0), misbehave, tmp_path)
    found = one.attempt(content)
    assert (found and found.kind) == kind
    assert (one.counts.tried, one.counts.refused) == (1, int(content == b"refused"))


def test_a_find_is_made_small_and_kept_once_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SHRINKING", 200.0)

    def check(content: bytes) -> None:
        if sum(content) > 300:
            raise OverflowError("too much")

    one = hunt(target(check, seeds=lambda: [b"x"]), check, tmp_path)
    one.go(time.monotonic() + 200, seed=1, first_find=True)
    (path,) = tmp_path.glob("made-*.input")
    assert len(path.read_bytes()) == 2 and sum(path.read_bytes()) == 301  # the least that does it
    said = path.with_suffix(".txt").read_text()
    assert said.startswith("foreign exception: OverflowError") and "too much" in said
    assert f"python -m benchmarks.fuzz --only made --repeat {path.name}" in said
    assert one.counts.found == 1 and one.counts.tried > 2


def test_lines_of_the_product_that_are_new_are_seen() -> None:
    coverage = fuzz.Coverage()

    def fresh(text: str) -> bool:
        coverage.fresh = False
        with fuzz._traced(coverage):
            one_form(text)
        return coverage.fresh

    assert [fresh(text) for text in ("a", "b", "é", "ü", "\u115f")] == [True, False, True, False, True]


def test_what_reaches_new_lines_is_damaged_further(tmp_path: Path) -> None:
    def check(content: bytes) -> None:
        one_form(content.decode("utf-8", "replace"))

    samples = st.sampled_from([b"a", "\u3164".encode()])
    one = hunt(target(check, inputs=lambda corpus: samples), check, tmp_path)
    one.go(time.monotonic() + 2, seed=1)
    assert one.corpus == [b"seed", "\u3164".encode()]


def test_a_process_that_tries_nothing_more_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SILENT", 1.5)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    assert fuzz._hangs(sleeper, tmp_path / "current") and sleeper.returncode == -9
    assert not fuzz._hangs(subprocess.Popen([sys.executable, "-c", ""]), tmp_path / "current")


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_nothing_is_found_at_once(one: Target, tmp_path: Path) -> None:
    with one.ready() as check:
        hunting = hunt(one, check, tmp_path)
        finds = [hunting.attempt(content) for content in one.seeds()]
    assert [find.told for find in finds if find] == [] and hunting.counts.refused < len(finds)


@pytest.mark.parametrize(
    ("name", "without", "kind"),
    [
        ("jsonl", ("one_form", str.strip), "broken invariant"),
        ("parquet", ("_NO_VALUE", ()), "foreign exception"),
    ],
)
def test_a_fault_that_was_mended_is_found_again(
    name: str, without: tuple[str, Any], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, *without)
    one = next(one for one in ALL if one.name == name)
    with one.ready() as check:
        hunting = hunt(one, check, tmp_path)
        hunting.go(time.monotonic() + 120, seed=0, first_find=True)
    assert hunting.counts.finds[kind] >= 1


def test_faults_that_are_put_back_are_of_several_targets_and_still_fit() -> None:
    patches = sorted(fuzz.REVERTS.glob("*.patch"))
    assert len({patch.name.split(".")[0] for patch in patches} & {one.name for one in ALL}) == len(patches) >= 5
    for patch in patches:
        fits = subprocess.run(["git", "apply", "--check", str(patch)], cwd=fuzz.ROOT, capture_output=True, text=True)
        assert fits.returncode == 0, fits.stderr


@pytest.mark.night  # 20 s of fuzzing
def test_a_run_ends_with_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = fuzz.main(["--only", "aliases", "--seconds", "20", "--out", str(tmp_path / "finds")])
    heads, row, last = capsys.readouterr().out.splitlines()
    assert status == 0 and heads.startswith("target") and row.startswith("aliases") and last == "0 finds, seed 0"
    assert int(row.split()[1].replace(",", "")) >= 2 and not list((tmp_path / "finds").iterdir())


def test_any_tree_of_yaml_is_written_as_json() -> None:
    """Keys too: a date is one."""
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert len(fuzz_inputs._as_json([deep])) == 1
    tree = {datetime.date(2024, 7, 26): [{None: b"x"}], 1: 2.0}
    assert json.loads(json.dumps(fuzz_inputs._as_json(tree), default=str)) == {
        "2024-07-26": [{"None": "b'x'"}],
        "1": 2.0,
    }


def test_a_target_that_cannot_be_fuzzed_leaves_the_others_their_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def watched(name: str, *rest: object) -> fuzz.Counts:
        return fuzz.Counts(tried=7, broken="words cannot be fuzzed: why" if name == "words" else "")

    monkeypatch.setattr(fuzz, "watched", watched)
    assert fuzz.main(["--only", "words", "chat", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.err == "words cannot be fuzzed: why\n" and "chat" in printed.out and "0 finds" in printed.out
