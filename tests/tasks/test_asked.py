"""What an evaluation is asked for: data of other specifications, sources, sampling seeds."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from igpo_core.config import make_plan
from igpo_core.errors import CheckpointError, ConfigError
from tasks.runs.asked import Asked, plan_evaluation, plan_sweep_evaluation
from tasks.specification.presets import load_specification


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IGPO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def other(folder: Path, name: str, **data: Any) -> str:
    path = folder / f"{name}.yaml"
    content = {
        "name": name,
        "baseline": "outcome_only",
        "seeds": [0],
        "arms": {"outcome_only": {"reward": "outcome_only"}},
    }
    path.write_text(yaml.safe_dump({**content, "base": {"data": data}}))
    return str(path)


def asked(data: list[str] | None = None, models: Sequence[str] = ("base",), **given: Any) -> Asked:
    arguments = {"split": "test", "limit": None, "cell": "", "sources": None, "seeds": None, "changes": None, **given}
    return plan_evaluation(models, "tiny", data=data, say=print, **arguments)


def test_the_presets_own_data_and_seeds() -> None:
    found = asked()
    assert [(unit.data.name, unit.decoding, unit.draw) for unit in found.units] == [
        ("tiny", "sampled", 0), ("tiny", "sampled", 1), ("tiny", "greedy", 0)
    ]  # fmt: skip
    assert {unit.draw for unit in asked(seeds=[7, 8, 9, 10]).units} == {7, 8, 9, 10}
    assert {unit.data.experiment.rollout.max_turns for unit in asked(changes={"rollout.max_turns": 3}).units} == {3}


def test_questions_of_other_specifications_with_the_presets_rollouts(tmp_path: Path) -> None:
    found = asked(["tiny", other(tmp_path, "longer", kind="lookup", hops=3, train=8, dev=4, test=4)])
    sets = {unit.data.name: unit.data for unit in found.units}
    assert list(sets) == ["tiny", "longer"] and sets["tiny"].version != sets["longer"].version
    assert sets["longer"].experiment.rollout == sets["tiny"].experiment.rollout
    assert [len(found.environments.questions(one)) for one in sets.values()] == [16, 4]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data sums is scored by .*, and the preset's by f1"):
        asked([other(tmp_path, "sums", kind="calculator", train=8, dev=4, test=4)])
    with pytest.raises(ConfigError, match="data tiny, tiny: two of them are the same questions"):
        asked(["tiny", "tiny"])
    with pytest.raises(ConfigError, match="no test question of nq: its sources are lookup"):
        asked(sources=["nq"])
    greedy = {"evaluation.decoding": ["greedy"]}
    with pytest.raises(
        ConfigError, match=r"seeds 0, 1: evaluation.decoding is greedy, which draws nothing.*Leave seeds out"
    ):
        asked(seeds=[0, 1], changes=greedy)
    with pytest.raises(ConfigError, match=r"seeds 4: evaluation.decoding is greedy"):
        asked(seeds=[4], changes=greedy)
    with pytest.raises(ConfigError, match="seeds 5, 6, 5: the same seed draws the same again"):
        asked(seeds=[5, 6, 5])
    # what is decoded greedily is the same measurement whatever seeds the sampled ones have
    both = {"evaluation.decoding": ["sampled", "greedy"]}
    (four, once), (five, again) = ([unit.key for unit in asked(seeds=[seed], changes=both).units] for seed in (4, 5))
    assert four != five and once == again
    assert len(asked(seeds=[0, 1], changes={"evaluation.decoding": ["greedy", "sampled"]}).units) == 3


def test_a_sweep_ends_with_the_questions_that_its_runs_were_asked() -> None:
    """Of the 16 test questions of tiny the first two, where its runs are tested on two."""
    specification = load_specification("tiny", {"evaluation.test_questions": 2})
    version = asked().units[0].data.version
    found = plan_sweep_evaluation(["base"], make_plan(specification, {"": version}), print)
    own = found.units[0].data
    every = found.environments.of(own).tasks("test")
    assert len(every) == 16 and found.environments.questions(own) == list(every[:2])
    assert replace(own, most=3).identity() != own.identity()  # of which measurements are kept


SLOTS = {"rollout.engine.kind": "continuous"}


@pytest.fixture
def gpt2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder of a GPT-2, of which no packed pass is compared, without weights; and the hub's model owner/gpt2."""
    content = json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 1, "n_embd": 12})
    hub = tmp_path / "models--owner--gpt2"
    for folder in (tmp_path / "gpt2", hub / "snapshots" / ("a" * 40)):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(content)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("a" * 40)
    (tmp_path / "adapter").mkdir()
    adapter = {"base_model_name_or_path": str(tmp_path / "gpt2"), "revision": None}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return str(tmp_path / "gpt2")


def test_a_model_that_the_engine_cannot_run_is_refused_before_anything_is_measured(gpt2: str) -> None:
    remedy = re.escape("""--param 'set={"rollout.engine.kind": "transformers"}'""")
    pretrained = {"policy": {"kind": "pretrained", "name": gpt2}, "warm_start": None}
    adapter = str(Path(gpt2).parent / "adapter")
    for name, more in ((gpt2, {}), (adapter, {}), ("owner/gpt2", {}), ("base", pretrained)):
        with pytest.raises(ConfigError, match=f"^{name}: rollout.engine.kind=continuous .*type gpt2,.*{remedy}$"):
            asked(["tiny"], models=["base", name], changes={**SLOTS, **more})
        assert asked(["tiny"], models=["base", name], changes=more).units
    (Path(gpt2) / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')
    assert asked(["tiny"], models=["base", gpt2], changes=SLOTS).units
    float32 = f"^base: .*computes in bfloat16 on a GPU.*{remedy}$"
    with pytest.raises(ConfigError, match=float32):  # a new policy
        asked(changes={**SLOTS, "training.device": "cuda"})
    with pytest.raises(ConfigError, match=float32):
        asked(changes={**SLOTS, **pretrained, "training.device": "cuda"})
    half = {**pretrained, "policy": {**pretrained["policy"], "dtype": "bfloat16"}}
    assert asked(changes={**SLOTS, **half, "training.device": "cuda"}).units
    with pytest.raises(CheckpointError, match="its configuration cannot be loaded"):
        (Path(gpt2) / "config.json").write_text("{")
        asked(models=[gpt2], changes=SLOTS)


def test_a_sweep_ends_with_the_settings_and_data_that_its_runs_had(tmp_path: Path) -> None:
    """Meanwhile its file is another one, and asks other questions."""
    from igpo_core.config import make_plan
    from tasks.data.publishing import prepare
    from tasks.lab.home import home
    from tasks.runs import asked as asked_of
    from tasks.specification.presets import resolve

    path = other(tmp_path, "mine", kind="lookup", train=8, dev=4, test=4)
    request = resolve(path, {"rollout.max_turns": 3}, None, [5, 6])
    version = prepare(request.specification.base.data, home()).version
    plan = make_plan(request.specification, {"": version})
    other(tmp_path, "mine", kind="lookup", train=8, dev=4, test=6)
    found = asked_of.plan_sweep_evaluation(["base"], plan, print)
    assert {unit.data.version for unit in found.units} == {version}
    assert {unit.data.experiment.rollout.max_turns for unit in found.units} == {3}
    assert {unit.draw for unit in found.units} == {5, 6} and {unit.data.split for unit in found.units} == {"test"}
    assert len(found.environments.questions(found.units[0].data)) == 4
    assert found.specification == request.specification
