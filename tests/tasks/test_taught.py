"""What a warm start is taught, of tables that are published here."""

from pathlib import Path
from typing import Any

import pytest

from igpo_core.config import ExperimentConfig
from igpo_core.errors import ConfigError
from tasks.data.publishing import prepare
from tasks.runs.taught import about_warm_start, by_heart, learnt_by_heart, require_verdict, taught_by_heart
from tasks.specification.presets import load_specification
from tests.tasks.tables import GOOD, files, lines, trajectory


def taught_of(use: str, folder: Path, **settings: Any) -> ExperimentConfig:
    """An experiment with a warm start of 150 x 32 demonstrations, over ten trajectories: four of two turns, six of five."""
    rows = [trajectory(f"t{number}", f"What is {number}?", turns=1 if number < 4 else 4) for number in range(10)]
    data = files(folder, GOOD, trajectories=[lines(folder / "t.jsonl", rows)])
    stage = {"steps": 150, "batch_size": 32, "learning_rate": 1e-3, "demonstrations": {"kind": "files", "use": use}}
    return ExperimentConfig.model_validate(
        {
            "data": data.model_dump(),
            "policy": {"kind": "pretrained", "name": "a/b"},
            "warm_start": {"stages": [stage]},
            **settings,
        }
    )


def test_trajectories_that_are_left_out_are_counted_and_few_are_learnt_by_heart(tmp_path: Path) -> None:
    """One train question, ten trajectories, 4,800 demonstrations."""
    taught = taught_of("trajectories", tmp_path, rollout={"max_turns": 4})
    folder = prepare(taught.data, tmp_path / "home").folder
    left, heart = about_warm_start(taught, folder)
    assert left.startswith(
        "6 of 10 trajectories are left out of the warm start: they have more than rollout.max_turns=4 turns"
    )
    assert "the longest 5" in left
    assert "LEARNT BY HEART: 4800 demonstrations are copies of 4 trajectories, 1200 times each" in heart
    (heart,) = about_warm_start(taught_of("trajectories", tmp_path, rollout={"max_turns": 5}), folder)
    assert "copies of 10 trajectories, 480 times each" in heart and "(data.trajectories)" in heart
    (left,) = about_warm_start(taught_of("trajectories", tmp_path, rollout={"max_turns": 1}), folder)
    assert left.startswith("10 of 10 trajectories")  # the warm start is refused with what to do
    searches = taught_of("searches", tmp_path, rollout={"max_turns": 4})
    (heart,) = about_warm_start(searches, folder)
    assert "made of 1 train questions, 4800 times each" in heart
    assert by_heart(searches, folder) == [heart]  # what a comparison of its models says
    assert learnt_by_heart(taught, 1, 480) == [] and len(learnt_by_heart(taught, 10**6, 479)) == 1


@pytest.mark.parametrize(("train", "heart"), [(479, True), (480, False)])
def test_what_wants_a_verdict_is_refused_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: int, heart: bool
) -> None:
    """Preset real shows 4,800 demonstrations: of 480 train questions each ten times."""
    monkeypatch.setenv("IGPO_HOME", str(tmp_path))
    (tmp_path / "data" / "v1").mkdir(parents=True)
    (tmp_path / "data" / "v1" / "summary.json").write_text(f'{{"counts": {{"train": {train}}}}}')
    specification, versions = load_specification("real"), {"": "v1"}
    assert bool(taught_by_heart(specification, versions)) is heart
    if heart:
        with pytest.raises(
            ConfigError, match=r"^real: a study ends with one\. THE WARM START IS LEARNT BY HEART: 4800"
        ):
            require_verdict(specification, versions, "a study ends with one")
    else:
        require_verdict(specification, versions, "a study ends with one")
