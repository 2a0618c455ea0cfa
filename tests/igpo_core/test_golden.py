"""The numbers of ../shared/golden were computed independently of this code."""

import json
from pathlib import Path

import pytest

from igpo_core.advantages import turn_advantages
from igpo_core.rewards.outcome import exact_match, f1_score, paper_exact_match, paper_f1_score

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the shared golden folder is not beside this checkout")


def load(name: str) -> list[dict]:
    return json.loads((GOLDEN / name).read_text()) if GOLDEN.is_dir() else []


@pytest.mark.parametrize("case", load("advantages.json"))
def test_advantages(case: dict) -> None:
    result = turn_advantages(
        case["rewards"], case["groups"], normalization=case["normalization"], gamma=case["gamma"], scale=case["scale"]
    )
    assert [len(row) for row in result] == [len(row) for row in case["rewards"]]
    for row, expected in zip(result, case["expected"], strict=True):
        assert row == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("case", load("answer_metrics.json"))
def test_answer_metrics(case: dict) -> None:
    scores = {
        "f1": f1_score,
        "exact_match": exact_match,
        "paper_f1": paper_f1_score,
        "paper_exact_match": paper_exact_match,
    }
    for name, score in scores.items():
        assert score(case["prediction"], case["answers"]) == pytest.approx(case[name], abs=1e-9), name
