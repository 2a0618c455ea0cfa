"""policy.dtype=auto: decided once, by the processor of whoever plans, for all arms alike, and part of what a run is."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from igpo_core.config import ExperimentConfig, PretrainedPolicy, RunSpec, code_version, make_plan
from igpo_core.errors import ConfigError
from igpo_core.estimates import Shape, memory
from tasks.runs import processors
from tasks.runs.planned import write_plan
from tasks.runs.processors import best_dtype, unsuited
from tasks.runs.work import announce
from tasks.specification.presets import load_specification, resolve
from tasks.tracking.mlflow_runs import about_run
from tasks.tracking.server import flatten

# lines of /proc/cpuinfo as Linux writes them: an AMD Zen 4, an Intel Sapphire Rapids with AMX, an AMD Zen 3
ZEN4 = "processor\t: 0\nmodel name\t: AMD EPYC 9454\nflags\t\t: fpu avx2 avx512f avx512_bf16 fsrm\n"
AMX = "model name\t: Intel Xeon 8480\nflags\t\t: fpu avx2 amx_bf16 amx_tile\n"
ZEN3 = "model name\t: AMD EPYC 7763\nflags\t\t: fpu avx2 fma bf16c\nprocessor\t: 1\nflags\t\t: avx512_bf16\n"


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it with the text of a /proc/cpuinfo: from then on this machine has that processor."""

    def place(text: str) -> None:
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(processors, "CPUINFO", tmp_path / "cpuinfo")

    return place


def dtype_of(experiment: ExperimentConfig) -> str:
    assert isinstance(experiment.policy, PretrainedPolicy)
    return experiment.policy.dtype


@pytest.mark.parametrize(("text", "best"), [(ZEN4, "bfloat16"), (AMX, "bfloat16"), (ZEN3, "float32")])
def test_the_processors_flags_decide(on: Any, text: str, best: str) -> None:
    on(text)
    assert best_dtype("cpu") == best


def test_without_a_proc_the_processor_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "CPUINFO", tmp_path / "none")
    assert best_dtype("cpu") == "float32"


def test_one_value_for_all_arms_is_in_every_plan_and_in_mlflows_parameters(on: Any, tmp_path: Path) -> None:
    keys = {}
    for text, best in ((ZEN4, "bfloat16"), (ZEN3, "float32")):
        on(text)
        specification = load_specification("real-laptop")
        assert f"the policy is computed in {best} (this processor has" in announce(specification, 1)
        runs = write_plan(make_plan(specification, {"": "data"}), tmp_path)
        assert len(runs) == 4
        for run in runs:
            content = json.loads((run.folder / "run.json").read_text())
            assert content["experiment"]["policy"]["dtype"] == best
        (tmp_path / "data" / "data").mkdir(parents=True, exist_ok=True)
        summary = {"version": "data", "counts": {}, "passages": None}
        (tmp_path / "data" / "data" / "summary.json").write_text(json.dumps(summary))
        assert flatten(about_run(runs[0], "cpu", "page").params)["policy.dtype"] == best
        keys[best] = {run.spec.run_key for run in runs}, {run.spec.start for run in runs}, runs[0].spec.sweep
    # another kind of processor: other runs, warm starts and sweeps
    assert keys["bfloat16"][0].isdisjoint(keys["float32"][0])
    assert keys["bfloat16"][1].isdisjoint(keys["float32"][1])
    assert keys["bfloat16"][2] != keys["float32"][2]


def test_what_auto_means_is_the_same_run_as_saying_so(on: Any) -> None:
    on(ZEN4)
    auto, said = resolve("real-laptop"), resolve("real-laptop", {"policy.dtype": "bfloat16"})
    assert auto.specification.sweep({"": "data"}) == said.specification.sweep({"": "data"})
    other = resolve("real-laptop", {"policy.dtype": "float32"})
    assert dtype_of(other.specification.base) == "float32"
    assert other.specification.sweep({"": "data"}) != auto.specification.sweep({"": "data"})


def test_auto_set_at_the_start_is_told_as_what_it_became(on: Any) -> None:
    """Also a selection of it is a specification: its changes are what its base has."""
    on(ZEN4)
    changes = {"policy.dtype": "auto", "training.device": "cpu"}
    request = resolve("real", changes, seeds=[3])
    assert dtype_of(request.specification.base) == "bfloat16"
    assert "auto" not in request.command and request.with_seeds([4]).specification.seeds == [4]
    on(ZEN3)
    assert resolve("real", changes).specification.changes == {"policy.dtype": "float32"}


def test_a_preset_that_is_derived_decides_for_itself(on: Any, tmp_path: Path) -> None:
    content = yaml.safe_load("""
        name: derived
        baseline: outcome_only
        seeds: [0]
        arms: {outcome_only: {reward: outcome_only}}
        base: {from: real-laptop, policy.lora: {rank: 4}}
    """)
    (tmp_path / "derived.yaml").write_text(yaml.safe_dump(content))
    on(AMX)
    assert dtype_of(load_specification(str(tmp_path / "derived.yaml")).base) == "bfloat16"
    on(ZEN3)
    assert dtype_of(load_specification(str(tmp_path / "derived.yaml")).base) == "float32"
    content["factors"] = {"dtype": {"one": {"policy.dtype": "float32"}, "other": {"policy.dtype": "auto"}}}
    (tmp_path / "derived.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"cell 'dtype=other' of derived has policy.dtype=auto"):
        load_specification(str(tmp_path / "derived.yaml"))


def test_nothing_is_planned_or_computed_undecided() -> None:
    experiment = ExperimentConfig.model_validate(
        {
            "data": {"kind": "files", "questions": [{"path": "q"}], "corpus": ["c"]},
            "policy": {"kind": "pretrained", "name": "m", "dtype": "auto"},
        }
    )
    fields = {"study": "s", "sweep": "s", "arm": "a", "data_version": "d", "code": code_version()}
    with pytest.raises(ValueError, match=r"policy.dtype=auto: a planned run says"):
        RunSpec(experiment=experiment, **fields)
    shape = Shape(2, 8, 16, 2, 2, 4, 100, tied=True)
    with pytest.raises(ConfigError, match="set it to float32 or bfloat16"):
        memory(shape, experiment)


def test_an_accelerator_that_is_not_there_decides_nothing() -> None:
    import torch

    if torch.cuda.is_available():
        assert best_dtype("cuda") == (
            "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        )
        return
    with pytest.raises(ConfigError, match="this machine has none"):
        load_specification("real", {"policy.dtype": "auto"})


def test_a_worker_without_the_instructions_is_warned_and_not_refused(on: Any) -> None:
    on(ZEN4)
    experiment = load_specification("real-laptop").experiment("igpo_rms", 0)
    assert unsuited(experiment) == []
    on(ZEN3)
    (line,) = unsuited(experiment)
    assert line.startswith("warning: this run was planned with policy.dtype=bfloat16")
    assert unsuited(load_specification("real-laptop").experiment("igpo_rms", 0)) == []  # planned in float32
    assert unsuited(ExperimentConfig()) == []
