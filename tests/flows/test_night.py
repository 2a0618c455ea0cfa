"""What cannot be a standing study, refused before the night's work; which seeds are finished."""

from pathlib import Path

import pytest
import torch
import yaml

from flows.dry_run import needed_disk
from flows.night import finished_seeds, load_study
from flows.parameters import PRESETS
from igpo_core.config import make_plan, plan_run
from igpo_core.environments import open_environment
from igpo_core.errors import ConfigError
from igpo_core.folders import write_json
from igpo_core.policies import build_policy
from tasks.data.publishing import prepare
from tasks.runs.planned import Run, write_plan
from tasks.runs.planning import Timing, keep_timing


def test_the_study_has_the_presets_seeds_and_the_numbers_after_them() -> None:
    comparison, study = load_study("tiny", 6, 4, 2)
    specification = comparison.specification
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
    specification = load_study("tiny", 6, 2, 2)[0].specification
    runs = write_plan(make_plan(specification, {"": "d"}), tmp_path)
    made = [run for run in runs if run.spec.seed == 0 or (run.spec.seed, run.spec.arm) == (1, "outcome_only")]
    old = [Run(plan_run(specification, arm, 2, "", "d", "old"), tmp_path) for arm in specification.arms]
    for run in (*made, *old):
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(run.result_file, {})
    assert len(made) == 3 and finished_seeds(runs) == {0}


def test_room_is_counted_before_a_first_night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 runs that keep last and best weights and MLflow's copy, 2 MB besides; two at a time that have another five: two
    moments of two checkpoints and the weights of the older one; 6 warm starts."""
    monkeypatch.setenv("IGPO_HOME", str(tmp_path))
    specification = load_study("tiny", 6, 2, 2)[0].specification
    data = prepare(specification.base.data, tmp_path)
    plan = make_plan(specification, {"": data.version})
    runs = write_plan(plan, tmp_path)
    with torch.device("meta"):
        model = build_policy(specification.base, open_environment(specification.base, data.folder)).model
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert needed_disk(specification, runs) == 12 * (3 * weights + 2_000_000) + 2 * 5 * weights + 6 * weights
    keep_timing(tmp_path, "tiny-0123ab", Timing(step=0.5, rollouts=4, rollout=0.01, warm_start=None, weights=10**6))
    assert needed_disk(specification, runs) == 12 * (3 * 10**6 + 2_000_000) + 2 * 5 * 10**6 + 6 * 10**6
    write_json(runs[0].result_file, {})
    assert needed_disk(specification, runs) == 11 * (3 * 10**6 + 2_000_000) + 2 * 5 * 10**6 + 6 * 10**6
