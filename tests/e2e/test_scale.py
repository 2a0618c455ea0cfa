"""The whole ablation with a pretrained model: Qwen2's architecture, Qwen2.5's own chat template, a tokenizer of the real
corpus; LoRA on and off, one process and two, DDP and FSDP2. And a sweep over the web that is repeated without it."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from igpo_core.config import NewPolicy
from tests.e2e.conftest import ROOT, Servers, free_ports
from tests.igpo_core.hostile import hostile_server
from tests.tiny_gguf import HEADS, KEY_VALUE_HEADS, learn, write
from tests.waiting import HANGS

pytestmark = [pytest.mark.night, pytest.mark.timeout(3600)]

SHARED = ROOT.parent / "shared" / "data"
TEMPLATE = ROOT / "tests" / "data" / "qwen2_5_chat_template.jinja"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has them: weights, tokenizer, template."""
    import pandas

    from igpo_core.environments.searching import SEARCH
    from igpo_core.policies import chat_tokenizer, make_policy, new_model, save_policy

    shape = NewPolicy.model_validate(
        {"architecture": "qwen2", "tokenizer": "chat", "vocabulary": 2048, "width": 64, "layers": 2, "heads": 2,
         "key_value_heads": 1, "feed_forward": 128, "window": 4096}
    )  # fmt: skip
    texts = pandas.read_parquet(SHARED / "corpus.parquet")["text"].head(2000)
    tokenizer = chat_tokenizer(texts, shape)
    tokenizer.chat_template = TEMPLATE.read_text()
    folder = tmp_path_factory.mktemp("model")
    save_policy(make_policy(new_model(shape, len(tokenizer), tokenizer, 0), tokenizer, SEARCH), folder)
    return folder


@pytest.fixture(scope="module")
def taught(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model after a warm start: it searches, answers and fails, so that turns differ in what they earn."""
    from igpo_core.config import plan_run
    from tasks.data.publishing import prepare
    from tasks.runs.planned import Run
    from tasks.runs.warm_starts import ensure_warm_start
    from tasks.specification.presets import load_specification

    home = tmp_path_factory.mktemp("taught")
    found = load_specification(str(specification(model, home, "taught", {})))
    version = prepare(found.base.data, home).version
    return ensure_warm_start(Run(plan_run(found, found.baseline, 0, "", version, "taught"), home), print)


def specification(
    model: Path,
    folder: Path,
    name: str,
    training: dict[str, Any],
    search: Any = None,
    engine: Any = None,
    warm_start: bool = True,
) -> Path:
    """An untrained policy would never search, and all rewards were equal: it is warm-started."""
    data: dict[str, Any] = {
        "kind": "files",
        "questions": [{"path": str(SHARED / "questions.parquet")}],
        "corpus": [] if search else [str(SHARED / "corpus.parquet")],
        "top_k": 1,
        "max_passage_words": 20,
    }
    if search:
        data["search"] = search
    content: dict[str, Any] = {
        "name": name,
        "baseline": "outcome_only",
        "seeds": [0],
        "processes": 1,
        "arms": {"outcome_only": {"reward": "outcome_only"}, "igpo": {"gain": "log_prob_diff"}},
        "base": {
            "data": data,
            "policy": {"kind": "pretrained", "name": str(model)},
            "rollout": {"questions": 3, "group_size": 4, "max_turns": 2, "max_new_tokens": 64, "max_tokens": 1024},
            "training": {"epochs": 1, "steps_per_epoch": 2, **training},
            "evaluation": {"every": 2, "dev_questions": 4, "test_questions": 6, "decoding": ["sampled"], "traces": 6},
        },
    }
    # outcomes of so few rollouts may all be equal (seen: in every step of outcome_only): entropy gives each update a gradient
    content["base"]["optimizer"] = {"entropy_coefficient": 0.01}
    if search:  # 64 tokens cut off half of its turns, and none of so few test questions had a search
        content["base"]["rollout"]["max_new_tokens"] = 96
        content["base"]["evaluation"] |= {"test_questions": 24, "traces": 24}
    if warm_start:
        stage = {"steps": 250, "learning_rate": 3e-3, "batch_size": 4, "demonstrations": {"kind": "files"}}
        content["base"]["warm_start"] = {"stages": [stage]}
    if engine:
        content["base"]["rollout"]["engine"] = engine
    if not search:
        content["factors"] = {"adapter": {"no": {"policy.lora": None}, "lora": {"policy.lora": {"rank": 4}}}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def sweep(servers: Servers, path: Path) -> str:
    done = servers.run(sys.executable, "-m", "flows.ablation", str(path), timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def results(servers: Servers, study: str) -> dict[tuple[str, str, int], dict[str, Any]]:
    """By cell, arm and seed."""
    every = [json.loads(path.read_text()) for path in (servers.home / "runs").glob("*/result.json")]
    return {(r["cell"], r["arm"], r["seed"]): r for r in every if r["study"] == study}


def numbers(result: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in result["metrics"].items() if "seconds" not in name}


def steps_of(servers: Servers, result: dict[str, Any], metric: str) -> list[float]:
    """A metric of each step of a run."""
    lines = (servers.home / "runs" / result["run_key"] / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line)["metrics"].get(metric) for line in lines]
    return [value for value in found if value is not None]


def gradients(servers: Servers, result: dict[str, Any]) -> list[float]:
    return steps_of(servers, result, "train/grad_norm")


def moved(checkpoint: Path, start: Path) -> float:
    """The furthest that a weight is from where it began; an adapter's product begins at 0."""
    if (checkpoint / "adapter_model.safetensors").is_file():
        adapter = load_file(checkpoint / "adapter_model.safetensors")
        return max(float(tensor.abs().max()) for name, tensor in adapter.items() if "lora_B" in name)
    before, after = load_file(start / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    return max(float((after[name] - before[name]).abs().max()) for name in before)


def test_adapter_on_and_off_by_one_process_and_by_two(servers: Servers, taught: Path, tmp_path: Path) -> None:
    ways: dict[str, dict[str, Any]] = {
        "scale-one": {},
        "scale-two": {"processes": 2},
        "scale-fsdp": {"processes": 2, "sharding": "fsdp"},
    }
    for name, training in ways.items():
        sweep(servers, specification(taught, tmp_path, name, training, warm_start=False))
    one = results(servers, "scale-one")
    assert len(one) == 2 * 2  # adapters, arms
    assert {cell for cell, _, _ in one} == {"adapter=no", "adapter=lora"}
    for name in ("scale-two", "scale-fsdp"):
        several = results(servers, name)
        assert several.keys() == one.keys()
        for key, result in several.items():
            assert result["counters"]["rollouts"] == one[key]["counters"]["rollouts"] == 24
            assert numbers(result) == pytest.approx(numbers(one[key]), abs=1e-3), (name, key)
            assert gradients(servers, result) == pytest.approx(gradients(servers, one[key]), rel=1e-3), (name, key)
            # AdamW's steps have the size of the learning rate, 3e-4, however small a gradient is
            assert moved(servers.home / result["checkpoint"], taught) > 1e-4, (name, key)
    for key, result in one.items():
        assert len(gradients(servers, result)) == 2 and min(gradients(servers, result)) > 0, key
        assert sum(steps_of(servers, result, "train/tool_calls")) > 0, key
    for adapter in ("no", "lora"):  # gains are paid: seen .070 against .023 with an adapter, .100 against .031 without
        paid, unpaid = (max(gradients(servers, one[f"adapter={adapter}", arm, 0])) for arm in ("igpo", "outcome_only"))
        assert paid > 1.5 * unpaid
    checkpoints = {key: servers.home / result["checkpoint"] for key, result in one.items()}
    assert (checkpoints["adapter=lora", "igpo", 0] / "adapter_model.safetensors").is_file()
    assert (checkpoints["adapter=no", "igpo", 0] / "model.safetensors").is_file()


def test_a_sweep_over_the_web_is_repeated_with_the_network_gone(servers: Servers, model: Path, tmp_path: Path) -> None:
    """Live; then from the pinned observations alone, to the bit."""
    with hostile_server() as server:
        search = {"kind": "web", "api": "retriever", "url": f"{server.address}/retriever", "mode": "live"}
        sweep(servers, specification(model, tmp_path, "web-live", {}, search))
        asked = sum(server.asked.values())
    assert asked > 50 and max(server.asked.values()) == 1  # each query was asked once, whoever asked
    mlflow = MlflowClient(servers.environment["MLFLOW_TRACKING_URI"])
    study = mlflow.get_experiment_by_name("web-live")
    assert study is not None
    traces = mlflow.search_traces(locations=[study.experiment_id])
    assert len(traces) == 2 * 24
    told = json.dumps([span.outputs for trace in traces for span in trace.data.spans])
    assert "Page 1 of" in told  # what the web answered stands in the trace
    sweep(servers, specification(model, tmp_path, "web-replay", {}, {**search, "mode": "replay"}))
    live, replayed = results(servers, "web-live"), results(servers, "web-replay")
    assert live.keys() == replayed.keys() and len(live) == 2
    assert sum(result["metrics"]["test/all/tool_calls"] for result in live.values()) > 0
    for key, result in live.items():
        assert numbers(result) == numbers(replayed[key]), key


def test_an_ablation_of_a_gguf_file_on_questions_that_ship(servers: Servers, tmp_path: Path) -> None:
    """From the file to a comparison of what the sweep ends with: converted once, taught, trained in bfloat16, evaluated."""
    from igpo_core.gguf import KNOWN_TEXT
    from igpo_core.policies import chat_tokenizer, new_model

    shape = NewPolicy.model_validate(
        {"tokenizer": "chat", "vocabulary": 600, "width": 32, "layers": 2, "heads": HEADS,
         "key_value_heads": KEY_VALUE_HEADS, "feed_forward": 64, "window": 4096}
    )  # fmt: skip
    tokenizer = chat_tokenizer([KNOWN_TEXT, (ROOT / "examples" / "passages.csv").read_text()], shape)
    model = new_model(shape, len(tokenizer), tokenizer, seed=0)
    learn(model, tokenizer)
    file = write(tmp_path / "tiny.gguf", (model, tokenizer))
    path = tmp_path / "gguf.yaml"
    content = {
        "name": "gguf",
        "baseline": "outcome_only",
        "seeds": [0],
        "processes": 1,
        "arms": {"outcome_only": {"reward": "outcome_only"}, "igpo": {"gain": "log_prob_diff"}},
        "base": {
            "data": {
                "kind": "files", "questions": [{"path": str(ROOT / "examples" / "questions.csv")}],
                "corpus": [str(ROOT / "examples" / "passages.csv")], "top_k": 1, "max_passage_words": 20,
            },
            "policy": {
                "kind": "pretrained", "name": str(file), "dtype": "bfloat16",
                "revision": hashlib.sha256(file.read_bytes()).hexdigest(),
            },
            "optimizer": {"entropy_coefficient": 0.01},
            "rollout": {"questions": 2, "group_size": 4, "max_turns": 2, "max_new_tokens": 64, "max_tokens": 2048},
            "training": {"epochs": 1, "steps_per_epoch": 2},
            "evaluation": {"every": 2, "dev_questions": 2, "test_questions": 4, "decoding": ["greedy"], "traces": 2},
            "warm_start": {"stages": [
                {"steps": 60, "learning_rate": 3e-3, "batch_size": 4, "demonstrations": {"kind": "files"}},
            ]},
        },
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "flows.ablation", str(path), "--evaluate", "base,start,last,best"]
    done = servers.run(*command, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (converted,) = (servers.home / "models").iterdir()
    assert json.loads((converted / "source.json").read_text())["licence"] == "cc0-1.0"
    found = results(servers, "gguf")
    assert {arm for _, arm, _ in found} == {"outcome_only", "igpo"}
    for result in found.values():
        assert len(gradients(servers, result)) == 2 and min(gradients(servers, result)) > 0
    assert all(name in done.stdout for name in ("base", "start", "igpo last", "igpo best"))


@contextmanager
def vllm(python: str, model: Path, folder: Path) -> Iterator[str]:
    """A vLLM server of the environment that `python` belongs to; its address."""
    port = free_ports()[0]
    settings = ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--max-model-len", "2048"]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *settings]
    command += ["--host", "127.0.0.1", "--port", port, "--dtype", "float32", "--enforce-eager"]
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    url = f"http://127.0.0.1:{port}"
    with (folder / "vllm.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            for _ in range(300):
                assert server.poll() is None, (folder / "vllm.log").read_text()[-3000:]
                try:
                    httpx.get(f"{url}/health", timeout=5).raise_for_status()
                    break
                except httpx.TransportError:
                    time.sleep(1)
            yield url
        finally:
            server.terminate()
            server.wait(HANGS)


@pytest.mark.skipif("IGPO_VLLM" not in os.environ, reason="IGPO_VLLM names the python of an environment with vLLM")
def test_the_whole_ablation_with_vllm(servers: Servers, model: Path, tmp_path: Path) -> None:
    with vllm(os.environ["IGPO_VLLM"], model, tmp_path) as url:
        engine = {"kind": "vllm", "urls": [url], "weights": str(tmp_path / "weights")}
        sweep(servers, specification(model, tmp_path, "with-vllm", {}, engine=engine))
        told = (tmp_path / "vllm.log").read_text()
    found = results(servers, "with-vllm")
    assert {cell for cell, _, _ in found} == {"adapter=no", "adapter=lora"} and len(found) == 4
    mlflow = MlflowClient(servers.environment["MLFLOW_TRACKING_URI"])
    study = mlflow.get_experiment_by_name("with-vllm")
    assert study is not None
    searched = 0.0
    for result in found.values():
        (run,) = mlflow.search_runs([study.experiment_id], f"tags.run_key = '{result['run_key']}'")
        worst, searches = (
            [point.value for point in mlflow.get_metric_history(run.info.run_id, name)]
            for name in ("engine/mismatch_max", "train/tool_calls")
        )
        # float32 on both sides: with the untrained weights that the server was started with it would be off by far more
        assert len(worst) == 2 and max(worst) < 1e-4
        searched += sum(searches)
    assert searched > 0
    assert "/collective_rpc" in told and "/reset_prefix_cache" in told
