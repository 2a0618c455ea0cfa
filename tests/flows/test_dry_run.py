"""A dry run says what would happen, and stops at what would stop the run."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.dry_run import dry_run, main
from flows.specification import PRESETS
from igpo_core.errors import ConfigError, ServiceError


@pytest.fixture(autouse=True)
def in_a_home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPO_HOME", str(tmp_path / "home"))
    for name in ("SEARCH_API_KEY", "JUDGE_API_KEY"):
        monkeypatch.setenv(name, "hush")


def changed(folder: Path, **base: Any) -> str:
    content = yaml.safe_load((PRESETS / "tiny.yaml").read_text())
    content["base"] |= base
    (folder / "changed.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "changed.yaml")


def test_a_preset_that_can_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny"]) == 0
    said = capsys.readouterr().out
    assert "2 arms" in said and "rows quarantined" in said and "first batch: 2 questions x 2 rollouts" in said
    assert "memory, all on one accelerator" in said and "nothing stands in the way" in said


def test_a_chat_policy_by_path(tmp_path: Path, chat_policy: Any) -> None:
    from igpo_core.policies import save_policy

    save_policy(chat_policy, tmp_path / "model")
    policy = {"kind": "pretrained", "name": str(tmp_path / "model"), "dtype": "bfloat16", "lora": {"rank": 4}}
    rollout = {"questions": 2, "group_size": 2, "max_tokens": 900}
    lines = list(dry_run(changed(tmp_path, policy=policy, warm_start=None, rollout=rollout)))
    assert any("of which an adapter of" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"policy": {"kind": "pretrained", "name": "/no/such/model"}, "warm_start": None}, "/no/such/model"),
        ({"rollout": {"max_tokens": 18, "max_new_tokens": 16}}, "no train question leaves room"),
        ({"evaluation": {"judge": {"url": "http://127.0.0.1:1", "model": "m", "key_variable": "NO_SUCH_KEY"}}}, "NO_SUCH_KEY"),
    ],
)  # fmt: skip
def test_what_would_stop_the_run(tmp_path: Path, change: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        list(dry_run(changed(tmp_path, **change)))


def test_a_rollout_server_is_asked(tmp_path: Path) -> None:
    engine = {"kind": "vllm", "urls": ["http://127.0.0.1:9"], "weights": str(tmp_path / "weights")}
    with pytest.raises(ServiceError, match=r"127.0.0.1:9.*vllm serve"):
        list(dry_run(changed(tmp_path, rollout={"questions": 2, "group_size": 2, "engine": engine})))
