"""What a sweep suggests next, and what a time is known of."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from igpo_core.config import AblationSpecification, make_plan
from igpo_core.folders import write_json
from tasks.runs.devices import Spread
from tasks.runs.planned import write_plan
from tasks.runs.planning import Timing, data_key, keep_timing, policy_key
from tasks.runs.work import announce, counted, next_commands, outlook, whole_seconds, write_minutes
from tasks.specification import presets
from tasks.specification.presets import load_specification


def timing_of(specification: AblationSpecification, rollout: float = 0.01, **fields: Any) -> Timing:
    key = policy_key(specification.base)
    return Timing(
        0.5, rollouts=4, rollout=rollout, warm_start=10.0, weights=10**6, policy=key, sampled=64, longest=256, **fields
    )


def test_a_broken_preset_has_no_time_and_ends_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tiny: 4 runs of 4 s + 4 x .5 s + 128 x .01 s and 2 warm starts of 4 + 10 s, two at a time: 28.56 s."""
    for preset in ("tiny", "easy", "outcome-vs-igpo"):
        (tmp_path / f"{preset}.yaml").write_text((presets.PRESETS / f"{preset}.yaml").read_text())
    (tmp_path / "outcome-vs-igpo.yaml").write_text("name: [")
    monkeypatch.setattr(presets, "PRESETS", tmp_path)
    keep_timing(tmp_path, "tiny-0123ab", timing_of(load_specification("tiny")))
    write_minutes(tmp_path)
    assert (tmp_path / "timings" / "presets.tsv").read_text() == "tiny\tabout 29 s\n"
    lines = next_commands("tiny", tmp_path).splitlines()
    assert lines[0].endswith("not timed here") and "PRESET=outcome-vs-igpo" in lines[0]
    assert "own-data" in lines[2] and "own-data" not in next_commands("own-data", tmp_path)
    assert ["easy" in line for line in next_commands("easy", tmp_path).splitlines()] == [False] * 3


def test_no_minutes_of_another_device(tmp_path: Path) -> None:
    """The seconds of a CPU say nothing of a GPU; those of the GPU stand beside them, in a file of their own."""
    cpu, gpu = (load_specification("tiny", {"training.device": device}) for device in ("cpu", "cuda"))
    keep_timing(tmp_path, "tiny-0123ab", timing_of(cpu))
    assert whole_seconds(cpu, tmp_path) == pytest.approx(28.56) and whole_seconds(gpu, tmp_path) is None
    keep_timing(tmp_path, "tiny-0123ab", replace(timing_of(gpu), step=0.25))
    # a run of 6.28 s in place of 7.28, two at a time on two cards
    assert whole_seconds(gpu, tmp_path) == pytest.approx((4 * 6.28 + 2 * 14) / 2)
    assert whole_seconds(cpu, tmp_path) == pytest.approx(28.56)


def test_no_minutes_where_the_timed_step_does_not_speak_for_all_cells(tmp_path: Path) -> None:
    tiny = load_specification("tiny")
    keep_timing(tmp_path, "tiny-0123ab", timing_of(tiny))
    near, *apart = (
        AblationSpecification.model_validate(
            {**tiny.model_dump(), "factors": {"form": {"own": {path: own}, "other": {path: other}}}}
        )
        for path, own, other in (
            ("rollout.max_turns", 4, 3),
            ("rollout.max_turns", 4, 9),
            ("policy.width", 32, 1536),
        )
    )
    assert whole_seconds(near, tmp_path) is not None and [whole_seconds(one, tmp_path) for one in apart] == [None, None]


def test_minutes_count_no_more_questions_than_the_timed_data_have(tmp_path: Path) -> None:
    """4 + 4 x .5 s, and 1 s a question. tiny asks 5 x 16 dev and 3 x 16 test ones, which take a run to 134 s; with 5 and 7 there
    5 x 5 and 3 x 7 take it to 52. Four runs and two warm starts of 14 s, two at a time."""
    tiny = load_specification("tiny")
    timing = timing_of(tiny, 1.0, data=data_key(tiny.base), questions={"train": 9, "dev": 5, "test": 7})
    keep_timing(tmp_path, "tiny-0123ab", timing)
    assert whole_seconds(tiny, tmp_path) == pytest.approx((4 * 52 + 2 * 14) / 2)
    other = load_specification("tiny", {"data.train": 60})
    assert whole_seconds(other, tmp_path) == pytest.approx((4 * 134 + 2 * 14) / 2)  # of other data nobody counted


def test_a_sweep_tells_the_time_of_the_questions_that_there_are(tmp_path: Path) -> None:
    """The four runs of tiny and two warm starts from above: 236 s one at a time."""
    tiny = load_specification("tiny")
    runs = write_plan(make_plan(tiny, {"": "d"}), tmp_path)
    (tmp_path / "data" / "d").mkdir(parents=True)
    write_json(tmp_path / "data" / "d" / "summary.json", {"counts": {"train": 9, "dev": 5, "test": 7}})
    timing = timing_of(tiny, 1.0)
    assert "about 118 s for 4 runs of about 52 s (a step" in outlook(runs, timing, Spread(2), tmp_path)
    assert "about 4 min for 4 runs of about 52 s (a step" in outlook(runs, timing, Spread(1), tmp_path)
    said = outlook(runs, timing, Spread(4, cards=1), tmp_path)
    assert "about 4 min for 4 runs of about 52 s" in said
    assert (
        "0.5 s here), all on one card and counted there one after the other, an upper estimate, 0.0 GB on disk" in said
    )


@pytest.mark.parametrize(
    ("share", "asked", "cards", "expected", "slower", "told"),
    [
        (1, 3, 0, Spread(3, 3, assumed=True), 1, "3 at a time, each on a card of its own"),
        (1, 64, 0, Spread(4, 4, assumed=True), 1, "4 at a time, each on a card of its own"),  # tiny has four runs
        (1, None, 0, Spread(2, 2, assumed=True), 1, "2 at a time, each on a card of its own"),  # and `processes: 2`
        (0.5, 4, 0, Spread(4, 2, assumed=True), 2, "4 at a time, up to 2 on each of 2 cards (as many as they need) and"),
        (0.5, 4, 2, Spread(4, 2), 2, "4 at a time, up to 2 on each of 2 cards and counted there one after the other, an upper"),
        (0.5, 3, 2, Spread(3, 2), 2, "3 at a time, up to 2 on each of 2 cards and"),  # one waits for two on the fuller card
        (0.3, 4, 0, Spread(4, 2, assumed=True), 2, "4 at a time, up to 2 on each of 2 cards"),  # a card has room for three
        (0.5, 1, 0, Spread(1, 1, assumed=True), 1, "1 at a time"),
        (0.5, 3, 8, Spread(3, 8), 1, "3 at a time, each on a card of its own"),  # each takes the card with most room
        (0.25, 4, 1, Spread(4, 1), 4, "4 at a time, all on one card and counted there one after the other, an upper estimate"),
    ],
)  # fmt: skip
def test_runs_at_a_time_are_spread_over_cards(
    share: float,
    asked: int | None,
    cards: int,
    expected: Spread,
    slower: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.runs.work.accelerators", lambda: [str(card) for card in range(cards)])
    specification = load_specification("tiny", {"training.device": "cuda", "training.memory_share": share})
    found = counted(specification, asked)
    assert found == expected and found.slower == slower and str(found).startswith(told)
    assert found.side_by_side == expected.runs / slower


def test_no_more_runs_at_a_time_are_told_than_there_are() -> None:
    tiny = load_specification("tiny")
    assert counted(tiny, 64) == Spread(4) and str(Spread(4)) == "4 at a time"
    assert "16 rollouts, 4 at a time; every arm" in announce(tiny, 64)
