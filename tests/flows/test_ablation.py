"""The command: what is refused before any server is asked."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.ablation import ablation
from flows.command import main
from igpo_core.errors import ConfigError
from tasks.specification.presets import PRESETS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--arms", "igpo_magic"], "igpo"),
        (["tiny", "--seeds", "0,0"], "seeds"),
        (["penalties", "--evaluate", "last"], "penalties has factors"),
    ],
)
def test_a_bad_selection(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_deployed_sweep_with_factors_is_told_before_it_trains() -> None:
    with pytest.raises(ConfigError, match=r"penalties has factors \(penalty\).*cell='penalty=none'"):
        ablation.fn("penalties", evaluate=["last"])


def test_seeds_that_are_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["tiny", "--seeds", "0, 1"])
    assert "no list of numbers" in capsys.readouterr().err


def test_what_a_sweep_cannot_end_with(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["tiny", "--evaluate", "last,first"])
    assert "first: give some of base, start, last, best" in capsys.readouterr().err


def test_a_sweep_with_factors_ends_with_no_comparison_of_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before any server is asked: cells have settings of their own, and were measured under those of the first."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    path = tmp_path / "crossed.yaml"
    content = yaml.safe_load((PRESETS / "tiny.yaml").read_text())
    levels = {"4": {"rollout.group_size": 4}, "8": {"rollout.group_size": 8}}
    path.write_text(yaml.safe_dump({**content, "name": "crossed", "factors": {"group": levels}}))
    assert main([str(path), "--evaluate", "start,last"]) == 1
    told = capsys.readouterr().err
    assert "evaluate: crossed has factors (group)" in told and "without evaluate" in told and "cell='group=4'" in told


def test_a_name_is_checked_before_anything_heavy_is_imported() -> None:
    """A run with a wrong arm failed after half a minute, most of which went into imports."""
    flows = "flows.ablation, flows.evaluate, flows.prepare_data, flows.train"
    heavy = "[name for name in ('torch', 'transformers', 'pandas', 'great_expectations') if name in sys.modules]"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {flows}; print({heavy})"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
