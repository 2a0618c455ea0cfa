"""Pretrained policies: LoRA adapters, their checkpoints and merge, copies that stand in, bfloat16, gradient checkpointing."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from igpo_core.checkpoints import load_weights
from igpo_core.config import ExperimentConfig, Lora
from igpo_core.errors import CheckpointError, ConfigError
from igpo_core.evaluation import evaluate
from igpo_core.policies import Policy, build_policy, export_policy, load_policy, save_policy
from igpo_core.training import Trainer
from igpo_core.weights import Snapshot, add_lora, trained


@pytest.fixture(scope="module")
def base(taught: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_policy(taught[2], folder)
    return folder


def configure(taught: Any, base: Path, policy: Any = None, **parts: Any) -> ExperimentConfig:
    content = taught[0].model_dump()
    content["policy"] = {"kind": "pretrained", "name": str(base), "lora": {"rank": 4, "alpha": 8}, **(policy or {})}
    return ExperimentConfig.model_validate({**content, **{k: {**content[k], **v} for k, v in parts.items()}})


def logits(policy: Policy) -> torch.Tensor:
    with torch.no_grad(), policy.precision():
        found: torch.Tensor = policy.model(torch.tensor([[2, 9, 10, 11, 12]])).logits
    return found.float()


def weights(policy: Policy) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trained(policy.model)]


def test_a_fresh_adapter_changes_nothing_and_is_all_that_is_trained(taught: Any, base: Path) -> None:
    config = configure(taught, base)
    policy = build_policy(config, taught[1])
    assert torch.equal(logits(policy), logits(taught[2]))
    names = [name for name, parameter in policy.model.named_parameters() if parameter.requires_grad]
    assert names and all("lora_" in name for name in names) and not any("lm_head" in name for name in names)
    # two matrices of rank 4 for each linear layer: 4 x (inputs + outputs)
    shape = taught[2].model.config
    width, inner, heads = shape.hidden_size, shape.intermediate_size, shape.num_attention_heads
    own = width // heads * shape.num_key_value_heads
    layer = 4 * (2 * (width + width) + 2 * (width + own) + 3 * (width + inner))
    assert sum(parameter.numel() for parameter in trained(policy.model)) == layer * shape.num_hidden_layers
    again, other = build_policy(config, taught[1]), build_policy(config.model_copy(update={"seed": 1}), taught[1])
    assert all(map(torch.equal, weights(policy), weights(again)))
    assert not all(map(torch.equal, weights(policy), weights(other)))


def test_a_step_moves_the_adapter_alone_and_a_resumed_run_is_the_same_run(
    taught: Any, base: Path, tmp_path: Path
) -> None:
    config = configure(taught, base, reward={"gain": "prob_diff", "scorer": {"kind": "lagged", "steps": 2}})
    whole = Trainer(config, taught[1], build_policy(config, taught[1]))
    fixed = [p.detach().clone() for p in whole.policy.model.parameters() if not p.requires_grad]
    before = weights(whole.policy)
    for _ in range(3):
        whole.run_step()
    assert all(map(torch.equal, fixed, (p for p in whole.policy.model.parameters() if not p.requires_grad)))
    assert not all(map(torch.equal, before, weights(whole.policy)))
    whole.save(tmp_path / "step-3")
    files = {path.name for path in (tmp_path / "step-3").iterdir()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    result = whole.run_step()

    resumed = Trainer(config, taught[1], build_policy(config, taught[1]))
    resumed.restore(tmp_path / "step-3")
    again = resumed.run_step()
    assert [a.trajectory.token_ids for a in again.scored] == [b.trajectory.token_ids for b in result.scored]
    assert again.metrics["train/loss"] == result.metrics["train/loss"]
    assert all(map(torch.equal, weights(resumed.policy), weights(whole.policy)))

    loaded = load_policy(tmp_path / "step-3", config)  # what evaluates a checkpoint
    restored = build_policy(config, taught[1])
    load_weights(tmp_path / "step-3", restored.model)
    assert torch.equal(logits(loaded), logits(restored))


def test_a_peft_that_transformers_does_not_take_is_told_with_both_versions(
    taught: Any, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "99.0")
    with pytest.raises(
        ConfigError, match=r"policy\.lora: transformers [\d.]+ wants peft 99\.0 or newer, and peft [\d.]+ is"
    ):
        build_policy(configure(taught, base), taught[1])


def test_a_checkpoint_is_loaded_with_the_model_it_was_trained_on(
    taught: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its pinned commit, whatever the experiment names that evaluates it; transformers would take the newest."""
    commit = "7ae557604adf67be50417f59c2c2f167def9a775"
    save_policy(build_policy(configure(taught, base, {"revision": commit}), taught[1]), tmp_path / "adapter")
    asked: list[Any] = []
    real = AutoConfig.from_pretrained

    def read(name: Any, **where: Any) -> Any:
        asked.append((str(name), where.get("revision")))
        return real(name, **where)

    monkeypatch.setattr(AutoConfig, "from_pretrained", read)
    load_policy(tmp_path / "adapter", configure(taught, base, {"name": "other/model", "revision": "f" * 40}))
    assert asked[-1] == (str(base), commit)
    load_policy(str(base), configure(taught, base, {"lora": None, "revision": commit}))
    assert asked[-1] == (str(base), commit)
    load_policy(str(base), configure(taught, base, {"name": "other/model", "lora": None, "revision": commit}))
    assert asked[-1] == (str(base), None)  # another model's commits are not its


def test_an_export_is_a_whole_model(taught: Any, base: Path, tmp_path: Path) -> None:
    config = configure(taught, base, optimizer={"learning_rate": 1e-2})
    trainer = Trainer(config, taught[1], build_policy(config, taught[1]))
    trainer.run_step()
    export_policy(trainer.policy, tmp_path / "whole")
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {f.name for f in (tmp_path / "whole").iterdir()}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert not any("lora" in name for name, _ in model.named_parameters())
    found = logits(Policy(model.eval(), trainer.policy.protocol, 512))
    assert torch.allclose(found, logits(trainer.policy), atol=1e-4)
    assert not torch.allclose(found, logits(taught[2]), atol=1e-2)  # the adapter is in it
    assert any("lora" in name for name, _ in trainer.policy.model.named_parameters())  # and still in the policy


def test_checkpoints_with_and_without_adapter_are_not_mixed_up(taught: Any, base: Path, tmp_path: Path) -> None:
    config = configure(taught, base)
    policy = build_policy(config, taught[1])
    with pytest.raises(CheckpointError, match="holds a whole model, and this policy is trained with one"):
        load_weights(base, policy.model)
    save_policy(policy, tmp_path)
    with pytest.raises(CheckpointError, match="holds an adapter, and this policy is trained without one"):
        load_weights(tmp_path, copy.deepcopy(taught[2].model))
    other = build_policy(configure(taught, base, {"lora": {"rank": 2}}), taught[1])
    with pytest.raises(CheckpointError, match=r"another adapter: .*\(4, .*\(2, "):
        load_weights(tmp_path, other.model)
    with pytest.raises(ConfigError, match=r"targets=\('nowhere',\) fits no layer"):
        build_policy(configure(taught, base, {"lora": {"targets": ["nowhere"]}}), taught[1])


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_kept_weights_stand_in_and_go_again(taught: Any, base: Path, lora: Any) -> None:
    policy = build_policy(configure(taught, base, {"lora": lora}), taught[1])
    snapshot, start = Snapshot(policy.model), logits(policy)
    own = trained(policy.model)
    with torch.no_grad():
        for parameter in own:
            parameter += 0.1
    moved, places = logits(policy), [parameter.data_ptr() for parameter in own]
    with snapshot.swapped_in():
        assert torch.equal(logits(policy), start)
    assert torch.equal(logits(policy), moved) and [parameter.data_ptr() for parameter in own] == places
    snapshot.refresh()
    with snapshot.swapped_in():
        assert torch.equal(logits(policy), moved)


def test_kl_is_to_the_start_of_the_run(taught: Any, base: Path) -> None:
    config = configure(taught, base, optimizer={"kl_coefficient": 0.1, "learning_rate": 1e-2})
    trainer = Trainer(config, taught[1], build_policy(config, taught[1]))
    first, second = trainer.run_step().metrics, trainer.run_step().metrics
    assert first["train/kl"] == pytest.approx(0, abs=1e-9) and second["train/kl"] > 1e-6


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_bfloat16_trains_float32_weights(taught: Any, base: Path, lora: Any) -> None:
    # far narrower than bfloat16 rounds: if what was sampled were the ratio's base, tokens would be clipped
    clip = {"clip_low": 1e-6, "clip_high": 1e-6, "updates_per_step": 1}
    config = configure(taught, base, {"lora": lora, "dtype": "bfloat16"}, reward={"gain": "prob_diff"})
    config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update=clip)})
    policy = build_policy(config, taught[1])
    assert {p.dtype for p in trained(policy.model)} == {torch.float32}
    fixed = {p.dtype for p in policy.model.parameters() if not p.requires_grad}
    assert fixed == ({torch.bfloat16} if lora else set())
    before = weights(policy)
    trainer = Trainer(config, taught[1], policy)
    metrics = trainer.run_step().metrics
    assert 1e-6 < metrics["train/ratio_error"] < 0.5  # the rollout's sums were rounded in another order
    assert metrics["train/clip_share"] == 0  # and that loses no token
    assert not all(map(torch.equal, before, weights(policy)))
    exact = logits(build_policy(configure(taught, base), taught[1]))
    assert 0 < (logits(build_policy(config, taught[1])) - exact).abs().max() < 0.5


def test_gradient_checkpointing_gives_the_same_update(taught: Any, base: Path) -> None:
    found = []
    for checkpointing in (False, True):
        config = configure(
            taught, base, reward={"gain": "prob_diff"}, optimizer={"gradient_checkpointing": checkpointing}
        )
        trainer = Trainer(config, taught[1], build_policy(config, taught[1]))
        metrics = trainer.run_step().metrics
        found.append((metrics["train/grad_norm"], weights(trainer.policy)))
        # transformers' checkpointing layers drop the cache in training mode: rollouts, beliefs, evaluation go on from one
        assert not trainer.policy.model.training
        trainer.run_step()
        evaluate(trainer.policy, taught[1], config, split="dev", limit=4, decoding="greedy", step=2)
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found[0][1], found[1][1], strict=True))
    noisy = build_policy(configure(taught, base, optimizer={"gradient_checkpointing": True}), taught[1])
    noisy.model.config.attention_dropout = 0.1
    with pytest.raises(ConfigError, match="dropout"):
        Trainer(configure(taught, base, optimizer={"gradient_checkpointing": True}), taught[1], noisy)


def test_checkpointing_cuts_no_gradient_off_behind_frozen_embeddings(chat_policy: Any) -> None:
    """ "None of the inputs have requires_grad=True": with LoRA the embeddings give no gradient to start from."""
    norms = []
    for checkpointing in (False, True):
        model = copy.deepcopy(chat_policy.model)
        add_lora(model, Lora(rank=4), 0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(1))
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()
        ids = torch.tensor([chat_policy.protocol.prompt("Where was Marie Curie born?")])
        model(input_ids=ids, labels=ids).loss.backward()
        assert all(parameter.grad is not None for parameter in trained(model))
        norms.append(float(torch.cat([parameter.grad.flatten() for parameter in trained(model)]).norm()))
    assert norms[0] > 0 and norms[1] == pytest.approx(norms[0], rel=1e-5)
