"""What is measured of a model is kept and found again, whatever ended the process."""

import os
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from igpo_core.config import ContinuousEngine, ExperimentConfig, LookupWorld
from igpo_core.environments.lookup import LookupEnvironment
from igpo_core.errors import ConfigError
from igpo_core.evaluation import evaluate, evaluate_questions
from igpo_core.policies import save_policy
from igpo_core.rollout.continuous_engine import ContinuousRollout
from igpo_core.rollout.slots import SlotModel
from tasks.data.publishing import prepare
from tasks.report.evaluated import compared_of, metrics_of
from tasks.runs import evaluations
from tasks.runs.candidates import find_candidates
from tasks.runs.evaluations import DataSet, Environments, Unit, measure, missing, results_of, units_of
from tasks.runs.taught import Taught


@pytest.fixture(scope="module")
def setting(
    taught: tuple[ExperimentConfig, Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, DataSet]:
    """A home with published data and the taught policy in the folder `model`."""
    config, _, policy = taught
    home = tmp_path_factory.mktemp("home")
    save_policy(policy, home / "model")
    published = prepare(config.data, home)
    return home, DataSet("lookup", published.version, published.folder, config, "test", 6, ())


def units(home: Path, data: DataSet, draws: tuple[int, ...] = (5, 6)) -> list[Unit]:
    models = find_candidates([str(home / "model"), "base"], home, data.experiment, data.version)
    return units_of(models, [data], draws)


def test_a_run_is_evaluated_on_questions_of_each_source(taught: tuple[ExperimentConfig, Any, Any]) -> None:
    """The last question of dev has a source of its own: two questions are the first of either source."""
    config, environment, policy = taught
    assert isinstance(config.data, LookupWorld)
    dev = list(environment.tasks("dev"))
    dev[-1] = replace(dev[-1], source="other")
    two = LookupEnvironment(config.data, [*environment.tasks("train"), *dev], config.rollout.max_turns)
    result = evaluate(policy, two, config, split="dev", limit=2, decoding="greedy", step=0)
    assert [row["id"] for row in result.records] == [dev[0].id, dev[-1].id]


def test_greedy_is_measured_once_and_sampled_with_every_seed(setting: tuple[Path, DataSet]) -> None:
    told = [(unit.model.name == "base", unit.decoding, unit.draw) for unit in units(*setting)]
    one = [("sampled", 5), ("sampled", 6), ("greedy", 5)]
    assert told == [(base, *rest) for base in (False, True) for rest in one]


def test_a_second_start_measures_what_is_missing_alone(
    setting: tuple[Path, DataSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first start is killed in its third measurement."""
    (home, data), calls = setting, []
    every = units(home, data)
    real = evaluations._measure

    def counted(unit: Unit, *rest: Any) -> Any:
        calls.append(unit.title)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(unit, *rest)

    monkeypatch.setattr(evaluations, "_measure", counted)
    with pytest.raises(KeyboardInterrupt):
        measure(every[:3], Environments(data), home, print)
    assert len(missing(every, home)) == 4
    for own in (every[:3], every[3:]):
        measure(own, Environments(data), home, print)
    assert len(calls) == 7 and not missing(every, home)
    for path in (home / "evaluations").glob("*.json"):
        os.utime(path, (0, 0))
    assert not missing(every, home)  # what is wanted is in use: pruning goes by age
    assert all(path.stat().st_mtime > 0 for path in (home / "evaluations").glob("*.json"))
    monkeypatch.setattr(evaluations, "_load", None)  # nothing is loaded where nothing is missing
    measure(every[:3], Environments(data), home, print)


def test_what_is_kept_is_what_the_policy_does_with_that_sampling_seed(
    setting: tuple[Path, DataSet], taught: tuple[ExperimentConfig, Any, Any]
) -> None:
    """Computed again without the files, with a configuration of that seed: the same answers, and the same scores in tables."""
    (home, data), (config, environment, policy) = setting, taught
    every = units(home, data)
    for own in (every[:3], every[3:]):
        measure(own, Environments(data), home, print)
    results = results_of(every, home)
    answers = {}
    for draw, (_, measured) in zip((5, 6), results[:2], strict=True):
        again = evaluate_questions(
            policy, environment, config.model_copy(update={"seed": draw}),
            questions=environment.tasks("test")[:6], split="test", decoding="sampled",
        )  # fmt: skip
        answers[draw] = [record["answer"] for record in again.records]
        assert [record["answer"] for record in measured.records] == answers[draw]
    assert answers[5] != answers[6]
    scores = [[record["f1"] for record in measured.records] for _, measured in results[:2]]
    assert sum(map(sum, scores)) > 0
    by_hand = (sum(scores[0]) / 6 + sum(scores[1]) / 6) / 2
    compared = compared_of(results, frozenset({"lookup"}), 0.03)
    assert compared.scores[0].score == pytest.approx(by_hand)
    assert compared.rows[1]["model"] == "base" and not compared.unseen
    metrics = metrics_of(results)
    assert metrics[f"{home / 'model'}/test/all/f1"] == pytest.approx(by_hand) and "base/test_greedy/all/f1" in metrics
    assert "test/all/f1" in metrics_of(results[:3])


def test_the_presets_engine_samples_and_other_processors_are_told(
    setting: tuple[Path, DataSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both engines sample the same answers in float32; the other engine makes other measurements."""
    (home, data), calls = setting, []
    real = ContinuousRollout.__call__

    def counted(self: ContinuousRollout, *given: Any, **named: Any) -> Any:
        calls.append(named["decoding"])
        return real(self, *given, **named)

    monkeypatch.setattr(ContinuousRollout, "__call__", counted)
    rollout = data.experiment.rollout.model_copy(update={"engine": ContinuousEngine()})
    slots = replace(data, experiment=data.experiment.model_copy(update={"rollout": rollout}))
    found = {}
    for own in (data, slots):
        asked = units(home, own)[:3]
        measure(asked, Environments(own), home, print)
        found[own.experiment.rollout.engine.kind] = results_of(asked, home)
    assert calls == ["sampled", "sampled", "greedy"]
    told = [[row["answer"] for _, one in results for row in one.records] for results in found.values()]
    assert told[0] == told[1] and len(told[0]) == 18
    alike = found["transformers"]
    assert "DIFFERENT" not in compared_of(alike, frozenset(), 0.03).words
    (first, one), *rest = alike
    words = compared_of([(first, replace(one, processor="Xeon")), *rest], frozenset(), 0.03).words
    assert f"DIFFERENT PROCESSORS, pairs share a seed but no longer their rounding: Xeon: {first.model.title};" in words


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("given", "line", "verdict"),
    [
        (Taught(("BY HEART",)), "BY HEART", "learnt by heart"),
        (
            Taught(unknown="gone"),
            "NOBODY KNOWS WHETHER ITS WARM START IS LEARNT BY HEART, so there is no verdict: gone",
            "start not known",
        ),
    ],
)
def test_a_model_of_a_warm_start_that_is_learnt_by_heart_has_no_verdict(
    setting: tuple[Path, DataSet], which: int, given: Taught, line: str, verdict: str
) -> None:
    """Nor has another model that is compared with it, nor one of which nobody knows."""
    home, data = setting
    every = units(home, data)
    for own in (every[:3], every[3:]):
        measure(own, Environments(data), home, print)
    results = results_of(every, home)
    name = list(dict.fromkeys(unit.model.name for unit in every))[which]
    taught = [
        (replace(unit, model=replace(unit.model, taught=given)) if unit.model.name == name else unit, one)
        for unit, one in results
    ]
    plain, heart = (compared_of(found, frozenset(), 0.03) for found in (results, taught))
    assert f"{name}: {line}" in heart.words and line not in plain.words
    verdicts = [(row["verdict"], row["p"]) for row in heart.rows]
    assert verdicts == [("reference", "-"), (verdict, "-")] and plain.rows[1]["verdict"] != verdict
    assert [(row.score, row.difference) for row in heart.scores] == [
        (row.score, row.difference) for row in plain.scores
    ]


def test_a_model_has_one_engine_a_data_set_which_is_gone_before_the_next(
    setting: tuple[Path, DataSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two decodings, one of them with two seeds, of two data sets: two engines for six measurements."""
    home, data = setting
    calls, made, alive = [], [], []
    real, making = ContinuousRollout.__call__, SlotModel.__init__

    def counted(self: ContinuousRollout, *given: Any, **named: Any) -> Any:
        calls.append(named["decoding"])
        return real(self, *given, **named)

    def counted_making(self: SlotModel, *given: Any) -> None:
        alive.append(sum(one() is not None for one in made))
        made.append(weakref.ref(self))
        making(self, *given)

    monkeypatch.setattr(ContinuousRollout, "__call__", counted)
    monkeypatch.setattr(SlotModel, "__init__", counted_making)
    rollout = data.experiment.rollout.model_copy(update={"engine": ContinuousEngine()})
    slots = replace(data, experiment=data.experiment.model_copy(update={"rollout": rollout}), limit=2)
    model = find_candidates([str(home / "model")], home, data.experiment, data.version)
    told: list[str] = []
    every = units_of(model, [slots, replace(slots, name="fewer", limit=1)], (5, 6))
    measure(every, Environments(slots), tmp_path, told.append)
    assert calls == ["sampled", "sampled", "greedy"] * 2 and alive == [0, 0]
    assert not any(one() is not None for one in made) and not missing(every, tmp_path)
    assert [line.rpartition(": ")[2] for line in told] == [f"{number} of 6" for number in range(1, 7)]


def test_whatever_changes_the_numbers_changes_the_key(setting: tuple[Path, DataSet]) -> None:
    home, data = setting
    one = units(home, data)[0]
    rollout = data.experiment.rollout.model_copy(update={"temperature": 0.5})
    training = data.experiment.training.model_copy(update={"device": "cuda"})
    other = [
        replace(one, draw=9), replace(one, decoding="greedy"), replace(one, model=replace(one.model, weights="w")),
        replace(one, data=replace(data, limit=5)), replace(one, data=replace(data, split="dev")),
        replace(one, data=replace(data, sources=("lookup",))), replace(one, data=replace(data, version="v")),
        replace(one, data=replace(data, experiment=data.experiment.model_copy(update={"rollout": rollout}))),
    ]  # fmt: skip
    same = [
        replace(one, model=replace(one.model, name="called otherwise", seed=3)),
        replace(one, data=replace(data, name="n", folder=Path())),
        replace(one, data=replace(data, experiment=data.experiment.model_copy(update={"training": training}))),
    ]
    assert len({one.key, *(unit.key for unit in other)}) == len(other) + 1
    assert {unit.key for unit in same} == {one.key}


def test_sources_and_the_first_of_each(setting: tuple[Path, DataSet]) -> None:
    _, data = setting
    environments = Environments(data)
    every = environments.of(data).tasks("test")
    assert environments.questions(data) == list(every)[:6] and environments.trained_on() == {"lookup"}
    with pytest.raises(ConfigError, match="no test question of nq: its sources are lookup"):
        environments.questions(replace(data, sources=("nq",)))
    mixed = [replace(question, source=f"s{number % 2}") for number, question in enumerate(every)]

    class Mixed:
        def tasks(self, split: str) -> list[Any]:
            return mixed

    environments._opened[data.version] = Mixed()  # type: ignore[assignment]
    assert environments.questions(replace(data, limit=2)) == mixed[:4]
    assert environments.questions(replace(data, limit=2, sources=("s1",))) == [mixed[1], mixed[3]]


def test_a_hub_model_is_loaded_at_the_commit_that_it_is_kept_under(
    setting: tuple[Path, DataSet],
    taught: tuple[ExperimentConfig, Any, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hub's cache, without network: `main` is commit a while models are found, and commit b when they are loaded. Commit b
    has zeros for weights."""
    import torch

    (_, data), (config, _, policy) = setting, taught
    folder = tmp_path / "models--owner--model"
    for commit in ("a" * 40, "b" * 40):
        zeros = {name: torch.zeros_like(value) for name, value in policy.model.state_dict().items()}
        save_policy(policy, folder / "snapshots" / commit, zeros if commit[0] == "b" else None)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    unpinned = ExperimentConfig.model_validate(
        {**config.model_dump(), "policy": {"kind": "pretrained", "name": "owner/model"}}
    )
    sets = {name: replace(data, experiment=one) for name, one in (("owner/model", config), ("base", unpinned))}
    found = {name: find_candidates([name], tmp_path, one.experiment, data.version)[0] for name, one in sets.items()}
    (folder / "refs" / "main").write_text("b" * 40)
    for name, one in found.items():
        assert one.weights == f"owner/model@{'a' * 40}"
        loaded = evaluations._load(Unit(one, sets[name], "sampled", 0), Environments(sets[name]))
        for key, value in policy.model.state_dict().items():
            assert torch.equal(loaded.model.state_dict()[key], value), (name, key)


def test_another_model_of_the_hub_gets_its_commit_without_the_code_and_the_thinking_of_the_policys_own() -> None:
    from tasks.runs.candidates import Candidate, at_its_commit

    commit = "c" * 40
    policy = {
        "kind": "pretrained",
        "name": "owner/own",
        "revision": "a" * 40,
        "trust_remote_code": True,
        "thinking": False,
    }
    own = ExperimentConfig.model_validate({"policy": policy})
    pinned = at_its_commit(Candidate("x/other", "x/other", "w", revision=commit), own).policy
    assert (pinned.name, pinned.revision, pinned.trust_remote_code) == ("x/other", commit, False)  # type: ignore[union-attr]
    assert pinned.thinking is None  # type: ignore[union-attr]
    assert at_its_commit(Candidate("owner/own", "owner/own", "w", revision="a" * 40), own) == own
    assert at_its_commit(Candidate("folder", "/folder", "w"), own) is own
