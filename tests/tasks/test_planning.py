"""What a sweep will take, worked out by hand."""

from pathlib import Path

import pytest

from igpo_core.config import ExperimentConfig
from tasks.planning import COPIES, REST, Timing, estimate, keep_timing, read_timing, run_seconds, spell

TIMING = Timing(step=0.5, rollouts=128, rollout=0.002, warm_start=100.0, weights=1_000_000)


def experiment(**training: object) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "rollout": {"questions": 16, "group_size": 16},
            "training": {"epochs": 4, "steps_per_epoch": 10, **training},
            "evaluation": {"every": 5, "dev_questions": 100, "test_questions": 500},
        }
    )


def test_seconds_of_a_run() -> None:
    # 40 steps of 256 rollouts, 1 s each; 9 x 100 x 2 dev and 500 x 3 test rollouts of 2 ms
    assert run_seconds(experiment(), TIMING) == pytest.approx(40 + 3.6 + 3.0)
    assert run_seconds(experiment(budget="seconds", amount=10), TIMING) == pytest.approx(10 + 6.6)
    assert run_seconds(experiment(budget="seconds", amount=1000), TIMING) == pytest.approx(46.6)
    assert run_seconds(experiment(budget="sampled_tokens", amount=1000), TIMING) == pytest.approx(46.6)


def test_words(tmp_path: Path) -> None:
    text = estimate([experiment()] * 30, 5, TIMING, 2, tmp_path)  # (30 x 46.6 + 5 x 100) / 2 = 949 s
    assert text.startswith("about 16 min for 30 runs of about 47 s (a step of 128 rollouts took 0.5 s here), 0.3 GB")
    assert 30 * (COPIES * 1_000_000 + REST) + 5 * 1_000_000 == 305_000_000
    assert "warning" not in text
    huge = Timing(0.5, 128, 0.002, None, 10**15)
    assert "warning: the disk will be full" in estimate([experiment()], 0, huge, 2, tmp_path)
    assert estimate([], 0, TIMING, 2, tmp_path) == "nothing is left to train"
    assert [spell(90), spell(600), spell(9000)] == ["90 s", "10 min", "2.5 h"]


def test_a_timing_is_found_again(tmp_path: Path) -> None:
    assert read_timing(tmp_path, "sweep") is None
    keep_timing(tmp_path, "sweep", TIMING)
    assert read_timing(tmp_path, "sweep") == TIMING
