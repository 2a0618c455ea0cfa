"""Every shipped preset loads and gives whole configurations; bad input is refused in words, before anything runs."""

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.ablation import more_seeds
from igpo_core.config import AblationSpecification, make_plan
from igpo_core.config.changes import changed, differing
from igpo_core.config.specification import spell_changes
from igpo_core.errors import ConfigError
from tasks.lab.home import PROJECT
from tasks.report.statistics import seeds_for_verdict
from tasks.runs.work import CONTROL, DATA, MODEL, WORLDS, announce
from tasks.specification.presets import PRESETS, load_specification, resolve, setting

SHIPPED = sorted(path.stem for path in PRESETS.glob("*.yaml"))
GOOD: dict[str, Any] = {
    "name": "study",
    "baseline": "outcome_only",
    "seeds": [0, 1],
    "arms": {"outcome_only": {"reward": "outcome_only"}, "gain": {"gain": "prob_diff"}},
    "base": {"reward": {"format_penalty": -0.5, "gamma": 0.9, "gain": "log_prob_diff"}},
}


CHAT = {"policy": {"kind": "new", "tokenizer": "chat"}}
WEB = {"kind": "web", "api": "retriever", "url": "http://127.0.0.1:1"}


def write(folder: Path, content: dict[str, Any]) -> str:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def test_the_promised_presets_are_shipped() -> None:
    assert {"outcome-vs-igpo", "lookup", "easy", "penalties", "real-questions", "tiny"} <= set(SHIPPED)


@pytest.mark.parametrize("preset", SHIPPED)
def test_a_shipped_preset_gives_a_whole_configuration_for_every_arm_and_seed(preset: str) -> None:
    specification = load_specification(preset)
    assert specification.name == preset
    for cell, arm, seed in specification.runs():
        experiment = specification.experiment(arm, seed, cell)
        assert type(experiment).model_validate(experiment.model_dump()) == experiment
        assert experiment.seed == seed
        assert experiment.reward.needs_gain == (arm != "outcome_only")


@pytest.mark.parametrize("preset", SHIPPED)
def test_arms_of_a_seed_differ_in_the_reward_alone(preset: str) -> None:
    specification = load_specification(preset)
    for cell in specification.cells:
        apart = {"reward", "replicate"}
        rest = [specification.experiment(arm, 3, cell).model_dump(exclude=apart) for arm in specification.arms]
        assert all(other == rest[0] for other in rest)


def test_a_base_may_be_that_of_a_preset_with_changes(tmp_path: Path) -> None:
    base = {"from": "lookup", "rollout.group_size": 4, "warm_start.stages.2.steps": 7}
    derived, origin = (
        load_specification(write(tmp_path, {**GOOD, "base": base})).base,
        load_specification("lookup").base,
    )
    assert derived.rollout.group_size == 4 and origin.rollout.group_size == 8
    assert derived.warm_start is not None and derived.warm_start.stages[2].steps == 7
    back = derived.model_copy(update={"rollout": origin.rollout, "warm_start": origin.warm_start})
    assert back == origin
    with pytest.raises(ConfigError, match=r"study.yaml.*\n.*rollout.grp"):
        load_specification(write(tmp_path, {**GOOD, "base": {"from": "lookup", "rollout.grp": 4}}))
    with pytest.raises(ConfigError, match="no specification 'core'"):
        load_specification(write(tmp_path, {**GOOD, "base": {"from": "core"}}))


def test_paths_in_a_preset_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = load_specification("real-questions").base.data
    assert data.kind == "files"
    assert data.corpus == ((PROJECT / "../shared/data/corpus.parquet").resolve(),)
    assert [file.path for file in data.questions] == [(PROJECT / "../shared/data/questions.parquet").resolve()]
    assert data.evaluation == (PROJECT / "../shared/data/igpo/test.parquet").resolve()


def test_outcome_only_inherits_no_setting_that_it_ignores(tmp_path: Path) -> None:
    specification = load_specification(write(tmp_path, GOOD))
    reward = specification.experiment("outcome_only", 0).reward
    assert reward.format_penalty == -0.5 and not hasattr(reward, "gamma")
    assert specification.experiment("gain", 0).reward.gamma == 0.9


def test_a_selection_keeps_the_baseline_and_the_order(tmp_path: Path) -> None:
    specification = load_specification(write(tmp_path, GOOD))
    chosen = specification.select(["gain"], [7])
    assert list(chosen.arms) == ["outcome_only", "gain"]
    assert chosen.seeds == [7]
    assert list(specification.select(["outcome_only"], None).arms) == ["outcome_only"]
    assert specification.select(None, None) == specification


def test_the_sweep_changes_with_what_is_compared_and_not_with_arms_or_seeds(tmp_path: Path) -> None:
    specification = load_specification(write(tmp_path, GOOD))
    assert specification.select(["outcome_only"], [5]).sweep({"": "v1"}) == specification.sweep({"": "v1"})
    assert specification.sweep({"": "v2"}) != specification.sweep({"": "v1"})
    longer = AblationSpecification.model_validate({**GOOD, "base": {**GOOD["base"], "training": {"epochs": 5}}})
    assert longer.sweep({"": "v1"}) != specification.sweep({"": "v1"})


def test_a_setting_can_be_changed_at_the_start_for_all_arms_alike(tmp_path: Path) -> None:
    """It makes another sweep of the study, says what it is, and is no change where it is set already."""
    path = write(tmp_path, GOOD)
    whole, asked = load_specification(path), {"optimizer.learning_rate": 1e-5, "rollout.group_size": 8, "data.hops": 2}
    chosen = load_specification(path, asked)
    assert chosen.changes == {"optimizer.learning_rate": 1e-5, "data.hops": 2} and whole.base.rollout.group_size == 8
    assert spell_changes(chosen.changes) == "data.hops=2, optimizer.learning_rate=1e-05"
    for arm in ("outcome_only", "gain"):
        run = chosen.experiment(arm, 0)
        assert run.optimizer.learning_rate == 1e-5 and run.data == whole.base.data.model_copy(update={"hops": 2})
    assert chosen.sweep({"": "v"}) != whole.sweep({"": "v"}) and chosen.name == whole.name
    assert load_specification(path, {"rollout.group_size": 8}) == whole
    assert chosen.select(None, [7]).changes == chosen.changes and whole.departures(chosen) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.learning_rat": 1e-5}, r"learning_rat.*did you mean learning_rate"),
        ({"rollout.group_size": "many"}, r"base\.rollout\.group_size: .*got 'many'"),
        ({"nothing": 1}, r"nothing"),
        ({"optimizer.learning_rate.x": 1}, r"there is no setting 'optimizer\.learning_rate\.x'"),
        ({"seed": 3}, r"told apart by seed; give seeds as `seeds`"),
        ({"reward.gain": "prob_diff"}, r"no arm would notice reward\.gain"),
        ({"rollout.group_size": 1}, r"at least 2 trajectories"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused_before_a_run_exists(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_specification(write(tmp_path, GOOD), changes)


def test_a_list_is_not_told_to_be_short_where_what_is_in_it_is_at_fault(tmp_path: Path) -> None:
    stage = {"steps": 5, "demonstrations": {"kind": "lookup"}}
    for stages, told in (([stage], "base.warm_start.stages.0.learning_rate: Field required"), ([], "at least 1 item")):
        given = write(tmp_path, {**GOOD, "base": {**GOOD["base"], "warm_start": {"stages": stages}}})
        with pytest.raises(ConfigError) as caught:
            load_specification(given)
        assert len(str(caught.value).splitlines()) == 2 and told in str(caught.value)


def test_what_arms_or_factors_set_is_not_changed_behind_their_back(tmp_path: Path) -> None:
    factors = {"group": {"4": {"rollout.group_size": 4}, "8": {"rollout.group_size": 8}}}
    for asked in ({"rollout.group_size": 16}, {"rollout": {"group_size": 16, "max_turns": 3}}):
        with pytest.raises(ConfigError, match=r"factor group sets rollout\.group_size in every cell"):
            load_specification(write(tmp_path, {**GOOD, "factors": factors}), asked)
    floors = {"floor": {name: {"reward.normalization.floor": size} for name, size in (("a", 1e-4), ("b", 0.1))}}
    beside = load_specification(write(tmp_path, {**GOOD, "factors": floors}), {"reward.normalization.kind": "raw"})
    assert list(beside.changes) == ["reward.normalization"]  # told whole, and the factor sets only a part of it
    arms = {"a": {"gain": "prob_diff", "gamma": 0.9}, "b": {"gain": "log_prob_diff", "gamma": 0.8}}
    given = write(tmp_path, {**GOOD, "arms": arms, "baseline": "a"})
    with pytest.raises(ConfigError, match=r"no arm would notice reward\.gamma"):
        load_specification(given, {"reward.gamma": 0.5})
    with pytest.raises(ConfigError, match=r"changes: base has data\.hops otherwise"):
        load_specification(write(tmp_path, {**GOOD, "changes": {"data.hops": 2}}))


@pytest.mark.parametrize("place", ["-1", "00", "9", "x"])
def test_a_place_in_a_list_is_written_in_one_way(place: str) -> None:
    with pytest.raises(ConfigError, match=rf"there is no setting 'warm_start\.stages\.{place}\.steps'"):
        load_specification("lookup", {f"warm_start.stages.{place}.steps": 7})


def test_what_is_set_is_told_setting_by_setting(tmp_path: Path) -> None:
    """A section is told by what is new in it; where a run is computed is no other comparison; paths begin at the project."""
    path = write(tmp_path, GOOD)
    whole = load_specification(path)
    one = load_specification(path, {"optimizer": {"learning_rate": 1e-5}})
    assert one == load_specification(path, {"optimizer.learning_rate": 1e-5})
    assert one.changes == {"optimizer.learning_rate": 1e-5}
    shared = load_specification(path, {"training.memory_share": 0.5, "training.device": "cuda"})
    assert shared.changes == {} and shared.sweep({"": "v"}) == whole.sweep({"": "v"})
    assert shared.base.training.device == "cuda"
    judge = {"url": "http://127.0.0.1:1", "model": "m"}
    assert load_specification(path, {"evaluation.judge": judge}).changes["evaluation.judge.model"] == "m"
    files = load_specification("examples/own-data.yaml", {"data.corpus.0": "examples/questions.csv"})
    placed = str(PROJECT / "examples" / "questions.csv")
    assert files.changes == {"data.corpus": [placed]} and files.select(None, [7]).changes == files.changes


@pytest.mark.parametrize(
    ("base", "asked", "told"),
    [
        # came later, and has no part in what a run is where it has its default
        (
            {"policy": {"kind": "pretrained", "name": "/model", "thinking": False}},
            {"policy.thinking": None},
            "policy.thinking=null",
        ),
        ({"policy": {"kind": "pretrained", "name": "/model"}}, {"policy.thinking": True}, "policy.thinking=true"),
        # files, and parameters, that are gone
        (
            {"data": {"kind": "files", "questions": [{"path": "/a"}, {"path": "/b"}], "corpus": ["/c"]}, **CHAT},
            {"data.questions": [{"path": "/a"}]},
            'data.questions=[{"path":"/a","split":null}]',
        ),
        (
            {
                "data": {"kind": "files", "questions": [{"path": "/a"}], "search": {**WEB, "parameters": {"a": 1, "b": 2}}},
                **CHAT,
            },
            {"data.search.parameters": {"a": 1}},
            'data.search.parameters={"a":1}',
        ),
        # another kind, which has not all settings of the first
        (
            {
                "rollout": {"engine": {"kind": "vllm", "urls": ["http://127.0.0.1:1"], "weights": "/w"}},
                "policy": {"kind": "pretrained", "name": "/m"},
            },
            {"rollout.engine": {"kind": "transformers"}},
            'rollout.engine={"kind":"transformers"}',
        ),
        (
            {"rollout": {"engine": {"kind": "transformers"}}},
            {"rollout.engine.kind": "continuous"},
            'rollout.engine={"kind":"continuous"}',
        ),
    ],
)  # fmt: skip
def test_what_is_taken_away_is_told_and_can_be_asked_for_again(
    tmp_path: Path, base: dict[str, Any], asked: dict[str, Any], told: str
) -> None:
    path = write(tmp_path, {**GOOD, "base": {**GOOD["base"], **base}})
    request = resolve(path, asked)
    words = shlex.split(shlex.split(request.command)[-1].removeprefix("ARGS="))
    assert words == ["--seeds", "0,1", "--set", told]
    again = resolve(path, dict([setting(told)]))
    assert again.specification == request.specification != resolve(path).specification
    before, made, remade = (one.specification for one in (resolve(path), request, again))
    named = [one.sweep({"": str(one.base.data)}) for one in (before, made, remade)]
    assert named[0] != named[1] == named[2]


FUNCTION = {"kind": "function", "path": "my_reward.py:rises"}
SERVED = {"kind": "vllm", "urls": ["http://127.0.0.1:1"], "weights": "/w"}
MODEL_BASE = {"policy": {"kind": "pretrained", "name": "/model"}}


@pytest.mark.parametrize(
    ("base", "asked"),
    [
        ({}, {"policy": {"kind": "pretrained", "name": "/model"}}),
        ({}, {"policy": {"kind": "pretrained", "name": "/model", "dtype": "auto"}}),
        (MODEL_BASE, {"policy": {"kind": "new"}}),
        (MODEL_BASE, {"policy.dtype": "auto"}),
        (MODEL_BASE, {"policy.revision": "1234567"}),  # a text that reads as a number
        ({}, {"reward.gain_weight": {"start": 1, "end": 0.5, "steps": 10}}),  # a section in a number's place
        (
            {},
            {"warm_start": {"stages": [{"steps": 5, "learning_rate": 1e-3, "demonstrations": {"kind": "lookup"}}]}},
        ),
        ({}, {"data": {"kind": "atlas", "hops": 2}, "optimizer.learning_rate": 1e-5}),
        (MODEL_BASE, {"rollout.engine": SERVED}),
        ({**MODEL_BASE, "rollout": {"engine": SERVED}}, {"rollout.engine": {"kind": "continuous"}}),
        ({"reward": {"gain": FUNCTION}}, {"reward.gain": {"kind": "function", "path": "my_reward.py:falls"}}),
        ({"reward": {"gain": FUNCTION}}, {"reward.gain": "prob_diff"}),
        *(
            ({"reward": {"gain": gain}}, {"reward.gain": FUNCTION})
            for gain in ("log_prob_diff", "prob_diff", "log_ratio_gap", "watermark", "first_exposure")
        ),
    ],
)
def test_whole_sections_can_be_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: dict[str, Any], asked: dict[str, Any]
) -> None:
    """Of another kind, or where there was none; a list of sections and a function are not taken apart."""
    monkeypatch.setattr("tasks.runs.processors.best_dtype", lambda device: "bfloat16")
    rise = "return [0.0] * (len(played.turns) - 1)\n"
    (tmp_path / "my_reward.py").write_text(f"def rises(played):\n    {rise}\n\ndef falls(played):\n    {rise}")
    own = {**GOOD["base"], **base, "reward": {**GOOD["base"]["reward"], **base.get("reward", {})}}
    arms = {**GOOD["arms"], "gain": {"gain": "leave_one_turn_out"}, "as_base": {}}
    path = write(tmp_path, {**GOOD, "base": own, "arms": arms})
    request = resolve(path, asked)
    assert "def rises" not in request.command
    words = shlex.split(shlex.split(request.command)[-1].removeprefix("ARGS="))
    again = resolve(path, dict(setting(told) for option, told in itertools.pairwise(words) if option == "--set"))
    assert again.specification.base == request.specification.base != resolve(path).specification.base
    assert again.specification.changes == request.specification.changes


def test_settings_that_changed_are_told_at_the_place_where_they_make_the_others() -> None:
    before = {"a": {"kind": "x", "own": 1}, "b": [{"c": 1}, {"c": 2}], "d": None, "e": {"f": 1, "g": 2}, "h": [1]}
    assert changed(before, before) == {}
    assert changed(before, {**before, "a": {"kind": "y"}}) == {"a": {"kind": "y"}}  # y has no `own`
    other = {"kind": "y", "own": 1, "more": 2}  # which needs `more`, so that its kind alone could not be set
    assert changed(before, {**before, "a": other}) == {"a": other}
    assert changed(before, {**before, "a": {"kind": "x", "own": 2}}) == {"a.own": 2}
    assert changed(before, {**before, "e": 1}) == {"e": 1} and changed({"e": 1}, {"e": {"f": 1}}) == {"e": {"f": 1}}
    assert differing(before, {**before, "a": other, "b": [{"c": 3}]}) == ["a.kind", "b.0.c", "b.1.c", "a.more"]
    assert changed(before, {**before, "d": {"i": {"kind": "z", "j": 4}}}) == {"d.i": {"kind": "z", "j": 4}}
    assert changed(before, {**before, "b": [{"c": 1}, {"c": 3}]}) == {"b.1.c": 3}
    assert changed(before, {**before, "b": [{"c": 1}]}) == {"b": [{"c": 1}]}
    assert changed(before, {**before, "b": [*before["b"], {"c": 3}]}) == {"b": [{"c": 1}, {"c": 2}, {"c": 3}]}
    assert changed(before, {**before, "d": {"i": {"j": 4}}, "h": []}) == {"d.i.j": 4, "h": []}
    assert changed(before, {**before, "d": {"i": [{"j": 4}], "k": {}}}) == {"d.i": [{"j": 4}], "d.k": {}}
    assert changed(before, {**before, "e": {"g": 2}}) == {"e": {"g": 2}}
    assert changed(before, {**before, "e": {"f": 1, "g": 2, "k": None}}) == {"e.k": None}


def test_a_plan_has_each_run_once_and_whole(tmp_path: Path) -> None:
    """Two arms, two seeds, and a factor that outcome_only ignores: 2 x (1 + 2) runs stand for 8 places."""
    factors = {"gamma": {"low": {"reward.gamma": 0.5}, "high": {"reward.gamma": 0.9}}}
    arms = {"outcome_only": {"reward": "outcome_only"}, "gain": {"gain": "prob_diff"}}
    specification = load_specification(write(tmp_path, {**GOOD, "arms": arms, "factors": factors, "seeds": [3, 4]}))
    plan = make_plan(specification, {"gamma=low": "v", "gamma=high": "v"})
    assert len(plan.runs) == 6 and sum(map(len, plan.places.values())) == 8
    assert [run.seed for run in plan.runs] == [3, 3, 3, 4, 4, 4]
    first = plan.runs[0]
    assert plan.places[first.run_key] == (("gamma=low", "outcome_only", 3), ("gamma=high", "outcome_only", 3))
    assert len({run.run_key for run in plan.runs}) == 6 and len({run.start for run in plan.runs}) == 2
    assert type(first).model_validate_json(first.model_dump_json()) == first
    assert first.sweep == plan.sweep == specification.sweep(plan.versions)


def test_an_unknown_arm_is_told_which_there_are(tmp_path: Path) -> None:
    specification = load_specification(write(tmp_path, GOOD))
    with pytest.raises(ConfigError, match=r"igpo_magic.*outcome_only, gain"):
        specification.select(["igpo_magic"], None)
    with pytest.raises(ConfigError, match=r"igpo_magic.*outcome_only, gain"):
        specification.experiment("igpo_magic", 0)


def test_the_arm_that_answers_the_question_is_named_and_kept(tmp_path: Path) -> None:
    two = load_specification(write(tmp_path, GOOD))
    assert two.primary is None and two.answering == ["gain"]  # the only other arm
    arms = {**GOOD["arms"], "raw": {"gain": "prob_diff", "normalization": "raw"}}
    three = load_specification(write(tmp_path, {**GOOD, "arms": arms}))
    assert three.answering == ["gain", "raw"]  # no single one
    named = load_specification(write(tmp_path, {**GOOD, "arms": arms, "primary": "raw"}))
    assert named.answering == ["raw"]
    assert list(named.select(["gain"], None).arms) == ["outcome_only", "gain", "raw"]
    assert list(named.select(["outcome_only"], None).arms) == ["outcome_only", "raw"]
    for wrong, reason in (
        ("rw", r"primary 'rw' is no arm \(did you mean raw\?\)"),
        ("outcome_only", "is the baseline"),
    ):
        with pytest.raises(ConfigError, match=reason):
            load_specification(write(tmp_path, {**GOOD, "arms": arms, "primary": wrong}))


def test_every_fault_of_a_file_is_told_at_once_with_what_may_be_meant(tmp_path: Path) -> None:
    wrong = {
        "base": {"data": {"kind": "lookup", "hopps": 2}},
        "arms": {
            "outcome_only": {"reward": "outcome_only"},
            "gain": {"gian": "prob_diff"},
            "odd": {"gain": "prob_dif"},
        },
        "baseline": "outcome_onyl",
    }
    with pytest.raises(ConfigError) as refusal:
        load_specification(write(tmp_path, {**GOOD, **wrong}))
    for part in ("hopps", "did you mean hops?", "gian (did you mean gain?)", "outcome_onyl", "did you mean outcome_only?",
                 "got 'prob_dif' (did you mean prob_diff?)"):  # fmt: skip
        assert part in str(refusal.value)
    with pytest.raises(ConfigError) as refusal:  # the same with a base that is right
        load_specification(write(tmp_path, {**GOOD, **wrong, "base": GOOD["base"]}))
    assert all(part in str(refusal.value) for part in ("gian", "outcome_onyl", "prob_dif'")), refusal.value


def test_a_path_without_a_file_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml: no such file") as refusal:
        load_specification(str(tmp_path / "mine.yaml"))
    assert "presets" not in str(refusal.value)
    with pytest.raises(ConfigError, match=r"'core-arm' \(did you mean core-arms\?\)"):
        load_specification("core-arm")


@pytest.mark.parametrize("preset", SHIPPED)
def test_every_preset_says_what_it_is_in_a_line_of_make(preset: str) -> None:
    told = load_specification(preset).description
    assert (
        told and f"description: {told}\n" in (PRESETS / f"{preset}.yaml").read_text()
    )  # as sed of the Makefile finds it


def test_the_presets_that_are_suggested_next_are_shipped() -> None:
    assert {*WORLDS, CONTROL} <= {*SHIPPED} and (PROJECT / DATA).is_file() and (PROJECT / MODEL).is_file()


@pytest.mark.parametrize("seeds", [[1, 1], [-1]])
def test_bad_seeds_of_a_selection_are_refused(tmp_path: Path, seeds: list[int]) -> None:
    with pytest.raises(ConfigError, match="seeds"):
        load_specification(write(tmp_path, GOOD)).select(None, seeds)


def test_an_unknown_preset_is_told_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"nowhere.*atlas.*outcome-vs-igpo"):
        load_specification("nowhere")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"base": {"optimizer": {"learning_rate": -1}}}, ["base.optimizer.learning_rate", "greater than 0, got -1"]),
        ({"base": {"rollout": {"group_size": 1}}}, ["base.rollout.group_size", "no spread", "at least 2"]),
        ({"base": {"rolout": {}}}, ["base.rolout", "no such setting", "reward, rollout, optimizer"]),
        ({"base": {"rollout": {"engine": {"kind": "vllm", "url": 1}}}}, ["here are kind, urls, weights"]),
        ({"base": {"training": {"nodes": 2}}, "processes": 2}, ["processes=2", "set processes to 1"]),
        ({"base": {"policy": {"kind": "new", "tokenizer": "chat"}}}, ["tokenizer=chat", "use tokenizer=words"]),
        ({"arms": {**GOOD["arms"], "fast": {"learning_rate": 1e-3}}}, ["'fast'", "learning_rate", "confound"]),
        (
            {"arms": {**GOOD["arms"], "own": {"format_penalty": 0}}},
            ["'own'", "format_penalty", "same for all arms", "factor"],
        ),
        ({"arms": {**GOOD["arms"], "own": {"penalty_on": "apart"}}}, ["'own'", "reward.penalty_on in `base`"]),
        ({"arms": {**GOOD["arms"], "odd": {"gain": "squared"}}}, ["'odd'", "gain", "log_prob_diff"]),
        ({"arms": {"outcome_only": {"reward": "outcome_only", "gamma": 0.5}}}, ["'outcome_only'", "gamma", "leave"]),
        ({"arms": {}}, ["arms"]),
        ({"baseline": "nobody"}, ["baseline", "nobody", "outcome_only, gain"]),
        ({"seeds": [0, 0]}, ["seeds", "repeat"]),
        ({"seeds": []}, ["seeds"]),
        ({"seeds": [-1]}, ["seeds", "negative"]),
        ({"processes": 0}, ["processes"]),
        ({"name": "Not A Name"}, ["name"]),
        ({"surprise": 1}, ["surprise", "no such setting", "name, description, base"]),
    ],
)
def test_bad_settings_are_refused_with_file_field_and_reason(
    tmp_path: Path, change: dict[str, Any], named: list[str]
) -> None:
    path = write(tmp_path, {**GOOD, **change})
    with pytest.raises(ConfigError) as refusal:
        load_specification(path)
    message = str(refusal.value)
    assert path in message
    assert all(part in message for part in named), message
    assert "pydantic.dev" not in message and "validation error" not in message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("seeds: [0]\nseeds: [1]", "seeds given twice"),
        ("a: {b: 1, b: 2}", "b given twice"),
        ("name: [", "YAML"),
        ("", "holds no settings"),
        ("- 1", "holds no settings"),
    ],
)
def test_a_file_that_holds_no_specification_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named) as refusal:
        load_specification(str(path))
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("name", sorted(path.stem for path in (PROJECT / "deployments" / "presets").glob("*.yaml")))
def test_prefect_can_take_the_data_settings_of_every_preset_as_a_parameter(name: str) -> None:
    """Prefect walks parameters with dict(model), which breaks on a field that is called as a method of dict is."""
    data = load_specification(name).base.data
    assert dict(data) == {field: getattr(data, field) for field in type(data).model_fields}


def crossed(tmp_path: Path, factors: Any, **changes: Any) -> AblationSpecification:
    return load_specification(write(tmp_path, {**GOOD, "factors": factors, **changes}))


SIZES = {
    "small": {"rollout.group_size": 4, "rollout.questions": 4},
    "large": {"rollout.group_size": 8, "rollout.questions": 2},
}
GAMMAS = {"1": {"reward.gamma": 1.0}, "0.5": {"reward.gamma": 0.5}}
THREE = {"outcome_only": {"reward": "outcome_only"}, "igpo": {}, "prob": {"gain": "prob_diff"}}


def test_factors_are_crossed_and_an_arm_that_ignores_one_is_run_once(tmp_path: Path) -> None:
    specification = crossed(tmp_path, {"size": SIZES, "gamma": GAMMAS}, arms=THREE, seeds=[0, 1])
    assert specification.cells == (
        "size=small,gamma=1", "size=small,gamma=0.5", "size=large,gamma=1", "size=large,gamma=0.5"
    )  # fmt: skip
    experiment = specification.experiment("igpo", 1, "size=large,gamma=0.5")
    assert (experiment.rollout.group_size, experiment.rollout.questions, experiment.reward.gamma) == (8, 2, 0.5)
    assert specification.ignored_factors("outcome_only") == ["gamma"] and specification.ignored_factors("igpo") == []
    runs = specification.runs()
    # two seeds x (two arms in four cells, the baseline in two)
    assert len(runs) == 2 * (2 * 4 + 2) and len(set(runs)) == len(runs)
    assert {cell for cell, arm, _ in runs if arm == "outcome_only"} == {"size=small,gamma=1", "size=large,gamma=1"}
    text = announce(specification, 2)
    assert "= 20 runs" in text and "outcome_only ignores gamma: one run a seed serves all its levels" in text


def test_a_seed_added_later_adds_its_runs_alone(tmp_path: Path) -> None:
    specification = crossed(tmp_path, {"size": SIZES}, arms=THREE, seeds=[0, 1])
    more = specification.select(None, [0, 1, 2])
    old = {run: specification.experiment(run[1], run[2], run[0]) for run in specification.runs()}
    new = {run: more.experiment(run[1], run[2], run[0]) for run in more.runs()}
    assert {run: new[run] for run in old} == old and {run[2] for run in new.keys() - old.keys()} == {2}
    assert more.sweep({"": "v"}) == specification.sweep({"": "v"})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"factors": {"g": {"1": {"reward.gamma": 1.0}}}}, "has one level"),
        ({"factors": {"g": {"a": {"reward.gamma": 1.0}, "b": {"rollout.questions": 2}}}}, "set different things"),
        ({"factors": {"g": {"a": {"reward.gama": 1.0}, "b": {"reward.gama": 0.5}}}}, "reward.gama"),
        ({"factors": {"g": {"a": {"warm.0.x": 1}, "b": {"warm.0.x": 2}}}}, "there is no such setting"),
        ({"factors": {"g": {"a,b": {"reward.gamma": 1.0}, "c": {"reward.gamma": 0.5}}}}, "name factors and levels"),
        ({"factors": {"s": {"a": {"seed": 1}, "b": {"seed": 2}}}}, "sets seed"),
        ({"factors": {"g": {"a": {"reward.gamma": 0.3}, "b": {"reward.gamma": 0.3}}}}, "are the same|changes nothing"),
        ({"arms": {"outcome_only": {"reward": "outcome_only"}, "a": {}, "b": {}}}, "A/A comparison.*replicate: 1"),
        ({"arms": {"outcome_only": {"reward": "outcome_only"}, "a": {"optimizer": {"learning_rate": 1}}}}, "confound"),
        ({"arms": {"outcome_only": {"reward": "outcome_only"}, "a": {"gamma": 0.9, "reward": "gigpo", "gain": "prob_diff"}}},
         "reward=gigpo ignores gain"),
        ({"until": {"width": 0.1}}, "until.seeds"),
    ],
)  # fmt: skip
def test_what_would_confound_or_change_nothing_is_refused(tmp_path: Path, content: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_specification(write(tmp_path, {**GOOD, **content}))


def test_a_replicate_is_another_draw_of_the_same_arm(tmp_path: Path) -> None:
    arms = {"outcome_only": {"reward": "outcome_only"}, "again": {"reward": "outcome_only", "replicate": 1}}
    specification = load_specification(write(tmp_path, {**GOOD, "arms": arms}))
    one, other = (specification.experiment(arm, 0) for arm in arms)
    assert one.reward == other.reward and (one.replicate, other.replicate) == (0, 1)


def test_an_arm_may_set_the_base_optimiser(tmp_path: Path) -> None:
    dr_grpo = {"reward": "outcome_only", "scale": "none", "optimizer": {"denominator": "constant"}}
    specification = load_specification(write(tmp_path, {**GOOD, "arms": {**GOOD["arms"], "dr_grpo": dr_grpo}}))
    assert specification.experiment("dr_grpo", 0).optimizer.denominator == "constant"
    assert specification.experiment("outcome_only", 0).optimizer.denominator == "sequence"


def test_seeds_are_added_until_the_answer_is_narrow(tmp_path: Path) -> None:
    arms = {"arms": THREE, "seeds": [0, 3]}
    specification = load_specification(write(tmp_path, {**GOOD, **arms, "until": {"width": 0.1, "seeds": 9}}))
    wide, narrow, none = (type("R", (), {"widest": width})() for width in (0.2, 0.05, None))
    assert more_seeds(specification, wide, 6) == [4, 5]  # six workers, three arms; after the largest
    assert more_seeds(specification.select(None, list(range(200, 207))), wide, 6) == [207, 208]  # never the tuned ones
    # seven seeds are the fewest that can show one arm of two: before them a narrow interval ends nothing
    assert more_seeds(specification, narrow, 6) == more_seeds(specification, none, 6) == [4, 5]
    assert more_seeds(specification.select(None, list(range(7))), narrow, 6) == []
    assert more_seeds(specification.select(None, list(range(7))), wide, 6) == [7, 8]
    assert more_seeds(specification.select(None, list(range(9))), wide, 6) == []  # the limit
    assert more_seeds(load_specification(write(tmp_path, {**GOOD, **arms})), wide, 6) == []


def test_the_recipes_of_the_documents_are_specifications(tmp_path: Path) -> None:
    """Every method that docs/arms.md writes as an arm, and the example of docs/experiments.md."""
    block = re.search(r"```yaml\n(.*?)```", (PROJECT / "docs" / "arms.md").read_text(), re.DOTALL)
    assert block is not None
    arms = yaml.safe_load(block[1])["arms"]
    base = {**GOOD["base"], "optimizer": {"updates_per_step": 2}}
    path = write(tmp_path, {**GOOD, "base": base, "baseline": "grpo", "arms": arms})
    assert {"grpo", "dr_grpo", "rloo", "gspo", "igpo", "trace", "gigpo"} <= set(load_specification(path).arms)
    pages = re.findall(r"```yaml\n(name: .*?)```", (PROJECT / "docs" / "experiments.md").read_text(), re.DOTALL)
    cells = []
    for page in pages:
        (tmp_path / "example.yaml").write_text(page)
        cells.append(len(load_specification(str(tmp_path / "example.yaml")).cells))
    assert cells == [1, 4]


def test_the_paid_searches_of_a_shipped_sweep_are_allowed() -> None:
    """Three searches an episode; dev before the first step and every `every` steps; test of the last and the best."""
    specification = load_specification("qwen-7b")
    config = specification.experiment("outcome_only", 0, specification.cells[0])
    training, evaluation, search = config.training, config.evaluation, config.data.search
    sampled = training.steps * config.rollout.questions * config.rollout.group_size
    dev = (1 + training.steps // evaluation.every) * evaluation.dev_questions
    calls = 3 * (sampled + dev + 2 * evaluation.test_questions)
    runs = len(specification.arms) * len(specification.seeds) * len(specification.cells)
    assert (calls, runs) == (116_736, 6) and runs * calls <= search.max_calls


def blocks(page: str) -> list[str]:
    """The pages of YAML in a document that are whole specifications."""
    text = (PROJECT / page).read_text()
    return [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if block.startswith("name:")]


def test_what_the_documents_show_trains(tmp_path: Path) -> None:
    """The one whole example had a new policy and no warm start: 96 runs with F1 0."""
    shown = blocks("docs/experiments.md")
    assert len(shown) == 2
    for number, block in enumerate(shown):
        (tmp_path / f"{number}.yaml").write_text(block)
        specification = load_specification(str(tmp_path / f"{number}.yaml"))
        assert specification.base.warm_start is not None
        assert "UNTRAINED" not in announce(specification, 2) and "starts from the same warm start" in announce(
            specification, 2
        )
    assert load_specification(str(PROJECT / "examples" / "own-data.yaml")).base.warm_start is not None


@pytest.mark.parametrize("preset", ["real-laptop", "real", "qwen-0-5b"])
def test_the_example_with_a_pretrained_model_stands_on_each_preset_that_it_names(preset: str, tmp_path: Path) -> None:
    text = (PROJECT / "examples" / "own-model.yaml").read_text()
    assert text.count(f"#     {preset} ") == 1 and text.count("  from: real-laptop\n") == 1
    (tmp_path / "mine.yaml").write_text(text.replace("from: real-laptop", f"from: {preset}"))
    specification, own = load_specification(str(tmp_path / "mine.yaml")), load_specification(preset)
    assert specification.base.policy == own.base.policy and specification.base.training == own.base.training
    assert len(specification.seeds) < seeds_for_verdict(1) == 6  # what its comment says
    assert specification.base.data.questions[0].path == PROJECT / "examples" / "questions.csv"


def test_a_policy_that_was_taught_nothing_is_told_loudly(tmp_path: Path) -> None:
    """The plan said "the same warm start", where there was none."""
    content = yaml.safe_load(blocks("docs/experiments.md")[1])
    del content["base"]["warm_start"]
    (tmp_path / "untaught.yaml").write_text(yaml.safe_dump(content))
    told = announce(load_specification(str(tmp_path / "untaught.yaml")), 2)
    assert "starts from the same random weights, which nothing was taught" in told and "warm start;" not in told
    assert "THE POLICY IS UNTRAINED" in told and "base: {from: outcome-vs-igpo, ...}" in told
    content["base"]["policy"] = {"kind": "pretrained", "name": "some/model"}
    content["base"]["data"] = {"kind": "files", "questions": [{"path": "q.csv"}], "corpus": ["c.csv"]}
    del content["factors"]
    (tmp_path / "pretrained.yaml").write_text(yaml.safe_dump(content))
    told = announce(load_specification(str(tmp_path / "pretrained.yaml")), 2)
    assert "UNTRAINED" not in told and "starts from some/model" in told


@pytest.mark.parametrize("preset", ["a-a", "controls", "penalties"])
def test_the_comparisons_of_arms_have_one_base(preset: str) -> None:
    """docs/results.md was measured with it; the default's own is shorter."""
    assert load_specification(preset).base == load_specification("atlas-arms").base


def test_a_selection_says_in_what_it_departs() -> None:
    """A bad seed or another arm can be dropped after a look at the result as well as a seed can be added."""
    whole = load_specification("outcome-vs-igpo")
    assert whole.departures(whole.select(None, None)) == []
    assert whole.departures(whole.select(["igpo_rms"], [220, 221, 222, 223, 224, 225, 300])) == [
        "seed 300 added", "seed 226 left out", "arm igpo left out"
    ]  # fmt: skip


def test_the_kind_of_reward_may_be_a_factor_or_set_at_the_start(tmp_path: Path) -> None:
    """What the other kind lacks is not taken over from the base, which never wrote it."""
    arms = {"outcome_only": {"reward": "outcome_only"}, "mine": {"gain": "prob_diff"}}
    levels = {name: {"reward.reward": name} for name in ("outcome_and_gain", "gain_only")}
    content = {**GOOD, "arms": arms, "base": {}, "factors": {"kind": levels}}
    factored = load_specification(write(tmp_path, content))
    assert [factored.experiment("mine", 0, cell).reward.reward for cell in factored.cells] == [*levels]  # type: ignore[attr-defined]
    plain = load_specification(write(tmp_path, {**content, "factors": {}}), {"reward.reward": "gain_only"})
    assert plain.experiment("mine", 0).reward.reward == "gain_only"  # type: ignore[attr-defined]


def test_an_inert_floor_leaves_its_normalisation(tmp_path: Path) -> None:
    """With scale none nothing is divided; the pool is the arm's all the same."""
    pool = {"kind": "turn_group", "floor": 0.01, "smallest": 4}
    arms = {"outcome_only": {"reward": "outcome_only"}, "mine": {"scale": "none"}}
    found = load_specification(write(tmp_path, {**GOOD, "arms": arms, "base": {"reward": {"normalization": pool}}}))
    normalization = found.experiment("mine", 0).reward.normalization  # type: ignore[attr-defined]
    assert (normalization.kind, normalization.smallest, normalization.floor) == ("turn_group", 4, 1e-4)
    own = {"outcome_only": {"reward": "outcome_only"}, "mine": {"scale": "none", "normalization": pool}}
    with pytest.raises(ConfigError, match=r"ignores normalization\.floor: leave it out"):
        load_specification(write(tmp_path, {**GOOD, "arms": own, "base": {}}))


def test_an_arm_may_set_the_dual_clip_alone(tmp_path: Path) -> None:
    """docs/arms.md lists it among what an arm sets; the other arms have none."""
    arms = {**GOOD["arms"], "bounded": {"gain": "prob_diff", "optimizer": {"dual_clip": 3.0}}}
    base = {**GOOD["base"], "optimizer": {"updates_per_step": 2}}
    specification = load_specification(write(tmp_path, {**GOOD, "arms": arms, "base": base}))
    assert [specification.experiment(arm, 0).optimizer.dual_clip for arm in arms] == [None, None, 3.0]


def test_one_experiment_has_one_spelling(tmp_path: Path) -> None:
    arms = {"a": {}, "b": {"outcome": "f1"}}
    with pytest.raises(ConfigError, match=r"arm 'b': .*reward\.outcome=f1 is what .* has anyway: leave it out"):
        load_specification(write(tmp_path, {**GOOD, "arms": arms, "baseline": "a", "base": {}}))


def test_a_weight_that_turns_the_signal_round_is_refused(tmp_path: Path) -> None:
    arms = {"outcome_only": {"reward": "outcome_only"}, "mine": {"reward": "gigpo", "gain_weight": -1}}
    with pytest.raises(ConfigError, match="greater than 0"):
        load_specification(write(tmp_path, {**GOOD, "arms": arms, "base": {}}))


def test_the_command_that_makes_it_again_makes_the_same(tmp_path: Path) -> None:
    """Read by a shell, then by make's shell, then by the command's own parser."""
    file = write(tmp_path, {**GOOD, "description": "in a folder"})
    asked = {"evaluation.decoding": ["greedy"], "optimizer.learning_rate": 1e-5}
    first = resolve(file, asked, ["gain"], [3, 4])
    make, target, preset, arguments = shlex.split(first.command)
    assert (make, target, preset) == ("make", "ablation", f"PRESET={file}")
    words = shlex.split(arguments.removeprefix("ARGS="))
    given = dict(zip(words[::2], words[1::2], strict=True))
    changes = dict(setting(value) for name, value in zip(words[::2], words[1::2], strict=True) if name == "--set")
    again = resolve(file, changes, given["--arms"].split(","), [*map(int, given["--seeds"].split(","))])
    assert again == first
    further = first.go_on([5, 6]).go_on([7])  # by `until`, which the command would do again
    assert further.command == first.command and further.added == (5, 6, 7)
    assert further.specification.seeds == [3, 4, 5, 6, 7] and further.exploratory == first.exploratory
    assert first.exploratory == ("seeds 3, 4 added", "seeds 0, 1 left out") and resolve(file).exploratory == ()
