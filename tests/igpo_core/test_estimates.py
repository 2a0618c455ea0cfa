"""Counted needs against what torch itself counts: parameters, operations, bytes that are kept for the way back."""

import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen2Config

from benchmarks.presets import MODELS
from igpo_core.config import ExperimentConfig, Lora
from igpo_core.estimates import GIB, Shape, memory, wants_checkpointing
from igpo_core.rollout.cache import roomy_cache
from igpo_core.rollout.slots import SlotModel
from igpo_core.step_costs import Work, work
from igpo_core.weights import add_lora, trained
from tasks.specification.presets import load_specification

HALF, SEVEN = MODELS["qwen-0-5b"][0], MODELS["qwen-7b"][0]  # 0.49 and 7.62 billion parameters by their model cards
TINY = Qwen2Config(
    hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=500, tie_word_embeddings=False,
)  # fmt: skip


def configure(policy: Any = None, **parts: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "data": {"kind": "files", "questions": [{"path": "q"}], "corpus": ["c"]},
            "policy": {"kind": "pretrained", "name": "m", **(policy or {})},
            **parts,
        }
    )


@pytest.mark.parametrize(("config", "billions"), [(HALF, 0.494), (SEVEN, 7.616)])
def test_parameters_of_qwen(config: Qwen2Config, billions: float) -> None:
    with torch.device("meta"):
        counted = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    assert counted / 1e9 == pytest.approx(billions, abs=0.001)
    assert Shape.of(config).parameters == pytest.approx(counted, rel=1e-3)


def test_parameters_of_an_adapter() -> None:
    model = AutoModelForCausalLM.from_config(TINY)
    add_lora(model, Lora(rank=8), 0)
    assert Shape.of(TINY).adapter(Lora(rank=8)) == sum(parameter.numel() for parameter in trained(model))


def test_operations_of_a_forward_pass_and_its_way_back() -> None:
    model, tokens = AutoModelForCausalLM.from_config(TINY, attn_implementation="eager"), 100
    with FlopCounterMode(display=False) as counter:
        loss = model(torch.randint(500, (1, tokens))).logits.sum()
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    config = configure(rollout={"questions": 1, "group_size": 2}, reward={"reward": "outcome_only"})
    counted = work(Shape.of(TINY), config, tokens=tokens, sampled=tokens, probes=0)
    # eager attention computes both triangles, of which the estimate counts one
    attention = 2 * tokens * tokens * 4 * 16 * 3
    # transformers 5.17 rotates by a product, 1,600 operations here
    assert counted.rollout / 2 == pytest.approx(forward - attention, rel=1e-4)
    assert counted.update / 2 == pytest.approx(3 * (forward - attention), rel=1e-4)
    assert counter.get_total_flops() == pytest.approx(2 * forward, rel=0.02)


# Qwen2.5-7B's proportions: five in the MLP, seven heads to one of keys and values
SMALL = Qwen2Config(
    hidden_size=224, intermediate_size=1184, num_hidden_layers=4, num_attention_heads=7, num_key_value_heads=1,
    vocab_size=500, tie_word_embeddings=False,
)  # fmt: skip


def small_model(dtype: str, lora: Any) -> Any:
    """As load_policy has it: what is trained is float32, what LoRA leaves alone in the policy's dtype."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SMALL, attn_implementation="sdpa")
    if lora:
        model = model.to(getattr(torch, dtype))
        add_lora(model, Lora.model_validate(lora), 0)
    return model.eval()


def precision(dtype: str) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else nullcontext()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [None, {"rank": 8}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_that_are_kept_for_the_way_back(dtype: str, lora: Any, checkpointing: bool) -> None:
    model = small_model(dtype, lora).train(checkpointing)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    fixed = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    matrices = {2 * parameter.numel() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    casts: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed and tensor.is_floating_point():
            weight = dtype == "bfloat16" and tensor.dim() == 2 and storage.nbytes() in matrices
            (casts if weight else kept)[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = 1024
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), precision(dtype):
        hidden = model.get_decoder()(input_ids=torch.randint(500, (1, tokens)), use_cache=False).last_hidden_state
    assert hidden.shape[1] == tokens

    def counted(checkpointing: bool, layers: int) -> int:
        shape = dataclasses.replace(Shape.of(SMALL), layers=layers)
        optimizer = {"tokens_per_batch": tokens, "gradient_checkpointing": checkpointing}
        policy = {"dtype": dtype, "lora": lora}
        return memory(shape, configure(policy, optimizer=optimizer, rollout={"max_tokens": 64})).activations

    # what a further block adds, and the last norm: input and, where its weight is trained, output, float32. Not among what is
    # kept so far: one block computed again, the head, the work inside a block
    blocks = (counted(checkpointing, 5) - counted(checkpointing, 1)) // 4 * SMALL.num_hidden_layers
    last = tokens * 4 * SMALL.hidden_size * (1 if lora else 2)
    assert 0.97 < (blocks + last) / sum(kept.values()) < 1.03
    assert sum(kept.values()) < counted(checkpointing, SMALL.num_hidden_layers)
    policy = {"dtype": dtype, "lora": lora}
    optimizer = {"gradient_checkpointing": checkpointing}
    assert sum(casts.values()) <= memory(Shape.of(SMALL), configure(policy, optimizer=optimizer)).unsharded
    assert bool(casts) is (dtype == "bfloat16" and not checkpointing)


@pytest.mark.parametrize("lora", [None, {"rank": 8}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_of_a_rollouts_cache(dtype: str, lora: Any) -> None:
    model, cache, rows = small_model(dtype, lora), roomy_cache(SMALL), 3
    with torch.no_grad(), precision(dtype):
        model.get_decoder()(input_ids=torch.randint(500, (rows, 256)), past_key_values=cache, use_cache=True)
    held = sum(tensor.nbytes for layer in cache.layers for tensor in layer.room)
    rollout = {"questions": 1, "group_size": rows, "max_tokens": 256}
    config = configure(
        {"dtype": dtype, "lora": lora}, rollout=rollout, evaluation={"dev_questions": 1, "test_questions": 1}
    )
    assert memory(Shape.of(SMALL), config).cache == held


def test_a_pass_over_a_prompt_stays_within_its_estimate() -> None:
    """The largest sum of what is alive at once, as torch's allocator on the CPU reports it, in a prefill under a mask."""
    rows, columns = 4, 256
    model, cache = small_model("bfloat16", None), roomy_cache(SMALL)
    mask = torch.ones(rows, 1, columns, columns, dtype=torch.bool).tril()
    tokens = torch.randint(500, (rows, columns))
    with (
        torch.no_grad(),
        precision("bfloat16"),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
    ):
        model.get_decoder()(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True)
    alive = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    rollout = {"questions": 1, "group_size": rows, "max_tokens": columns}
    held = memory(
        Shape.of(SMALL),
        configure(
            {"dtype": "bfloat16"}, rollout=rollout, evaluation={"dev_questions": 1, "test_questions": 1},
            optimizer={"tokens_per_batch": 1},
        ),
    )  # fmt: skip
    assert 0.5 < most / held.rollout < 1


def test_the_larger_of_rollout_and_update_counts() -> None:
    parts = {"policy": {"dtype": "bfloat16"}, "training": {"processes": 8, "sharding": "fsdp"}}
    held = memory(Shape.of(SEVEN), configure(**parts))
    always = held.weights + held.optimizer + held.copies + held.margin
    assert held.total == always + max(held.rollout, held.update)
    # whole for a rollout: the other seven processes' float32 weights, and autocast's casts of all
    assert held.gathered / 7.616e9 == pytest.approx(4 * 7 / 8 + 2, rel=0.01)
    gpus = {"device": "cuda", "processes": 8}
    several = memory(Shape.of(SEVEN), configure(policy={"dtype": "bfloat16"}, training=gpus))
    alone = memory(Shape.of(SEVEN), configure({"dtype": "bfloat16"}, training={"device": "cuda"}))
    assert (several.unsharded - alone.unsharded) / 7.616e9 == pytest.approx(4, rel=0.01)  # DDP's buckets
    assert several.margin > alone.margin > 0
    assert memory(Shape.of(SEVEN), configure({"dtype": "bfloat16"})).margin == 0  # a processor has no context


def test_packed_updates_keep_less_and_only_where_they_are_made() -> None:
    """A compiled layer keeps, in bytes a token of Qwen2.5-7B (width 3584, 28 heads and 4 of keys of 128, MLP 18944): the residual
    twice, 2 x 4 x 3584; queries, keys, values, attention's result, 2 x 128 x (28 + 4 + 4 + 28) and its sums, 4 x 28; the MLP's
    two halves, 2 x 2 x 18944. Where sequences are padded, FSDP spreads weights, or a CPU computes, layers are not compiled."""
    tokens, shape = 4096, Shape.of(SEVEN)

    def kept(**changes: Any) -> int:
        training = {"device": "cuda", **changes.pop("training", {})}
        parts = {"policy": {"dtype": "bfloat16"}, "optimizer": {"tokens_per_batch": tokens}, **changes}
        config = configure(training=training, **parts)
        less = dataclasses.replace(shape, layers=shape.layers - 1)
        return (memory(shape, config).activations - memory(less, config).activations) // tokens

    compiled = 8 * 3584 + 256 * 64 + 112 + 4 * 18944
    assert kept() == compiled and kept(training={"processes": 2}) == compiled
    for padded in ({"training": {"device": "cpu"}}, {"training": {"processes": 2, "sharding": "fsdp"}}):
        assert kept(**padded) > 1.5 * compiled
    shape = dataclasses.replace(shape, packable=False)
    assert kept() > 1.5 * compiled


def test_a_window_of_attention_cannot_be_packed() -> None:
    assert Shape.of(SMALL).packable
    windowed = Qwen2Config(
        **{**SMALL.to_diff_dict(), "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}
    )
    assert not Shape.of(windowed).packable


@pytest.mark.parametrize("preset", MODELS)
def test_presets_fit_what_they_are_for(preset: str) -> None:
    """GPUs of 24 GB have 22 GiB and more, those of 80 GB 79."""
    specification = load_specification(preset)
    for arm in specification.arms:
        experiment = specification.experiment(arm, 0, specification.cells[0])
        assert memory(Shape.of(MODELS[preset][0]), experiment).total < (79 if "7b" in preset else 22) * GIB


def test_memory_of_presets_in_round_numbers() -> None:
    """Qwen2.5-7B, all weights in float32 with gradient and two moments: 16 bytes a parameter, 2 more while bfloat16 is used."""
    full = memory(Shape.of(SEVEN), configure({"dtype": "bfloat16"}))
    assert (full.weights + full.optimizer) / 7.616e9 == pytest.approx(16, rel=0.01)
    assert full.gathered / 7.616e9 == pytest.approx(2, rel=0.01)
    assert full.copies == 0 and full.total > 127 * GIB
    lora = memory(
        Shape.of(SEVEN),
        configure(
            {"dtype": "bfloat16", "lora": {"rank": 16}}, optimizer={"kl_coefficient": 0.01}, reward={"scorer": "frozen"}
        ),
    )
    assert lora.weights / 7.616e9 == pytest.approx(2, rel=0.02) and lora.optimizer < 0.5 * GIB
    assert lora.copies == 2 * lora.optimizer // 3


def test_rollouts_on_servers_leave_this_accelerator() -> None:
    engine = {"kind": "vllm", "urls": ["http://127.0.0.1:8000"], "weights": "weights"}
    shape, parts = Shape.of(TINY), {"reward": {"gain": "prob_diff"}, "optimizer": {"tokens_per_batch": 4096}}
    here, away = configure(**parts), configure(**parts, rollout={"engine": engine})
    assert memory(shape, here).cache > 0 and memory(shape, away).cache == 0
    sizes = {"tokens": 50, "sampled": 20, "probes": 30}
    ours, theirs = work(shape, here, **sizes), work(shape, away, **sizes)
    assert theirs.decoding_bytes == 0 and theirs.rollout == ours.rollout and theirs.update == ours.update
    # beliefs cannot ride in a server's passes: each history is read once more, without the vocabulary
    rollouts = here.rollout.questions * here.rollout.group_size
    attention = 2 * 50 * 4 * 16 * 3
    assert theirs.beliefs - ours.beliefs == rollouts * 50 * (2 * shape.block_weights + attention)


def test_checkpointing_is_chosen_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto: where the estimate without it exceeds the share of the card that the run was given."""
    model = SimpleNamespace(config=SMALL, device=torch.device("cuda"))
    needed = memory(Shape.of(SMALL), configure()).total
    card = SimpleNamespace(total_memory=2 * needed)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)

    def wanted(setting: bool | str, share: float, device: str = "cuda") -> bool:
        model.device = torch.device(device)
        config = configure(optimizer={"gradient_checkpointing": setting}, training={"memory_share": share})
        return wants_checkpointing(config, model)

    assert wanted("auto", 0.51) is False and wanted("auto", 0.49) is True
    assert wanted("auto", 0.49, "cpu") is False
    assert wanted(True, 1.0) is True and wanted(False, 0.01) is False


def test_a_warm_start_does_not_decide_checkpointing_of_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its activations in any case: Qwen2.5-0.5B on a card of 48 GiB, which holds the steps and not the warm start."""
    card = SimpleNamespace(total_memory=48 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    config = configure(
        {"dtype": "bfloat16"},
        rollout={"engine": {"kind": "continuous"}, "max_tokens": 2048, "batch_size": 128},
        optimizer={"tokens_per_batch": 32_768, "gradient_checkpointing": "auto"},
        training={"device": "cuda"},
        warm_start={"stages": [{"steps": 1, "learning_rate": 1e-3, "demonstrations": {"kind": "files"}}]},
    )
    needed = memory(Shape.of(HALF), config)
    assert needed.steps < 48 * GIB < needed.total
    assert wants_checkpointing(config, SimpleNamespace(config=HALF, device=torch.device("cuda"))) is False


def test_the_continuous_engine_keeps_its_cache_and_its_casts_in_the_update() -> None:
    """Against the bytes of an engine that is made: eight histories of 512 tokens and a probe."""
    model = AutoModelForCausalLM.from_config(TINY, attn_implementation="sdpa")
    engine = SlotModel(SimpleNamespace(model=model, half=True, precision=None, end_ids=[0]), 8, 512 + 128, 64)  # type: ignore[arg-type]
    tensors = [tensor for layer in engine.caches for tensor in layer]
    tensors += [
        other for own, other in zip(model.parameters(), engine.twin.parameters(), strict=True) if own is not other
    ]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    rollout = {"batch_size": 8, "max_tokens": 512}

    def update(kind: str) -> int:
        found = configure({"dtype": "bfloat16"}, rollout=rollout | {"engine": {"kind": kind}})
        return memory(Shape.of(TINY), found).update

    kept = update("continuous") - update("transformers")
    graph = 8 * 44 * 500  # of a decoding step's logits
    assert held <= kept - graph <= 1.1 * held


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_batch_of_a_warm_start_is_within_a_quarter_of_its_estimate(dtype: str) -> None:
    """Forward and back, as torch's allocator on the CPU reports it: 4 x 256 tokens, of which 64 of 256 are taught. Gradients
    of weights come as activations go."""
    from igpo_core.warmstart import Example, supervised_loss

    config = Qwen2Config(**{**SMALL.to_diff_dict(), "vocab_size": 20_000})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    policy: Any = SimpleNamespace(model=model, protocol=SimpleNamespace(pad_id=0))
    ids = torch.randint(500, (4, 256)).tolist()
    examples = [Example(tuple(row), tuple(float(place % 4 == 1) for place in range(256)), {}) for row in ids]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        with precision(dtype):
            loss = supervised_loss(policy, examples)
        torch.autograd.backward(loss)
    alive = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    rollout = {"max_turns": 4, "max_new_tokens": 16, "max_tokens": 256}
    stage = {"steps": 1, "batch_size": 4, "learning_rate": 1e-3, "demonstrations": {"kind": "files"}}
    held = memory(
        Shape.of(config),
        configure(
            {"dtype": dtype}, rollout=rollout, optimizer={"tokens_per_batch": 1024}, warm_start={"stages": [stage]}
        ),
    )
    assert 0.75 < most / held.taught < 1.25


@pytest.mark.parametrize(
    ("slowest", "seconds"), [("operations", 1 + 20 + 2), ("bytes", 1 + 30 + 2), ("waits", 1 + 40 + 2)]
)
def test_a_decoding_step_takes_what_holds_it_up_most(slowest: str, seconds: float) -> None:
    """By hand, at 100 operations and bytes a second: prefill and beliefs 52 / 100 / .52 = 1 s, turns 2 s; of decoding the longest
    of 1040 / 100 / .52 = 20 s or 10, 1500 / 100 / .5 = 30 s or 10, 40 s or 5. The update 104 / 100 / .52 + 300 / 100 = 5 s."""
    found = Work(
        prefill=40.0, beliefs=12.0, update=104.0, update_bytes=300.0, turns_wait=2.0,
        decoding=1040.0 if slowest == "operations" else 520.0,
        decoding_bytes=1500.0 if slowest == "bytes" else 500.0,
        decoding_waits=40.0 if slowest == "waits" else 5.0,
    )  # fmt: skip
    assert found.rollout_seconds(100.0, 100.0) == pytest.approx(seconds)
    assert found.seconds(100.0, 100.0) == pytest.approx(seconds + 5)
