"""What cannot be a standing study, refused before the night's work; which seeds are finished."""

from pathlib import Path

import pytest
import torch
import yaml

from flows.dry_run import needed_disk
from flows.night import finished_seeds, load_study
from flows.parameters import PRESETS
from flows.work import work
from igpo_core.environments import open_environment
from igpo_core.errors import ConfigError
from igpo_core.folders import write_json
from igpo_core.policies import build_policy
from tasks.data import prepare
from tasks.planning import Timing, keep_timing
from tasks.runs import identify


def test_the_study_has_the_presets_seeds_and_the_numbers_after_them() -> None:
    specification, study = load_study("tiny", 6, 4, 2)
    assert specification.seeds == [0, 1, 2, 3, 4, 5] and study.checks == (0, 1)
    assert study.name == "tiny"


@pytest.mark.parametrize(
    ("changes", "seeds", "message"),
    [
        ({}, 5, "set seeds to 6 or more"),
        (
            {"arms": {"outcome_only": {"reward": "outcome_only"}, "a": {"gain": "prob_diff"}, "b": {}}},
            6,
            "set seeds to 7",
        ),
        ({"until": {"width": 0.1, "seeds": 40}}, 20, "Remove until"),
    ],
)
def test_what_cannot_be_a_study(tmp_path: Path, changes: dict[str, object], seeds: int, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load((PRESETS / "tiny.yaml").read_text()), **changes}))
    with pytest.raises(ConfigError, match=message):
        load_study(str(path), seeds, 2, 2)


def test_a_seed_is_finished_when_every_arm_is(tmp_path: Path) -> None:
    """Of seeds 0 to 5: 0 has both arms, 1 the baseline alone, 2 a run of another sweep."""
    specification, _ = load_study("tiny", 6, 2, 2)
    for arm, seed, sweep in (("outcome_only", 0, "s"), ("igpo", 0, "s"), ("outcome_only", 1, "s"),
                             ("outcome_only", 2, "old"), ("igpo", 2, "old")):  # fmt: skip
        run = identify(specification.experiment(arm, seed), "d", sweep, tmp_path)
        run.folder.mkdir(parents=True)
        write_json(run.result_file, {})
    assert finished_seeds(work(specification, {"": "d"}, "s", tmp_path)) == {0}


def test_room_is_counted_before_a_first_night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 runs of two checkpoints (weights and two moments each), a best one and MLflow's copy, 2 MB besides; 6 warm starts."""
    monkeypatch.setenv("IGPO_HOME", str(tmp_path))
    specification, _ = load_study("tiny", 6, 2, 2)
    data = prepare(specification.base.data, tmp_path)
    versions = {"": data.version}
    runs = work(specification, versions, "s", tmp_path)
    with torch.device("meta"):
        model = build_policy(specification.base, open_environment(specification.base, data.folder)).model
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert needed_disk(specification, versions, runs) == 12 * (8 * weights + 2_000_000) + 6 * weights
    keep_timing(tmp_path, "tiny-0123ab", Timing(step=0.5, rollouts=4, rollout=0.01, warm_start=None, weights=10**6))
    assert needed_disk(specification, versions, runs) == 12 * (8 * 10**6 + 2_000_000) + 6 * 10**6
    runs[0].identity.folder.mkdir(parents=True)
    write_json(runs[0].identity.result_file, {})
    runs = work(specification, versions, "s", tmp_path)
    assert needed_disk(specification, versions, runs) == 11 * (8 * 10**6 + 2_000_000) + 6 * 10**6
