"""What cannot be a standing study, refused before the night's work; what a night knows and tells."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.night import Known, NoChannel, computed_with, find_channel, finished_seeds, load_study, state_of, why_anew
from igpo_core.config import make_plan, plan_run
from igpo_core.environments import open_environment
from igpo_core.errors import ConfigError
from igpo_core.folders import write_json
from igpo_core.policies import build_policy
from tasks.child import isolated
from tasks.data.publishing import prepare
from tasks.lab.prefect_runs import Ended
from tasks.report.nights import Check, Progress, Verdict
from tasks.report.standing import State
from tasks.runs.dry_run import needed_disk
from tasks.runs.planned import Run, write_plan
from tasks.runs.planning import Timing, keep_timing, policy_key
from tasks.runs.progress import Progress as Progressing
from tasks.specification.presets import PRESETS


def test_the_study_has_the_numbers_after_the_presets_seeds() -> None:
    comparison, study = load_study("tiny", 7, 4, 6)
    specification = comparison.specification
    assert specification.seeds == [2, 3, 4, 5, 6, 7, 8] and study.checks == (2, 3, 4, 5, 6, 7)
    assert study.name == "tiny"


def test_the_nightly_study_has_no_seed_that_was_published() -> None:
    """The preset has 220 to 226; docs/results.md has scores on 200 to 219."""
    request, study = load_study("outcome-vs-igpo", 20, 4, 8)
    assert request.specification.seeds == list(study.seeds) == list(range(227, 247))


def test_a_factor_multiplies_the_differences_that_a_check_looks_at() -> None:
    """`hops` compares two arms over four lengths of chains: eight differences, for which 2^(1-9) is the first below .05 / 8."""
    with pytest.raises(ConfigError, match="8 differences, however large: set check_seeds to 9"):
        load_study("hops", 20, 4, 8)


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
        load_study(str(path), seeds, 2, 6)


def test_a_seed_is_finished_when_every_arm_is(tmp_path: Path) -> None:
    """Of seeds 2 to 7: 2 has both arms, 3 the baseline alone, 4 a run of another sweep."""
    specification = load_study("tiny", 6, 2, 6)[0].specification
    runs = write_plan(make_plan(specification, {"": "d"}), tmp_path)
    made = [run for run in runs if run.spec.seed == 2 or (run.spec.seed, run.spec.arm) == (3, "outcome_only")]
    old = [Run(plan_run(specification, arm, 4, "", "d", "old"), tmp_path) for arm in specification.arms]
    for run in (*made, *old):
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(run.result_file, {})
    assert len(made) == 3 and finished_seeds(runs) == {2}


def test_room_is_counted_before_a_first_night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 runs that keep last and best weights and MLflow's copy, 2 MB besides; two at a time that have another five: two
    moments of two checkpoints and the weights of the older one; 6 warm starts."""
    monkeypatch.setenv("IGPO_HOME", str(tmp_path))
    specification = load_study("tiny", 6, 2, 6)[0].specification
    data = prepare(specification.base.data, tmp_path)
    plan = make_plan(specification, {"": data.version})
    runs = write_plan(plan, tmp_path)
    with torch.device("meta"):
        model = build_policy(specification.base, open_environment(specification.base, data.folder)).model
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert needed_disk(specification, runs) == 12 * (3 * weights + 2_000_000) + 2 * 5 * weights + 6 * weights
    key = policy_key(specification.base)
    timing = Timing(0.5, rollouts=4, rollout=0.01, warm_start=None, weights=10**6, policy=key, sampled=64, longest=256)
    keep_timing(tmp_path, "tiny-0123ab", timing)
    assert needed_disk(specification, runs) == 12 * (3 * 10**6 + 2_000_000) + 2 * 5 * 10**6 + 6 * 10**6
    write_json(runs[0].result_file, {})
    assert needed_disk(specification, runs) == 11 * (3 * 10**6 + 2_000_000) + 2 * 5 * 10**6 + 6 * 10**6


# ---------------------------------------------------------------------------------------------- what a night knows and tells

VERDICT = Verdict("r1", "http://m/r1", "old", "igpo is better.", datetime(2026, 11, 27, tzinfo=UTC))
VERSIONS = {
    "code": "aa",
    "data": ["d"],
    "git": "c1",
    "python": "3.11",
    "platform": "Linux",
    "packages": {"torch": "2.13"},
}


@pytest.mark.parametrize(
    ("known", "state"),
    [
        (Known(None, None, None), State(frozenset({2}), "", "none")),
        (Known(VERDICT, None, None), State(frozenset({2}), "old", "none")),
        (Known(VERDICT, Check("it stands", False), None), State(frozenset({2}), "old", "not moved")),
        (Known(VERDICT, Check("it moved", True), None), State(frozenset({2}), "old", "moved")),
    ],
)
def test_what_mlflow_knows_is_where_the_study_stands(known: Known, state: State) -> None:
    assert state_of(frozenset({2}), known) == state


def test_a_study_that_lost_seeds_says_what_changed() -> None:
    """Twelve of twenty were there, and a package that computes is a newer one now: none is, and the night makes four."""
    study, newer = load_study("tiny", 20, 4, 6)[1], {**VERSIONS, "code": "bb", "packages": {"torch": "2.14"}}
    before = Progress("same", "tiny-old", 12, VERSIONS)
    now = Progress("same", "tiny-new", 4, newer)
    why = why_anew(Known(None, None, before), study, now, finished=0)
    assert "BEGINS ANEW: the 12 of 20 seeds of tiny-old" in why
    assert "these changed: igpo_core aa → bb, torch 2.13 → 2.14." in why
    edited = why_anew(Known(None, None, before), study, Progress("other", "tiny-new", 4, VERSIONS), finished=0)
    assert "these changed: the specification." in edited


def test_a_study_that_goes_on_has_no_reason_to_give() -> None:
    study = load_study("tiny", 20, 4, 6)[1]
    for before, finished in ((None, 0), (Progress("same", "tiny-a", 12, VERSIONS), 12)):
        assert why_anew(Known(None, None, before), study, Progress("same", "tiny-a", 16, VERSIONS), finished) == ""


def test_a_study_whose_verdict_moved_says_that_it_is_made_anew() -> None:
    study, now = load_study("tiny", 20, 4, 6)[1], Progress("same", "tiny-new", 10, VERSIONS)
    why = why_anew(Known(VERDICT, Check("it moved", True), None), study, now, finished=6)
    assert why == "The study is made anew, for its verdict of 27 November 2026 moved."


def test_what_computes_is_small_enough_for_a_tag() -> None:
    """MLflow keeps 5,000 characters of an experiment's tag. Of packages those alone that are part of the code's hash."""
    found = computed_with({"": "d" * 12})
    assert {"torch", "numpy"} <= set(found["packages"]) and "prefect" not in found["packages"]
    assert len(json.dumps(found)) < 2_000


def test_a_channel_that_is_none_does_not_cost_the_night() -> None:
    """The night's work comes first. The words of another library's error are left out: they may hold a password."""
    found = find_channel("pigeon/lab", "")
    assert isinstance(found, NoChannel)
    assert found.why.startswith("it was sent to nobody. notify='pigeon/lab' names no block: give <kind>/<name>")
    assert find_channel("", "") is None
    with temporary_settings({PREFECT_API_URL: "http://lab:T0KEN@127.0.0.1:9/api"}):
        away = find_channel("slack-webhook/lab", "")
    assert isinstance(away, NoChannel)
    assert away.why == "it was sent to nobody. ConnectError, which its log tells more of."


class Finished:
    """Children that have nothing to do."""

    def run(self, name: str, run_key: str) -> Ended:
        return Ended("")

    def end(self) -> None: ...


@pytest.mark.parametrize(
    ("scores", "line"), [(True, "test F1 0.25 · 1 of 1 runs"), (False, "igpo seed 2 · 1 of 1 runs")]
)
def test_the_progress_of_a_study_tells_no_score(tmp_path: Path, scores: bool, line: str) -> None:
    specification = load_study("tiny", 6, 2, 6)[0].specification
    run = Run(plan_run(specification, "igpo", 2, "", "d", "s"), tmp_path)
    run.folder.mkdir(parents=True)
    write_json(run.result_file, {"metrics": {"test/all/f1": 0.25}})
    said: list[str] = []
    progress = Progressing(warm_starts=0, runs=1, there=0, workers=1)
    assert isolated.fn(run.spec.name, "train", "", (run, Finished(), progress, said.append, scores)) == ""
    assert said[0].endswith(line), said
    assert ("0.25" in said[0]) is scores
