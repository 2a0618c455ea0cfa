"""Two processes and one make the same update, whatever the arm, with questions and micro-batches that do not divide, and go
on from one another's checkpoints; so do two between which the weights are spread."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from igpo_core.config import ExperimentConfig, WarmStart
from igpo_core.errors import ConfigError
from igpo_core.policies import Policy, make_policy, save_policy
from igpo_core.ranks import Ranks
from igpo_core.training import Trainer
from igpo_core.warmstart import run_warm_start
from tests.waiting import HANGS

ROOT = Path(__file__).resolve().parents[2]
KL = {
    "reward": {"gain": "prob_diff", "scorer": "lagged", "gain_scale": "match_outcome"},
    "optimizer": {"kl_coefficient": 0.1, "updates_per_step": 2, "denominator": "token"},
}
FSDP = {"training": {"sharding": "fsdp"}}
DAY: dict[str, dict[str, Any]] = {
    "outcome": {"reward": {"reward": "outcome_only"}},
    "igpo": {"reward": {"gain": "prob_diff"}},
    "outcome_fsdp": {"reward": {"reward": "outcome_only"}, **FSDP},
}
NIGHT: dict[str, dict[str, Any]] = {
    "kl": KL,
    "igpo_fsdp": {"reward": {"gain": "prob_diff"}, **FSDP},
    "lora_fsdp": {"reward": {"gain": "prob_diff"}, **FSDP},
    "query": {"reward": {"gain": "log_prob_diff", "credit": "query", "baseline": "batch_mean"}},
    "kl_fsdp": {**KL, **FSDP},
    "tied_fsdp": {"reward": {"gain": "prob_diff"}, "optimizer": {"kl_coefficient": 0.1}, **FSDP},
}
ARMS = [*DAY, *(pytest.param(arm, marks=pytest.mark.night) for arm in NIGHT)]


def tied(taught: Any) -> Policy:
    """As `taught`, with one matrix for embeddings and head, as Qwen2.5-0.5B and 1.5B have it."""
    config, environment, policy = taught
    shape = copy.deepcopy(policy.model.config)
    shape.tie_word_embeddings = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa")
    own = make_policy(model, policy.protocol.tokenizer, policy.protocol.interface)
    stage = {"steps": 150, "learning_rate": 1e-2, "batch_size": 32, "demonstrations": {"kind": "lookup"}}
    warm = WarmStart.model_validate({"stages": [stage]})
    run_warm_start(config.model_copy(update={"warm_start": warm}), environment, own, progress=lambda *_: None)
    return own


@pytest.fixture(scope="module")
def by_day(taught: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(taught, tmp_path_factory.mktemp("ranks"), DAY)


@pytest.fixture(scope="module")
def by_night(taught: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks-by-night")
    save_policy(tied(taught), folder / "tied")
    return run(taught, folder, NIGHT)


@pytest.fixture
def made(request: pytest.FixtureRequest, arm: str) -> Path:
    """The folder in which one process and two have run the same steps of the arm."""
    found: Path = request.getfixturevalue("by_day" if arm in DAY else "by_night")
    return found


def run(taught: Any, folder: Path, chosen: dict[str, dict[str, Any]]) -> Path:
    save_policy(taught[2], folder / "start")
    content = json.loads(taught[0].model_dump_json())
    content["rollout"] |= {"questions": 5, "group_size": 3}
    content["optimizer"] |= {"tokens_per_batch": 200, "learning_rate": 1e-4}
    content["data"] |= {"train": 64, "dev": 16, "test": 4}
    arms = {
        name: {
            **content,
            **{part: ({} if part == "reward" else content[part]) | values for part, values in changes.items()},
        }
        for name, changes in chosen.items()
    }
    if "tied_fsdp" in arms:
        arms["tied_fsdp"]["policy"] = {"kind": "pretrained", "name": str(folder / "tied")}
    if "lora_fsdp" in arms:
        arms["lora_fsdp"]["policy"] = {"kind": "pretrained", "name": str(folder / "start"), "lora": {"rank": 4}}
    (folder / "arms.json").write_text(json.dumps(arms))
    script = [str(Path(__file__).with_name("rank_script.py")), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for count, more in ((1, []), (2, []), (1, ["again"])):
        running = []
        for number in range(count):
            own = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            meeting = {**own, "IGPO_MEETING_FILE": str(folder / "store"), "GLOO_SOCKET_IFNAME": "lo"}
            command = [sys.executable, *script, *more]
            told = {**environment, **(meeting if count > 1 else {})}
            running.append(
                subprocess.Popen(command, env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            )
        for process in running:
            written, _ = process.communicate(timeout=HANGS)
            assert process.returncode == 0, written[-3000:]
    return folder


@pytest.mark.parametrize("arm", ARMS)
def test_two_processes_make_the_update_of_one(made: Path, arm: str) -> None:
    one, two = (json.loads((made / f"{arm}-{count}.json").read_text()) for count in (1, 2))
    assert two["tokens"] == one["tokens"] and two["groups"] == one["groups"] and two["dev"] == one["dev"]
    assert two["patience"] == [6 * 3600]  # torch's own is 30 minutes, NCCL's 10
    for own, other in zip(one["advantages"][0], two["advantages"][0], strict=True):
        # beliefs are rounded by their batch: 1e-6 in z-scores of small spread
        assert other == pytest.approx(own, abs=0 if arm.startswith("outcome") else 1e-4)
    assert two["metrics"][1] == pytest.approx(one["metrics"][1], abs=2e-5, rel=2e-4)
    assert one["metrics"][1]["train/grad_norm"] > 1e-3
    alone, together = (load_file(made / f"{arm}-{count}.safetensors") for count in (1, 2))
    # clipped to a norm of 1; what beliefs are rounded by passes into the gradient
    allowed = 1e-6 if arm.startswith("outcome") else 5e-6
    assert max(float((alone[name] - together[name]).abs().max()) for name in alone) < allowed
    assert max(float(gradient.abs().max()) for gradient in alone.values()) > 1e-2
    weights = "adapter_model.safetensors" if arm == "lora_fsdp" else "model.safetensors"
    alone, together = (load_file(made / f"{arm}-{count}" / weights) for count in (1, 2))
    apart = torch.cat([(alone[name] - together[name]).abs().flatten() for name in alone])
    # AdamW's first steps have the size of the learning rate however small a gradient is: where that is rounding alone (one
    # weight of 25,184 seen, on one kind of processor), so is the direction of two steps of 1e-4
    assert float(torch.quantile(apart, 0.999)) < 1e-6 and int((apart > 1e-5).sum()) <= 5
    if arm != "lora_fsdp":
        start = load_file(made / ("tied" if arm == "tied_fsdp" else "start") / "model.safetensors")
        assert ("lm_head.weight" in start) is (arm != "tied_fsdp")
        assert max(float((alone[name] - start[name]).abs().max()) for name in start) > 1e-4


@pytest.mark.parametrize("arm", ARMS)
def test_another_number_of_processes_goes_on_from_a_checkpoint(made: Path, arm: str) -> None:
    """The third step, moments and older weights included, as the process makes it that never stopped."""
    assert (made / f"{arm}-2" / "shards").is_dir() is arm.endswith("fsdp")
    stayed = json.loads((made / f"{arm}-1.json").read_text())["metrics"][2]
    for name in ("third", "third-again"):  # one process's checkpoint by two, and two's by one
        assert json.loads((made / f"{arm}-{name}.json").read_text()) == pytest.approx(stayed, abs=5e-5, rel=5e-4)


def test_a_world_of_another_size_than_asked_for_is_refused(taught: Any) -> None:
    content = json.loads(taught[0].model_dump_json())
    content["training"] |= {"processes": 2}
    with pytest.raises(ConfigError, match=r"processes=2 on training\.nodes=1 makes 2, and 1 found one another"):
        Trainer(ExperimentConfig.model_validate(content), taught[1], taught[2])


def test_shares_lose_nothing_and_keep_the_order() -> None:
    items = list("abcdefg")
    shares = [Ranks(number, 3).share(items) for number in range(3)]
    assert [[item for _, item in share] for share in shares] == [list("adg"), list("be"), list("cf")]
    assert sorted(pair for share in shares for pair in share) == list(enumerate(items))
    assert (
        Ranks().all_gather(Ranks().share(items)) == items and Ranks().all_values(3) == [3] and Ranks().broadcast(3) == 3
    )
    assert Ranks(4, 5).share(items[:2]) == []
