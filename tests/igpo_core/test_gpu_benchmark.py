"""benchmarks/gpu.py on a CPU: it runs, and its table and JSON have what they say."""

import json
import math
from pathlib import Path

import pytest


@pytest.mark.night  # 10 s on two free cores, a minute on busy ones
def test_the_benchmark_runs_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import gpu

    if gpu.DEVICE.type != "cpu":
        pytest.skip("there is a GPU: run the benchmark itself")
    found = gpu.main(["--repeats", "0", "--out", str(tmp_path / "gpu.json")])
    told = capsys.readouterr().out
    assert json.loads(told.splitlines()[-1]) == json.loads(json.dumps(found))
    (shape,) = json.loads((tmp_path / "gpu.json").read_text())["shapes"].values()
    rows = shape["rows"]
    assert [(row["engine"], row["reward"]) for row in rows] == [
        ("transformers", "outcome_only"),
        ("transformers", "outcome_and_gain"),
        ("continuous", "outcome_only"),
        ("continuous", "outcome_and_gain"),
    ]
    for row in rows:
        assert row["sampled_per_second"] * row["rollout"] == pytest.approx(row["sampled"])
        assert row["step"] >= row["rollout"] + row["update"]
        assert (row["scoring"] > 0) is (row["reward"] == "outcome_and_gain")
    assert all(math.isfinite(value) and value > 0 for value in shape["floors"].values())
    assert shape["agreement"]["engine_plain_max"] < 0.1
    assert "a decoding step" in told
