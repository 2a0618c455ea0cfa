"""What a sweep suggests next, and what a time is known of."""

from pathlib import Path

import pytest

from tasks.runs.planning import Timing, keep_timing
from tasks.runs.work import next_commands, write_minutes
from tasks.specification import presets


def test_a_broken_preset_has_no_time_and_ends_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tiny: 4 runs of 4 s + 4 x .5 s + 128 x .01 s and 2 warm starts of 4 + 10 s, two at a time: 28.56 s."""
    for preset in ("tiny", "easy", "outcome-vs-igpo"):
        (tmp_path / f"{preset}.yaml").write_text((presets.PRESETS / f"{preset}.yaml").read_text())
    (tmp_path / "outcome-vs-igpo.yaml").write_text("name: [")
    monkeypatch.setattr(presets, "PRESETS", tmp_path)
    keep_timing(tmp_path, "tiny-0123ab", Timing(step=0.5, rollouts=4, rollout=0.01, warm_start=10.0, weights=10**6))
    write_minutes(tmp_path)
    assert (tmp_path / "timings" / "presets.tsv").read_text() == "tiny\tabout 29 s\n"
    lines = next_commands("tiny", tmp_path).splitlines()
    assert lines[0].endswith("not timed here") and "PRESET=outcome-vs-igpo" in lines[0]
    assert "own-data" in lines[2] and "own-data" not in next_commands("own-data", tmp_path)
    assert ["easy" in line for line in next_commands("easy", tmp_path).splitlines()] == [False] * 3
