"""The benchmarks of training, in small, on a CPU: they run, and their tables and files have what they say."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from igpo_core.config import NewPolicy
from igpo_core.environments.searching import SEARCH
from igpo_core.policies import chat_tokenizer, new_model
from tasks.data.publishing import prepare
from tests.tasks.tables import files, row

pytestmark = [
    pytest.mark.night,
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run the benchmarks themselves"),
]


def test_both_engines_train_alike(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import engines

    found = engines.main(["--steps", "5", "--seeds", "1", "--questions", "2"])
    assert found["continuous"] == found["transformers"]  # float32 on a CPU: the same tokens
    assert len(found["continuous"][0]) == 5
    assert capsys.readouterr().out.count("seed 0") == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_on_a_cpu_is_held_against_its_floors(capsys: pytest.CaptureFixture[str], dtype: str) -> None:
    from benchmarks import cpu

    threads = torch.get_num_threads()
    try:
        cpu.main(["--shape", "tiny", "--repeats", "1", "--dtype", dtype])
    finally:
        torch.set_num_threads(threads)
    told = capsys.readouterr().out
    parts = {line.split()[0]: line.split()[1:] for line in told.splitlines() if line.startswith("   ")}
    seconds = {name: float(parts[name][0]) for name in ("prefill", "decode", "choose", "rollout", "update", "step")}
    assert seconds["prefill"] + seconds["decode"] + seconds["choose"] <= seconds["rollout"] + 0.02
    assert seconds["rollout"] + seconds["update"] <= seconds["step"] + 0.02
    assert all(float(parts[name][2]) > 1 for name in ("prefill", "decode", "choose", "update"))  # times the floor
    assert f"tiny, {dtype}: 2 trajectories" in told


def test_two_arms_of_a_real_model_by_the_library_alone(tmp_path: Path) -> None:
    """The parts of preset real on a tiny random model: the warm start, a process for each arm, and every event written."""
    from benchmarks import real_arms

    rows = [row(f"{split}{i}", split) for split, count in (("train", 6), ("dev", 2), ("test", 2)) for i in range(count)]
    data = prepare(files(tmp_path, rows), tmp_path / "home").folder
    settings = NewPolicy(
        tokenizer="chat", architecture="llama", vocabulary=400, width=32, layers=2, heads=4, key_value_heads=2,
        feed_forward=48, window=4096,
    )  # fmt: skip
    tokenizer = chat_tokenizer([SEARCH.system_prompt, "\n".join(one["question"] for one in rows)], settings)
    model = new_model(settings, len(tokenizer), tokenizer, seed=0)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    out = tmp_path / "arms.jsonl"
    stage: dict[str, Any] = {
        "steps": 2, "learning_rate": 2e-4, "batch_size": 4, "demonstrations": {"kind": "files", "max_searches": 2},
    }  # fmt: skip
    small = [
        "rollout.questions=1", "rollout.group_size=2", "rollout.max_new_tokens=24", "evaluation.every=1",
        f"warm_start={json.dumps({'stages': [stage]})}",
    ]  # fmt: skip
    where = ["--data", str(data), "--model", str(tmp_path / "model"), "--out", str(out)]
    real_arms.main([*where, "--steps", "1", "--every", "1", "--questions", "2", "--set", *small])
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["step"] for one in found if one["event"] == "warm start"]
    for arm in ("outcome_only", "igpo_rms"):
        own = [one for one in found if one.get("arm") == arm]
        assert [one["step"] for one in own if one["event"] == "StepDone"] == [1]
        assert [one["step"] for one in own if one["event"] == "Evaluated"] == [0, 1]
        assert [0 <= one["test/all/f1"] <= 1 for one in own if one["event"] == "test"] == [True]
        assert all(math.isfinite(one["train/grad_norm"]) for one in own if one["event"] == "StepDone")
    texts = [one for one in found if one["event"] == "trajectory"]
    assert texts and all("<|im_start|>" in one["text"] for one in texts)
    assert all(one["gains"] == [] for one in texts if one["arm"] == "outcome_only")
