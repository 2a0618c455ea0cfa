"""A run with a judge: its verdicts are in the result, and stay in the home folder."""

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from igpo_core.config import ExperimentConfig
from igpo_core.environments.lookup import generate
from igpo_core.policies import save_policy
from tasks.runs.planned import open_training
from tasks.runs.training import Recorder
from tasks.tracking.outbox import NoOutbox
from tests.igpo_core.judging import judging_server
from tests.tasks.planned import planned


def verdict(prompt: str) -> str:
    return "Yes" if zlib.crc32(prompt.encode()) % 2 else "No"


def test_a_run_is_judged(taught: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _, policy = taught
    content = json.loads(config.model_dump_json())
    content["training"] |= {"epochs": 1, "steps_per_epoch": 1}
    content["rollout"] |= {"questions": 2, "group_size": 2}
    monkeypatch.setenv("JUDGE_API_KEY", "hush")
    with judging_server(verdict) as server:
        judge = {"url": server.url, "model": "m"}
        content["evaluation"] |= {"every": 1, "dev_questions": 4, "test_questions": 16, "judge": judge}
        run = planned(tmp_path, ExperimentConfig.model_validate(content))
        run.data.mkdir(parents=True)
        generate(config.data).to_parquet(run.data / "questions.parquet")
        save_policy(policy, run.start)
        run.folder.mkdir(parents=True)
        training = open_training(run, print)
        metrics = Recorder(run, training, NoOutbox(), print).to_end()["metrics"]
    count = min(16, len(training.trainer.environment.tasks("test")))
    assert server.keys == {"Bearer hush"} and 1 < len(server.asked) == len(set(server.asked)) <= count
    right = sum(verdict(prompt) == "Yes" for prompt in server.asked)  # no answer is a wrong one
    assert (
        right and metrics["test/all/judged"] == pytest.approx(right / count) and metrics["test/all/judged_failed"] == 0
    )
    assert {"test/all/judged_em_agreement", "test/all/judged_em_kappa"} < metrics.keys()
    assert (tmp_path / "judge.sqlite").is_file()
