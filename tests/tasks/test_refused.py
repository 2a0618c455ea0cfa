"""Specifications that would fail late or without a word, refused as they are loaded."""

from pathlib import Path

import pytest

from igpo_core.config.specification import validated
from igpo_core.errors import ConfigError
from tasks.specification.presets import PRESETS, load_specification


@pytest.mark.parametrize("name", ["prob+kl", "prob (ours)", "gamma=0.9", "prob's", "a,b", "$x$", "..", "p" * 260])
def test_an_arm_whose_name_a_server_would_refuse_is_refused_at_load(name: str) -> None:
    content = {"name": "a", "base": {}, "baseline": "outcome_only", "seeds": [0]}
    arms = {"outcome_only": {"reward": "outcome_only"}, name: {"gain": "prob_diff"}}
    with pytest.raises(ConfigError, match="name an arm"):
        validated({**content, "arms": arms}, "here")


@pytest.mark.parametrize(
    ("text", "reason"), [("base: {{from: {path}}}", "derived from itself"), ("[" * 20_000, "nested too deeply")]
)
def test_a_specification_that_never_ends_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text.format(path=path))
    said = ""
    try:
        load_specification(str(path))
    except (ConfigError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}"
    assert said.startswith("ConfigError") and reason in said


@pytest.mark.parametrize("name", ["no", "1", "0.5", "null"])
def test_an_arm_that_yaml_reads_as_no_text_is_refused_with_the_cure(tmp_path: Path, name: str) -> None:
    text = (PRESETS / "tiny.yaml").read_text().replace("  igpo:", f"  {name}:", 1)
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"arm (False|1|0\.5|None) is no text .* put its name in quotes"):
        load_specification(str(tmp_path / "a.yaml"))
