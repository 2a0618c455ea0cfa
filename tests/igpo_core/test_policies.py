"""Code that comes with a model: of the one that the experiment names, at a commit, or of none."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from igpo_core.config import ExperimentConfig, PretrainedPolicy
from igpo_core.errors import CheckpointError
from igpo_core.policies import load_policy, save_policy

COMMIT = "7ae557604adf67be50417f59c2c2f167def9a775"


def accepted(**settings: Any) -> bool:
    try:
        PretrainedPolicy.model_validate({"name": "owner/model", **settings})
    except ValueError as error:
        assert "policy.trust_remote_code" in str(error) and "40 hex digits" in str(error)
        return False
    return True


@pytest.mark.parametrize(
    "revision", [None, "", "main", "v1.0", COMMIT[:12], COMMIT + "0", COMMIT.upper(), COMMIT + "\n"]
)
def test_remote_code_needs_a_commit(revision: str | None) -> None:
    assert not accepted(trust_remote_code=True, revision=revision)
    assert accepted(trust_remote_code=False, revision=revision)


def test_remote_code_at_a_commit_is_taken() -> None:
    assert accepted(trust_remote_code=True, revision=COMMIT)


def with_code(folder: Path, place: Path) -> Path:
    """A model's folder whose code makes `place`."""
    folder.mkdir()
    code = f"from pathlib import Path\nfrom transformers import PretrainedConfig\nPath({str(place)!r}).mkdir()\n"
    (folder / "own.py").write_text(code + "class OwnConfig(PretrainedConfig):\n    model_type = 'own'\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}))
    return folder


@pytest.mark.parametrize("named", [True, False])
def test_remote_code_of_another_model_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    """`evaluate` is given any folder or hub name, with a preset whose own model brings code."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, place = with_code(tmp_path / "model", tmp_path / "ran"), tmp_path / "ran"
    other = tmp_path / "another"  # which is not there
    policy = {"kind": "pretrained", "name": str(folder if named else other), "revision": COMMIT}
    config = ExperimentConfig.model_validate({"policy": {**policy, "trust_remote_code": True}})
    failed = False
    try:
        load_policy(folder, config)
    except Exception:  # it has no weights
        failed = True
    assert failed and place.exists() is named


# ------------------------------------------------------------------------------------------- what was trained of such a model

OWN = """
from pathlib import Path

from transformers import Qwen2Config, Qwen2ForCausalLM

Path({ran!r}).mkdir(exist_ok=True)


class OwnConfig(Qwen2Config):
    model_type = "own"


class OwnForCausalLM(Qwen2ForCausalLM):
    config_class = OwnConfig
"""


def setting(name: Path, **more: Any) -> ExperimentConfig:
    rollout = {"max_tokens": 1024, "max_new_tokens": 64}
    policy = {"kind": "pretrained", "name": str(name), "revision": COMMIT, "trust_remote_code": True, **more}
    return ExperimentConfig.model_validate({"policy": policy, "rollout": rollout})


def write_code(folder: Path, ran: Path) -> None:
    """Let the model of a folder be one of its own code, which makes the folder `ran`."""
    (folder / "own.py").write_text(OWN.format(ran=str(ran)))
    content = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    content |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": names}
    (folder / "config.json").write_text(json.dumps(content))


@pytest.fixture
def trained(tmp_path: Path, chat_policy: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """(settings, folder of a run whose weights differ, folder that its own copy of the code would make)."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("igpo_core.policies.require_window", lambda *_: None)
    save_policy(chat_policy, tmp_path / "model")
    write_code(tmp_path / "model", tmp_path / "ran-named")
    lora = {"rank": 2, "alpha": 4} if request.param else None
    config = setting(tmp_path / "model", lora=lora)
    policy = load_policy(config.policy.name, config)  # type: ignore[union-attr]
    for parameter in policy.model.parameters():
        parameter.data += 0.5 if parameter.requires_grad else 0
    save_policy(policy, tmp_path / "run")
    if not lora:
        assert (tmp_path / "run" / "own.py").is_file()  # transformers saves the code with the weights
        write_code(tmp_path / "run", tmp_path / "ran-copied")
    return config, policy, tmp_path / "run"


@pytest.mark.parametrize("trained", [False, True], indirect=True, ids=["whole", "adapter"])
def test_what_was_trained_of_a_model_with_code_is_evaluated_with_the_named_models_code(
    trained: Any, tmp_path: Path
) -> None:
    """The copy of the code that lies in the run's folder does not run, whoever sent the folder."""
    config, policy, run = trained
    shutil.rmtree(tmp_path / "ran-named")
    found = load_policy(run, config)
    weights, expected = dict(found.model.named_parameters()), dict(policy.model.named_parameters())
    assert weights.keys() == expected.keys() and all(bool((weights[name] == expected[name]).all()) for name in weights)
    assert type(found.model).__name__ == "OwnForCausalLM" and not (tmp_path / "ran-copied").exists()
    assert found.protocol.tokenizer.get_vocab() == policy.protocol.tokenizer.get_vocab()


SWITCH = "{{- 'aloud ' if enable_thinking | default(true) else 'off ' -}}"


@pytest.fixture
def switched(trained: Any, request: pytest.FixtureRequest) -> Any:
    """(settings without policy.thinking, folder of a run that was trained with `false`) of a model that can switch it."""
    config, _, run = trained
    own = Path(config.policy.name) / "chat_template.jinja"
    own.write_text(SWITCH + own.read_text())
    (run / "chat_template.jinja").write_text("{% set enable_thinking = false %}\n" + own.read_text())
    return config, run


@pytest.mark.parametrize("trained", [False, True], indirect=True, ids=["whole", "adapter"])
def test_a_run_of_a_model_with_code_keeps_the_thinking_that_it_was_trained_with(
    trained: Any, switched: Any, tmp_path: Path
) -> None:
    config, run = switched
    for thinking in (None, True, False):
        policy = config.policy.model_copy(update={"thinking": thinking})
        found = load_policy(run, config.model_copy(update={"policy": policy})).protocol
        assert found.tokenizer.decode(found.prompt("q")).startswith("off ")
    named = load_policy(config.policy.name, config).protocol
    assert named.tokenizer.decode(named.prompt("q")).startswith("aloud ")
    assert not (tmp_path / "ran-copied").exists()


@pytest.mark.parametrize("trained", [False, True], indirect=True, ids=["whole", "adapter"])
def test_a_run_of_a_model_with_code_without_its_tokenizer_is_refused(trained: Any) -> None:
    config, _, run = trained
    (run / "tokenizer.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"run has no tokenizer that .* reads .*copy the run's checkpoint or export"
    ):
        load_policy(run, config)


@pytest.mark.parametrize("trained", [False, True], indirect=True, ids=["whole", "adapter"])
def test_the_model_with_code_is_the_named_one_however_its_folder_is_spelled(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code runs as the preset asks, and a run of it is found to be one."""
    config, _, run = trained
    monkeypatch.chdir(tmp_path)
    for name in ("model", f"{tmp_path}/model/"):
        respelled = config.model_copy(update={"policy": config.policy.model_copy(update={"name": name})})
        for place in (config.policy.name, run):
            assert type(load_policy(place, respelled).model).__name__ == "OwnForCausalLM"


@pytest.mark.parametrize(
    ("trained", "file", "changed", "reason"),
    [
        (False, "config.json", {"rms_norm_eps": 0.5}, "rms_norm_eps=0.5, not 1e-06"),
        (False, "config.json", {"num_hidden_layers": 1}, "num_hidden_layers=1, not 2"),
        (True, "adapter_config.json", {"lora_alpha": 64}, "lora_alpha=64, not 4"),
        (True, "adapter_config.json", {"revision": "0" * 40}, "revision='0000"),
    ],
    indirect=["trained"],
)
def test_a_folder_of_other_settings_is_not_taken_for_the_named_models(
    trained: Any, file: str, changed: dict[str, Any], reason: str
) -> None:
    config, _, run = trained
    (run / file).write_text(json.dumps({**json.loads((run / file).read_text()), **changed}))
    with pytest.raises(CheckpointError, match=reason):
        load_policy(run, config)
