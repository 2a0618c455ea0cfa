"""What makes a run another run, and what does not."""

from pathlib import Path

import pytest

from igpo_core.config import ExperimentConfig, PretrainedPolicy, VllmEngine
from igpo_core.config.identity import code_on_disk

SOURCE = '''"""A module."""

LIMIT = 3  # of something


class Thing:
    """A thing."""

    size: int = 1
    """In bytes."""

    def double(self) -> int:
        """Return twice the size."""
        return 2 * self.size
'''


def code(folder: Path, source: str, name: str = "thing.py") -> str:
    for path in folder.glob("*.py"):
        path.unlink()
    (folder / name).write_text(source)
    return code_on_disk(folder)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("# of something", "# of something else"),
        ('"""A module."""', '"""Another text."""'),
        ('    """A thing."""\n\n', ""),
        ('"""In bytes."""', '"""In bits."""'),
        ("return 2 * self.size", "return (\n            2 * self.size\n        )"),
    ],
)
def test_words_and_layout_are_no_other_code(tmp_path: Path, before: str, after: str) -> None:
    assert before in SOURCE
    assert code(tmp_path, SOURCE.replace(before, after)) == code(tmp_path, SOURCE)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("2 * self.size", "self.size * 2"),
        ("size: int = 1", "size: int = 1\n    text = 'a'"),
    ],
)
def test_whatever_computes_otherwise_is_other_code(tmp_path: Path, before: str, after: str) -> None:
    assert before in SOURCE
    assert code(tmp_path, SOURCE.replace(before, after)) != code(tmp_path, SOURCE)


def test_values_of_different_types_are_other_code(tmp_path: Path) -> None:
    hashes = {
        code(tmp_path, f"x = {value}\n") for value in ("None", "''", "0", "False", "0.0", "b''", "()", "[]", "...")
    }
    assert len(hashes) == 9


def test_a_file_that_is_being_edited_is_other_code(tmp_path: Path) -> None:
    assert code(tmp_path, SOURCE.replace("return 2", "return (2")) != code(tmp_path, SOURCE)


def test_a_module_of_another_name_is_other_code(tmp_path: Path) -> None:
    assert code(tmp_path, SOURCE, "other.py") != code(tmp_path, SOURCE)


def test_another_version_of_a_package_that_computes_is_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = code(tmp_path, SOURCE)
    monkeypatch.setattr("igpo_core.config.identity.version", lambda package: f"{package} of tomorrow")
    assert code(tmp_path, SOURCE) != before


def test_where_a_run_is_computed_makes_no_other_run() -> None:
    """Settings that say where are in the run's description and not in its identity; every other setting is in both."""
    here = ExperimentConfig()
    there = ExperimentConfig.model_validate(
        {
            "training": {"device": "cuda", "memory_share": 0.5, "processes": 2, "nodes": 2, "sharding": "fsdp"},
        }
    )
    assert there.identity() == here.identity() and there != here
    assert set(here.model_dump(mode="json")["training"]) - set(here.identity()["training"]) == {
        "device", "memory_share", "processes", "nodes", "sharding"
    }  # fmt: skip
    engine = {"kind": "vllm", "urls": ["http://a:1"], "weights": "/w", "concurrency": 2, "timeout": 3, "attempts": 1}
    assert VllmEngine.model_validate(engine).identity() == {"kind": "vllm", "correction": "truncated", "cap": 2.0}
    assert ExperimentConfig(seed=1).identity() != here.identity()


def test_a_setting_that_came_later_makes_another_run_only_where_it_is_set() -> None:
    """policy.thinking: what was trained before it was there keeps its name. The fields are those of 2026-11-28."""
    plain = PretrainedPolicy(name="a/b")
    assert plain.identity() == {
        "kind": "pretrained", "name": "a/b", "revision": None, "dtype": "float32", "lora": None, "trust_remote_code": False
    }  # fmt: skip
    for value in (True, False):
        one = PretrainedPolicy(name="a/b", thinking=value)
        assert one.identity() == {**plain.identity(), "thinking": value}
        assert ExperimentConfig(policy=one).identity() != ExperimentConfig(policy=plain).identity()
    assert "thinking" in plain.model_dump()  # what is set at a sweep's start has a place
