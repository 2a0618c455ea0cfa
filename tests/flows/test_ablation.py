"""The command: what is refused before any server is asked."""

import subprocess
import sys

import pytest

from flows.command import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["tiny", "--arms", "igpo_magic"], "igpo"), (["tiny", "--seeds", "0,0"], "seeds")],
)
def test_a_bad_selection(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_seeds_that_are_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["tiny", "--seeds", "0, 1"])
    assert "no list of numbers" in capsys.readouterr().err


def test_what_a_sweep_cannot_end_with(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["tiny", "--evaluate", "last,first"])
    assert "first: give some of base, start, last, best" in capsys.readouterr().err


def test_a_name_is_checked_before_anything_heavy_is_imported() -> None:
    """A run with a wrong arm failed after half a minute, most of which went into imports."""
    flows = "flows.ablation, flows.evaluate, flows.prepare_data, flows.train"
    heavy = "[name for name in ('torch', 'transformers', 'pandas', 'great_expectations') if name in sys.modules]"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {flows}; print({heavy})"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
