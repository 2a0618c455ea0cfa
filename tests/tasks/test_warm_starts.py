"""Where a warm start is made, and what is left of it there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from igpo_core.config import ExperimentConfig, PretrainedPolicy, WarmStart
from igpo_core.errors import ConfigError
from igpo_core.policies import save_policy
from tasks.data.publishing import prepare
from tasks.runs import warm_starts
from tasks.runs.devices import device
from tasks.runs.planning import speaks_for
from tasks.runs.training import time_a_step
from tasks.runs.warm_starts import ensure_warm_start
from tasks.specification.presets import load_specification
from tests.tasks.planned import planned

STAGE = {"steps": 2, "learning_rate": 1e-3, "batch_size": 2, "demonstrations": {"kind": "lookup"}}


@pytest.mark.parametrize("stages", [False, True])
def test_nothing_of_it_stays_on_the_accelerator(
    taught: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: bool
) -> None:
    """The flow's process waits while others train there: it takes the device for stages alone, and gives it back."""
    experiment: ExperimentConfig = taught[0]
    if stages:
        experiment = experiment.model_copy(update={"warm_start": WarmStart.model_validate({"stages": [STAGE]})})
    asked: list[str] = []
    moved: list[str] = []
    monkeypatch.setattr(warm_starts, "open_environment", lambda config, folder: taught[1])
    monkeypatch.setattr(warm_starts, "device", lambda config: asked.append("device") or "cpu")
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, place: moved.append(place) or self)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: moved.append("emptied"))
    folder = ensure_warm_start(planned(tmp_path, experiment), lambda line: None)
    assert (folder / "model.safetensors").is_file()
    assert bool(asked) is stages
    assert moved[-2:] == ["cpu", "emptied"]


def test_a_step_that_is_timed_speaks_for_runs_like_its_own(tmp_path: Path) -> None:
    base = load_specification("tiny", {"warm_start": None}).experiment("igpo", 0)
    run = planned(tmp_path, base, data_version=prepare(base.data, tmp_path).version)
    ensure_warm_start(run, lambda line: None)
    timing = time_a_step(run, 3.0, lambda line: None)
    assert speaks_for(timing, base) and timing.warm_start == 3
    assert 0 < timing.rollout * timing.rollouts < timing.step and timing.questions["dev"] == 16


@pytest.mark.parametrize("told", [True, False])
def test_a_template_that_tells_of_no_tool_is_said_where_a_start_is_made(
    chat_config: ExperimentConfig, chat_policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """In a sweep and in a single run, as the dry run says it; of what was made before nothing is said again."""
    save_policy(chat_policy, tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(template.read_text().replace("and tools", "and tools" if told else "and false"))
    policy = PretrainedPolicy(name=str(tmp_path / "model"))
    run = planned(tmp_path / "home", chat_config.model_copy(update={"policy": policy}))
    monkeypatch.setattr(warm_starts, "open_environment", lambda config, folder: None)
    said: list[str] = []
    ensure_warm_start(run, said.append)
    assert any(line.startswith("warning: this chat template does not tell of the tools") for line in said) is not told
    again: list[str] = []
    ensure_warm_start(run, again.append)
    assert [line.split(": ")[-1] for line in again] == ["reused"]


def test_a_process_keeps_to_its_share_of_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is here: what torch is told. On an H100 a process with a tenth was refused 20 GiB (docs/scale.md)."""
    told: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, place: told.append((share, place)))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: SimpleNamespace(total_memory=80 * 2**30))
    monkeypatch.setenv("LOCAL_RANK", "1")
    asked = ExperimentConfig.model_validate({"training": {"device": "cuda", "memory_share": 0.25}})
    assert device(asked) == "cuda:1"
    assert told == [(19 / 80, 1)]  # 20 GiB, of which CUDA's context takes one that torch does not count
    too_little = ExperimentConfig.model_validate({"training": {"device": "cuda", "memory_share": 0.0125}})
    with pytest.raises(ConfigError, match=r"memory_share=0.0125 of cuda:1 is less than CUDA's own 0.013 of it"):
        device(too_little)
    assert len(told) == 1
