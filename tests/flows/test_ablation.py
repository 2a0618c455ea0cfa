"""The command: what is refused before any server is asked."""

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
