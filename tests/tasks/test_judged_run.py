"""A run with a judge: its verdicts are in the result, and stay in the home folder."""

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from igpo_core.config import ExperimentConfig
from igpo_core.environments.lookup import generate
from igpo_core.policies import save_policy
from tasks.outbox import Nowhere
from tasks.runs import RunIdentity
from tasks.training import Job, start_trainer, train_to_end
from tests.igpo_core.judging import judging_server


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
        (tmp_path / "data").mkdir()
        generate(config.data).to_parquet(tmp_path / "data" / "questions.parquet")
        save_policy(policy, tmp_path / "warm")
        experiment, run = ExperimentConfig.model_validate(content), RunIdentity("run", tmp_path / "runs" / "run")
        job = Job(experiment, run, tmp_path / "data", tmp_path / "warm", tmp_path, "study", "arm", "")
        run.folder.mkdir(parents=True)
        trainer = start_trainer(job, print)
        metrics = train_to_end(trainer, job, Nowhere(), print, lambda step: None)["metrics"]
    count = min(16, len(trainer.environment.questions("test")))
    assert server.keys == {"Bearer hush"} and 1 < len(server.asked) == len(set(server.asked)) <= count
    right = sum(verdict(prompt) == "Yes" for prompt in server.asked)  # no answer is a wrong one
    assert (
        right and metrics["test/all/judged"] == pytest.approx(right / count) and metrics["test/all/judged_failed"] == 0
    )
    assert {"test/all/judged_em_agreement", "test/all/judged_em_kappa"} < metrics.keys()
    assert (tmp_path / "judge.sqlite").is_file()
