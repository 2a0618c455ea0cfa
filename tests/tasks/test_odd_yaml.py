"""YAML that is no specification: refused with the product's own error, whatever is wrong with it, and never taken half."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from igpo_core.errors import ConfigError
from tasks.specification.presets import load_specification

GOOD = {
    "name": "y",
    "base": {},
    "baseline": "outcome_only",
    "seeds": [0, 1],
    "arms": {"outcome_only": {"reward": "outcome_only"}, "prob": {"gain": "prob_diff"}},
}


def refused(path: Path, content: str | dict[str, Any]) -> tuple[type[BaseException] | None, str]:
    """The kind of what loading the specification raises, and its message."""
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    try:
        load_specification(str(path))
    except Exception as error:
        return type(error), str(error)
    return None, ""


def test_the_good_one_is_taken(tmp_path: Path) -> None:
    assert refused(tmp_path / "p.yaml", GOOD) == (None, "")


@pytest.mark.parametrize(
    "value",
    ["2026-13-45", "0x_", "0b_", "9" * 5000, "!!int x", "!!float x", "!!bool maybe", "!!timestamp x", "!!binary é",
     "!!python/name:os.system x"],
)  # fmt: skip
def test_a_value_that_looks_like_another_kind_and_is_none(tmp_path: Path, value: str) -> None:
    kind, said = refused(tmp_path / "p.yaml", f"{yaml.safe_dump(GOOD)}description: {value}\n")
    assert kind is ConfigError and "is not YAML" in said and "p.yaml" in said


@pytest.mark.parametrize(
    "changes",
    [
        {"arms": {"outcome_only": {"reward": "outcome_only"}, "prob": {1: 2, "gain": "prob_diff"}}, "seeds": []},
        {"arms": {"outcome_only": {"reward": "outcome_only"}, "prob": {None: 2, "x": 1}}, "seeds": []},
        {"arms": {"outcome_only": {"reward": "outcome_only"}, "prob": {"optimizer": ["ratio"]}}},
        {"arms": {"outcome_only": {"reward": "outcome_only"}, "prob": {"optimizer": 3}}},
        {"arms": {"outcome_only": {"reward": "outcome_only"}, "prob": {"optimizer": {1: 2}}}},
        {"baseline": ["outcome_only"], "seeds": []},
        {"baseline": 5, "seeds": []},
        {"primary": {"a": 1}, "seeds": []},
        {"base": {"from": "lookup", 5: 1}},
        {"base": {"from": "a" * 300}},
        {"base": {"from": "a/" + "b" * 300 + ".yaml"}},
        {"base": {"from": "a\0b.yaml"}},
        {"base": {"data": {"kind": "files", "questions": [{"path": "a\0b"}], "corpus": ["c"]}}},
        {"base": {"policy": ["x"], "training": {"accelerate_config": "deployments/presets/tiny.yaml"}}},
    ],
)
def test_a_value_of_another_type_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    kind, said = refused(tmp_path / "p.yaml", {**GOOD, **changes})
    assert kind is ConfigError and said


@pytest.mark.parametrize(
    ("section", "name"),
    [("optimizer", "learning_rate"), ("rollout", "temperature"), ("reward", "format_penalty")],
)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_is_finite(tmp_path: Path, section: str, name: str, value: float) -> None:
    kind, said = refused(tmp_path / "p.yaml", {**GOOD, "base": {section: {name: value}}})
    assert kind is ConfigError and f"{section}.{name}" in said


def test_the_width_that_ends_a_study_is_finite(tmp_path: Path) -> None:
    kind, said = refused(tmp_path / "p.yaml", {**GOOD, "until": {"width": float("inf"), "seeds": 4}})
    assert kind is ConfigError and "until.width" in said


def test_factors_are_not_crossed_for_hours(tmp_path: Path) -> None:
    levels = {f"l{n}": {"seed_": n} for n in range(4)}
    kind, said = refused(tmp_path / "p.yaml", {**GOOD, "factors": {f"f{n}": levels for n in range(6)}})
    assert kind is ConfigError and "4096 cells" in said


@pytest.mark.parametrize(
    "content",
    [
        "num_machines: two", "num_machines: 0", "num_processes: null", "num_processes: [2]", "num_machines: -1", 
        "num_processes: 1.5",
        "distributed_type: FSDP\nfsdp_config: [fsdp_version]", "parallelism_config: [1]", "parallelism_config: {1: 2}",
        "machine_rank: 2026-13-45", "use_cpu: true\nuse_cpu: false",
    ],
)  # fmt: skip
def test_accelerates_file_is_read_as_carefully(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    changes = {"base": {"training": {"accelerate_config": str(tmp_path / "a.yaml")}}, "processes": 1}
    kind, said = refused(tmp_path / "p.yaml", {**GOOD, **changes})
    assert kind is ConfigError and "a.yaml" in said


PLAIN = yaml.safe_dump(GOOD, sort_keys=False)
LEVELS = "factors:\n  gamma:\n    0.5: {reward.gamma: 0.5}\n    0.9: {reward.gamma: 0.9}\n"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (PLAIN.replace("  prob:", "  no:"), "arm"),  # `no` is false
        (PLAIN + LEVELS, "0.5"),
        (PLAIN.replace("  prob:", "  prob: {gain: log_prob_diff}\n  prob:"), "prob given twice"),
        (PLAIN.replace("base: {}", "base:\n\toptimizer: {}"), "line 3"),
    ],
)
def test_what_yaml_reads_otherwise_than_it_looks_is_refused_by_its_name(
    tmp_path: Path, content: str, word: str
) -> None:
    kind, said = refused(tmp_path / "p.yaml", content)
    assert kind is ConfigError and word in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (PLAIN.replace("base: {}", "base: {optimizer: {learning_rate: yes}}"), "learning_rate is True, a truth value"),
        (PLAIN.replace("base: {}", "base: {rollout: {group_size: on}}"), "group_size is True, a truth value"),
        (PLAIN.replace("base: {}", "base: {optimizer: {betas: [0.9, no]}}"), "betas is [0.9, False], a truth value"),
        (PLAIN.replace("- 1\n", "- yes\n"), "seeds is [0, True], a truth value"),
        (PLAIN + "until: {width: yes, seeds: 3}\n", "width is True, a truth value"),
        (PLAIN.replace("gain: prob_diff", "gain: prob_diff\n    gamma: on"), "gamma is True, a truth value"),
        (PLAIN.replace("base: {}", "base: {rollout: {temperature: 1:30}}"), "got '1:30'"),  # 90 to YAML 1.1
        (PLAIN.replace("base: {}", "base: {training: {epochs: 1:30}}"), "got '1:30'"),
        (PLAIN.replace("base: {}", "base: {optimizer: {learning_rate: 1:00.5}}"), "got '1:00.5'"),
        (PLAIN.replace("- 1\n", "- 1:30\n"), "got '1:30'"),
        (PLAIN.replace("name: y", "name: 12:30"), "got '12:30'"),
    ],
)
def test_a_truth_value_and_a_time_are_no_numbers(tmp_path: Path, content: str, said: str) -> None:
    kind, message = refused(tmp_path / "p.yaml", content)
    assert kind is ConfigError and said in message


@pytest.mark.parametrize(
    ("content", "seeds", "rate"),
    [
        (PLAIN.replace("base: {}", "base:\n  optimizer: {learning_rate: 1e-6}"), [0, 1], 1e-6),  # text to PyYAML
        (PLAIN.replace("- 1\n", "- 010\n"), [0, 8], None),  # an octal number
        ("\ufeff" + PLAIN.replace("\n", "\r\n"), [0, 1], None),
    ],
)
def test_what_is_plainly_meant_is_taken(tmp_path: Path, content: str, seeds: list[int], rate: float | None) -> None:
    (tmp_path / "p.yaml").write_text(content, encoding="utf-8")
    found = load_specification(str(tmp_path / "p.yaml"))
    assert found.seeds == seeds and (rate is None or found.base.optimizer.learning_rate == rate)


@pytest.mark.parametrize(
    "name",
    ["prob+kl", "prob (ours)", "gamma=0.9", "prob's", "κ half", "prob, no penalty", "prob_diff", "p" * 260,
     "κ", "a.b-c", "-a", "p" * 64],
)  # fmt: skip
def test_an_arm_is_refused_at_load_or_can_be_reported(tmp_path: Path, name: str) -> None:
    """MLflow refuses other names in metrics and filters: after all training."""
    from mlflow.utils.validation import _validate_metric_name

    from tasks.tracking.server import tag_filter

    arms = {"outcome_only": {"reward": "outcome_only"}, name: {"gain": "prob_diff"}}
    kind, said = refused(tmp_path / "p.yaml", {**GOOD, "arms": arms})
    assert kind in (None, ConfigError) and (kind is None or "name an arm" in said)
    if kind is None:
        tag_filter(arms=f"outcome_only,{name}")
        _validate_metric_name(f"report/{name}/seeds")


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.learning_rate": 1e-5, "optimizer": {"learning_rate": 1e-4}},
        {"rollout": {"group_size": 8}, "rollout.group_size": 4},
    ],
)
def test_a_setting_that_the_start_of_a_sweep_sets_twice_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="set the same: give one of them"):
        load_specification("lookup", changes)
