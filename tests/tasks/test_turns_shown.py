"""What benchmarks.contrast says of a search: what it showed for the first time."""

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.contrast import _shown


@pytest.mark.parametrize(
    ("text", "answer", "evidence", "shown"),
    [
        ("Who is it?", "Ann Lee", [0.5, 0.5, 1.0], ["evidence", "neither", "evidence and answer"]),
        ("Is it Ann Lee or Bob?", "Ann Lee", [0.0, 0.0, 0.0], ["neither", "neither", "answer"]),
        ("Is it?", "yes", [1.0, 1.0, 1.0], ["evidence", "neither", "neither"]),
        ("Who is it?", "Ann Lee", None, ["no answer (evidence unknown)"] * 2 + ["answer (evidence unknown)"]),
    ],
)
def test_contrast_says_what_a_search_showed_first(
    text: str, answer: str, evidence: list[float] | None, shown: list[str]
) -> None:
    """The third observation has the answer; a question gives it where it names it or asks for yes or no."""
    observations = [SimpleNamespace(text=said) for said in ("1. Ann: is a Leeson", "nothing", "2. Lee: is ANN LEE.")]
    episode: Any = SimpleNamespace(question=SimpleNamespace(text=text, answers=(answer,)), observations=observations)
    environment: Any = SimpleNamespace(evidence=lambda _: evidence)
    given = "not given" if text == "Who is it?" else "given"
    assert list(_shown(environment, episode)) == [
        (f"turn {number}", f"shows {what}", f"{given}: shows {what}") for number, what in enumerate(shown, 1)
    ]
