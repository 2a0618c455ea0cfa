"""Code that comes with a model: of the one that the experiment names, at a commit, or of none."""

import json
from pathlib import Path
from typing import Any

import pytest

from igpo_core.config import ExperimentConfig, PretrainedPolicy
from igpo_core.policies import load_policy

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
    policy = {"kind": "pretrained", "name": str(folder) if named else "owner/model", "revision": COMMIT}
    config = ExperimentConfig.model_validate({"policy": {**policy, "trust_remote_code": True}})
    failed = False
    try:
        load_policy(folder, config)
    except Exception:  # it has no weights
        failed = True
    assert failed and place.exists() is named
