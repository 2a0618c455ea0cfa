"""The continuous engine where it can be tested without a GPU: the same code, eagerly, against the exact engine and plain passes.

Not tested here: CUDA graphs, the flash kernel, compiled layers (benchmarks/gpu.py runs them on a GPU).
"""

import copy
import threading
import time
import weakref
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaAttention

from igpo_core.attention import PACKED_TYPES, Packing, packing_layers, unpackable
from igpo_core.batching import packed_batches
from igpo_core.config import ExperimentConfig, reward_of
from igpo_core.environments.base import Observation
from igpo_core.errors import ConfigError, IgpoError
from igpo_core.rewards.information_gain import answer_log_likelihoods
from igpo_core.rewards.scoring import answer_probes
from igpo_core.rollout import continuous_engine
from igpo_core.rollout.continuous_engine import ContinuousRollout, _Run
from igpo_core.rollout.mismatch import Drift
from igpo_core.rollout.rows import RolloutTimes, begin
from igpo_core.rollout.slots import Block, Sampling, SlotModel, choose, join_projections
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.sampled import packed_logprobs, packs, sampled_logprobs
from igpo_core.training import Trainer
from igpo_core.trajectory import Final, Question, Trajectory, Turn
from tests.waiting import HANGS
from tests.worlds import WithTools

KEY = (5, "rollout", 2)


class TorchFunctionCounts(torch.overrides.TorchFunctionMode):
    """Counts products with a matrix of weights."""

    linear = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.linear += function is torch.nn.functional.linear
        return function(*args, **(kwargs or {}))


def both(setup: Any, slots: int, **arguments: Any) -> tuple[list[Trajectory], list[Trajectory]]:
    """Of the exact engine, and of the continuous one with so many slots."""
    config, environment, policy = setup
    questions = environment.tasks("train")[:4]
    exact = rollout(policy, environment, questions, config.rollout, members=3, key=KEY, **arguments)
    settings = config.rollout.model_copy(update={"batch_size": slots})
    engine = ContinuousRollout(policy)
    return exact, engine(policy, environment, questions, settings, members=3, key=KEY, **arguments)


@pytest.mark.parametrize("slots", [256, 5])  # 5: episodes wait for slots, and groups are torn apart
@pytest.mark.parametrize("decoding", ["sampled", "greedy"])
def test_it_samples_what_the_exact_engine_samples(taught: Any, slots: int, decoding: str) -> None:
    exact, ours = both(taught, slots, decoding=decoding)
    assert decoding == "greedy" or len({item.status for item in exact}) > 1
    assert max(len(item.turns) for item in exact) > 1
    for one, other in zip(exact, ours, strict=True):
        assert (one.token_ids, one.status, one.observations) == (other.token_ids, other.status, other.observations)
        for a, b in zip(one.turns, other.turns, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_log_probs_equal_a_plain_forward_pass(taught: Any) -> None:
    _, ours = both(taught, 5)
    with torch.no_grad():
        again, _ = sampled_logprobs(taught[2].model, ours, taught[2].protocol.pad_id, 1.0)
    kept = torch.tensor([p for item in ours for turn in item.turns for p in turn.logprobs])
    assert (again - kept).abs().max() < 1e-5


@pytest.mark.parametrize("slots", [256, 4])
def test_beliefs_ride_along(taught: Any, slots: int) -> None:
    """Several answers of unequal length to a question: each score as the exact engine reads it."""
    _, environment, policy = taught

    def several(question: Question) -> list[Any]:
        other = environment.tasks("dev")[0].answers[0]
        answers = [question.answers[0], f"{other} {question.answers[0]} {other}", other]
        return [policy.protocol.probe(answer) for answer in answers[: 1 + int(question.id[-1]) % 3]]

    exact, ours = both(taught, slots, probes=several)
    assert {len(item.answer_scores[0]) for item in ours if item.answer_scores} == {1, 2, 3}
    for one, other in zip(exact, ours, strict=True):
        assert one.token_ids == other.token_ids
        assert one.answer_scores is not None and other.answer_scores is not None
        for a, b in zip(one.answer_scores, other.answer_scores, strict=True):
            assert a == pytest.approx(b, abs=1e-5)


class HoldingUp:
    """A search that does not answer for one question before `others` searches for other questions were asked."""

    def __init__(self, environment: Any, slow: str, others: int) -> None:
        self.environment, self.slow, self.others = environment, slow, others
        self.asked, self.freed, self.in_time = 0, threading.Event(), True
        self.lock = threading.Lock()

    def step(self, requests: Any) -> list[Observation]:
        ((episode, _),) = requests
        if episode.question.id == self.slow:
            self.in_time &= self.freed.wait(HANGS)
        else:
            with self.lock:
                self.asked += 1
                if self.asked == self.others:
                    self.freed.set()
        found: list[Observation] = self.environment.step(requests)
        return found


def test_a_slow_search_holds_up_its_own_episode_alone(taught: Any) -> None:
    config, environment, policy = taught
    questions = environment.tasks("train")[:4]
    exact = rollout(policy, environment, questions, config.rollout, members=3, key=KEY)
    slow = next(item.question.id for item in exact if len(item.turns) > 1)
    others = sum(len(item.observations) for item in exact if item.question.id != slow)
    second = max(len(item.observations) for item in exact if item.question.id != slow)
    assert second > 1  # some search of another question can only be asked after an answer
    held = HoldingUp(environment, slow, others)
    times = RolloutTimes()
    ours = ContinuousRollout(policy)(policy, held, questions, config.rollout, members=3, key=KEY, times=times)  # type: ignore[arg-type]
    assert held.in_time
    assert [item.token_ids for item in ours] == [item.token_ids for item in exact]
    assert times.total >= times.tools > 0


def test_a_search_that_fails_ends_the_rollout(taught: Any) -> None:
    class Broken:
        def step(self, requests: Any) -> Any:
            raise ConfigError("no search")

    config, environment, policy = taught
    with pytest.raises(ConfigError, match="no search"):
        ContinuousRollout(policy)(
            policy,
            Broken(),
            environment.tasks("train")[:2],
            config.rollout,
            members=2,
            key=KEY,  # type: ignore[arg-type]
        )


def test_a_search_that_hangs_holds_up_neither_a_failure_nor_the_end(taught: Any) -> None:
    """The interpreter waits at its end for every thread that is no daemon."""
    freed = threading.Event()
    hanging: list[threading.Thread] = []

    class Hanging:
        def step(self, requests: Any) -> Any:
            if requests[0][0].question.id == first:
                hanging.append(threading.current_thread())
                freed.wait(HANGS)
            raise ConfigError("no search")

    config, environment, policy = taught
    questions = environment.tasks("train")[:4]
    exact = rollout(policy, environment, questions, config.rollout, members=3, key=KEY)
    searching = [item.question.id for item in exact if item.observations]
    first = searching[0]
    assert len(set(searching)) > 1  # another one fails
    with pytest.raises(ConfigError, match="no search"):
        ContinuousRollout(policy)(policy, Hanging(), questions, config.rollout, members=3, key=KEY)  # type: ignore[arg-type]
    alive = [thread.is_alive() and thread.daemon for thread in hanging]
    freed.set()
    for thread in hanging:
        thread.join(HANGS)
    assert alive and all(alive)
    assert not any(thread.is_alive() for thread in hanging)


def test_weights_of_now_are_sampled_from(taught: Any) -> None:
    """In bfloat16 the engine keeps casts of matrices: they follow the trainer's tensors, which stay the only float32 ones."""
    config, environment, policy = taught
    half = replace(policy, model=copy.deepcopy(policy.model), half=True)
    questions = environment.tasks("train")[:2]
    engine = ContinuousRollout(half)

    def sample(by: ContinuousRollout) -> list[Any]:
        found = by(half, environment, questions, config.rollout, members=2, key=KEY)
        return [[turn.logprobs for turn in item.turns] for item in found]

    before = sample(engine)
    with torch.no_grad():
        for parameter in half.model.parameters():
            parameter += 0.02 * torch.sin(torch.arange(parameter.numel())).view_as(parameter)
    after = sample(engine)
    assert after != before
    assert after == sample(ContinuousRollout(half))
    assert engine._model is not None
    kept = {id(parameter) for parameter in half.model.parameters()}
    own = [parameter for parameter in engine._model.twin.parameters() if parameter.dtype == torch.float32]
    assert own and all(id(parameter) in kept for parameter in own)


def test_an_engine_serves_its_own_policy(taught: Any) -> None:
    config, environment, policy = taught
    with pytest.raises(ValueError, match="another policy"):
        ContinuousRollout(replace(policy))(policy, environment, [], config.rollout, members=1, key=KEY)


@pytest.mark.parametrize("half", [False, True])
def test_a_cache_goes_with_its_engine_and_before_a_larger_one(
    taught: Any, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    """The policy outlives its engines, and keeps nothing of them. The second call needs more slots."""
    config, environment, policy = taught
    policy, caches, there = replace(policy, half=half), [], []
    real = SlotModel.__init__

    def counted(self: SlotModel, *given: Any) -> None:
        there.append(sum(cache() is not None for cache in caches))
        real(self, *given)
        caches.extend(weakref.ref(tensor) for layer in self.caches for tensor in layer)

    monkeypatch.setattr(SlotModel, "__init__", counted)
    engine, questions = ContinuousRollout(policy), environment.tasks("test")[:2]
    for count in (1, 2):
        engine(policy, environment, questions[:count], config.rollout, members=1, key=KEY)
        for thread in threading.enumerate():
            if thread.name.startswith("tool_"):  # it was told to end, and knows its last call until then
                thread.join(HANGS)
    layers = len(policy.model.get_decoder().layers)
    assert there == [0, 0] and [cache() is not None for cache in caches] == [False] * 2 * layers + [True] * 2 * layers
    del engine
    assert not any(cache() is not None for cache in caches)


def test_slots_of_any_length_and_order(taught: Any) -> None:
    """Blocks of three slots in two passes, hidden states against one plain pass of each history."""
    policy = taught[2]
    model = SlotModel(policy, 4, 16, 3)
    histories = {3: [5, 6, 7, 8, 9], 0: [4], 2: [9, 8, 7]}
    with torch.no_grad():
        model.feed([Block(3, 0, [5, 6, 7]), Block(2, 0, [9, 1, 1])])
        hidden = model.feed([Block(2, 1, [8, 7]), Block(0, 0, [4]), Block(3, 3, [8, 9])])  # 2: what stood there goes
        for slot, rows in ((2, hidden[:2]), (0, hidden[2:3]), (3, hidden[3:])):
            plain = policy.model.get_decoder()(input_ids=torch.tensor([histories[slot]])).last_hidden_state[0]
            assert (plain[-len(rows) :] - rows).abs().max() < 1e-5


@pytest.mark.parametrize("bias", [False, True])
def test_joined_projections_give_what_they_gave_apart_with_the_weights_of_now(bias: bool) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50, attention_bias=bias,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    joined = copy.deepcopy(model)
    names = [name for name, _ in joined.named_parameters() if "q_proj" in name or "up_proj" in name]
    views = {name: dict(joined.named_parameters())[name] for name in names}
    join_projections(joined, set(joined.parameters()))
    ids, products = torch.arange(12)[None], []
    with torch.no_grad():
        for name, view in views.items():  # a later step's weights, written where the twin's casts are written
            own = dict(model.named_parameters())[name]
            own.normal_()
            view.copy_(own)
        for one in (model, joined):
            with TorchFunctionCounts() as seen:
                products.append((one(input_ids=ids).logits, seen.linear))
    # one row of a product is computed as it is in the joined one; the blocks that rows are summed in may differ
    torch.testing.assert_close(products[1][0], products[0][0], rtol=1e-5, atol=1e-6)
    # 2 layers of q, k, v, o, gate, up, down, and the head; joined: qkv, o, gate and up, down
    assert [count for _, count in products] == [2 * 7 + 1, 2 * 4 + 1]


class Asking(torch.nn.Module):
    """A layer that asks for its projections in an order of its own."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (torch.nn.Linear(4, 4, bias=False) for _ in range(3))
        self.order = order

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.stack([getattr(self, f"{name}_proj")(states) for name in self.order])


@pytest.mark.parametrize(("order", "first"), [("qvk", "v_proj"), ("kqv", "k_proj"), ("vqk", "v_proj")])
def test_a_layer_that_asks_in_another_order_is_refused_by_name(order: str, first: str) -> None:
    layer = Asking(order)
    join_projections(layer, set(layer.parameters()))
    told = f"asks for {first} out of turn: .* computes q_proj, k_proj, v_proj as .* rollout.engine.kind=transformers"
    with pytest.raises(RuntimeError, match=told):
        layer(torch.ones(1, 4))


def test_joined_projections_are_one_graph_for_the_compiler() -> None:
    layer = Asking("qkv")
    expected = layer(torch.ones(1, 4))
    join_projections(layer, set(layer.parameters()))
    traced = torch.compile(layer, backend="eager", fullgraph=True)
    for _ in range(2):  # what is kept is empty again
        torch.testing.assert_close(traced(torch.ones(1, 4)), expected)


def test_projections_that_somebody_else_computes_with_stay_apart(taught: Any) -> None:
    model = copy.deepcopy(taught[2].model)
    mine = set(model.parameters()) - {model.get_decoder().layers[0].self_attn.k_proj.weight}
    join_projections(model, mine)
    kinds = [type(layer.self_attn.q_proj) is torch.nn.Linear for layer in model.get_decoder().layers]
    assert kinds == [True] + [False] * (len(kinds) - 1)


def test_choose_takes_the_token_at_the_place() -> None:
    """Cumulative sums by hand: .1, .3, .3, 1 of four tokens; 700 tokens make two blocks."""
    sampling = Sampling(1.0, False, 1)
    logits = torch.tensor([0.1, 0.2, 0.0, 0.7]).log().expand(5, -1)
    token, logprob = choose(logits, torch.tensor([0.0, 0.0999, 0.1001, 0.3001, 1 - 2**-53]).double(), sampling)
    assert token.tolist() == [0, 0, 1, 3, 3]
    assert logprob.exp().tolist() == pytest.approx([0.1, 0.1, 0.2, 0.7, 0.7])
    many = torch.full((3, 700), -30.0)
    many[:, 10], many[:, 600] = 5.0, 5.0  # half each, 1e-15 for the others
    token, _ = choose(many, torch.tensor([0.49, 0.51, 1 - 2**-53]).double(), sampling)
    assert token.tolist()[:2] == [10, 600] and 600 <= token[2] < 700  # never a place behind the vocabulary
    uneven = torch.randn(50, 1300, generator=torch.Generator().manual_seed(0)) * 3
    places = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sums = torch.log_softmax(uneven, -1).double().exp().cumsum(-1)
    expected = torch.searchsorted(sums, places[:, None] * sums[:, -1:], right=True)[:, 0]
    assert choose(uneven, places, sampling)[0].tolist() == expected.tolist()
    assert choose(uneven, places, Sampling(1.0, True, 1))[0].tolist() == uneven.argmax(-1).tolist()


@pytest.mark.parametrize("entropy", [False, True])
def test_packed_and_padded_updates_agree(taught: Any, entropy: bool) -> None:
    policy = taught[2]
    exact, _ = both(taught, 256)
    results = []
    for packed in (False, True):
        policy.model.zero_grad()
        with packing_layers(policy.model) if packed else nullcontext():
            if packed:
                logprobs, entropies = packed_logprobs(policy.model, exact, 1.3, entropy=entropy)
            else:
                logprobs, entropies = sampled_logprobs(
                    policy.model, exact, policy.protocol.pad_id, 1.3, entropy=entropy
                )
            total = logprobs.mean() + (entropies.mean() if entropies is not None else 0.0)
            total.backward()  # type: ignore[no-untyped-call]
        results.append((logprobs.detach(), torch.cat([p.grad.flatten() for p in policy.model.parameters()])))
    policy.model.zero_grad()
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() < 1e-5
    assert policy.model.config._attn_implementation == "sdpa"


def test_a_packed_pass_outside_its_block_is_refused(taught: Any) -> None:
    """SDPA would let every sequence see those before it."""
    exact, _ = both(taught, 256)
    with pytest.raises(RuntimeError, match="outside packing_layers"):
        packed_logprobs(taught[2].model, exact, 1.0)


def gradients(setup: Any, *, packed: bool, **optimizer: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """Of one step's update, and the step's metrics."""
    config, environment, policy = setup
    content = config.model_dump() | {"optimizer": config.optimizer.model_dump() | {"max_grad_norm": 1e9} | optimizer}
    own = replace(policy, model=copy.deepcopy(policy.model))
    trainer = Trainer(ExperimentConfig.model_validate(content), environment, own)
    trainer.learner.packed = trainer.learner.model.packed = packed
    metrics = trainer.run_step().metrics
    return torch.cat([p.grad.flatten() for p in own.model.parameters()]), metrics


@pytest.mark.parametrize("kl", [0.0, 0.1])  # with a reference: a pass without gradient in the same block
def test_a_packed_update_with_checkpointing_has_the_padded_gradients(taught: Any, kl: float) -> None:
    """Layers are computed again on the way back: packed then too."""
    padded, one = gradients(taught, packed=False, gradient_checkpointing=False, kl_coefficient=kl)
    packed, other = gradients(taught, packed=True, gradient_checkpointing=True, kl_coefficient=kl)
    assert padded.abs().max() > 1e-3
    assert (padded - packed).abs().max() < 1e-5 * padded.abs().max() + 1e-6
    assert one["train/padding_share"] > 0 == other["train/padding_share"]


def test_packing_leaves_the_model_as_it_was(taught: Any) -> None:
    model = taught[2].model
    with pytest.raises(RuntimeError, match="inside"), packing_layers(model, [lambda *_, **__: None] * 2):
        assert model.config._attn_implementation == "igpo_packed"
        raise RuntimeError("inside")
    assert model.config._attn_implementation == "sdpa"
    assert all("forward" not in vars(layer) for layer in model.get_decoder().layers)


def test_packing_of_lengths() -> None:
    packing = Packing.of([3, 5, 1], "cpu")
    assert packing.starts.tolist() == [0, 3, 8, 9] and packing.starts.dtype == torch.int32
    assert packing.longest == 8  # a power of two, at least the longest


def test_packed_batches_are_few_and_even() -> None:
    sizes = [4, 4, 4, 4, 4, 2, 2]
    batches = packed_batches(range(7), sizes, 9)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert [sum(sizes[i] for i in batch) for batch in batches] == [8, 8, 8]  # 24 tokens, three batches of at most 9
    assert packed_batches([0, 1], [30, 2], 9) == [[0], [1]]  # one that exceeds the budget stands alone
    assert packed_batches([], [], 9) == []


def test_a_trainer_with_it_makes_the_same_step(taught: Any) -> None:
    config, environment, policy = taught
    found = []
    for kind in ("transformers", "continuous"):
        content = config.model_dump() | {"rollout": config.rollout.model_dump() | {"engine": {"kind": kind}}}
        own = replace(policy, model=copy.deepcopy(policy.model))
        trainer = Trainer(ExperimentConfig.model_validate(content), environment, own)
        found.append([trainer.run_step().metrics for _ in range(2)])
    for exact, ours in zip(*found, strict=True):
        for name in (
            "train/f1",
            "reward/gain_mean",
            "reward/belief_end",
            "train/loss",
            "train/grad_norm",
            "train/entropy",
            "train/clip_share",
        ):
            assert ours[name] == pytest.approx(exact[name], abs=2e-4), name
        assert ours["progress/sampled_tokens"] == exact["progress/sampled_tokens"]
        assert "engine/mismatch" not in exact
        assert 0 <= ours["engine/mismatch"] <= ours["engine/mismatch_max"] < 1e-5


def test_drift_by_hand(taught: Any) -> None:
    """Differences .1, -.3 and .2, in two parts: mean absolute .2, largest .3, KL estimate 0."""
    item = both(taught, 256)[1][0]
    turn = item.turns[0]

    def sampled(*logprobs: float) -> Trajectory:
        end = turn.start + len(logprobs)
        last = Turn(turn.start, end, end, turn.action, logprobs)
        return Trajectory(item.question, item.group, item.token_ids[:end], item.prompt_length, (last,), item.status)

    parts = [
        Drift.of(torch.tensor([-0.9, -2.3]), [sampled(-1.0, -2.0)]),
        Drift.of(torch.tensor([-0.3]), [sampled(-0.5)]),
    ]
    assert Drift.metrics(parts) == pytest.approx(
        {"engine/mismatch": 0.2, "engine/mismatch_max": 0.3, "engine/kl": 0.0}, abs=1e-7
    )
    assert Drift.metrics([]) == {}


def tiny(of: Any, **others: Any) -> Any:
    """A model of two layers."""
    config = of(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=32,
        **others,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


WINDOWS = [
    (MistralConfig, {"sliding_window": 8}),  # names no kinds of layers
    (Qwen2Config, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
]


@pytest.mark.parametrize(("of", "window"), WINDOWS)
def test_sliding_windows_are_refused(taught: Any, of: Any, window: Any) -> None:
    """Before anything is sampled."""
    policy = replace(taught[2], model=tiny(of, **window))
    with pytest.raises(ConfigError, match=r"sliding window of 8 tokens: set rollout\.engine\.kind=transformers"):
        ContinuousRollout(policy)


@pytest.mark.parametrize(("of", "window"), WINDOWS)
def test_updates_are_packed_where_the_model_can_be(taught: Any, of: Any, window: Any) -> None:
    """As if on a GPU: the decision alone."""

    def on(device: str, model: Any, half: bool = True) -> Any:
        shown = SimpleNamespace(config=model.config, device=torch.device(device), get_decoder=model.get_decoder)
        return replace(taught[2], model=shown, half=half)

    without = tiny(of, **window | {"sliding_window": None, "use_sliding_window": False})
    assert packs(on("cuda", without), "none")
    assert not packs(on("cuda", tiny(of, **window)), "none")
    assert not packs(on("cuda", without), "fsdp")
    assert not packs(on("cuda", without, half=False), "none")
    assert not packs(on("cpu", without), "none")


def test_a_window_counts_in_padded_updates_and_not_in_packed_ones(taught: Any) -> None:
    """Why such a model is not packed: its padded pass differs once a history is longer than the window."""
    item = max(both(taught, 256)[0], key=lambda one: len(one.token_ids))
    ids = tuple(token % 32 for token in item.token_ids)
    model = tiny(MistralConfig, sliding_window=8)
    assert len(ids) > 8
    with torch.no_grad(), packing_layers(model):
        packed, _ = packed_logprobs(model, [replace(item, token_ids=ids)], 1.0)
    with torch.no_grad():
        padded, _ = sampled_logprobs(model, [replace(item, token_ids=ids)], 0, 1.0)
    assert (packed - padded).abs().max() > 1e-4


@pytest.mark.parametrize("head", [torch.float32, torch.bfloat16])  # bfloat16: as LoRA leaves the weights
def test_beliefs_in_bfloat16_are_projected_in_float32(taught: Any, head: torch.dtype) -> None:
    """As the exact engine's (test_probes.py): all logits shifted by 25, where a bfloat16 logit is one of steps of an eighth."""
    config, environment, policy = taught
    model = copy.deepcopy(policy.model)
    model.lm_head.bias = torch.nn.Parameter(torch.full((model.config.vocab_size,), 25.0))
    model.lm_head.to(head)
    exact = replace(policy, model=copy.deepcopy(model))
    exact.model.lm_head.float()
    half = replace(policy, model=model, half=True)

    def several(question: Question) -> list[Any]:
        return [
            policy.protocol.probe(answer) for answer in (question.answers[0], environment.tasks("dev")[0].answers[0])
        ]

    questions = environment.tasks("train")[:4]
    ours = ContinuousRollout(half)(half, environment, questions, config.rollout, members=3, key=KEY, probes=several)
    compared = 0
    for item in ours:
        assert item.answer_scores is not None
        for number, probe in enumerate(several(item.question)):
            (wanted,) = answer_log_likelihoods(exact.model, [item.token_ids], [item.cuts], [probe])
            assert [scores[number] for scores in item.answer_scores] == pytest.approx(wanted, abs=0.002)
            compared += len(wanted)
    assert compared > 40


def test_reading_beliefs_counts_in_full_as_scoring(taught: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the pass that probes share with prompts and observations their share of tokens; what reads them, whole."""
    config, environment, policy = taught
    score = _Run._score
    calls: list[int] = []

    def slow(self: Any, *arguments: Any) -> None:
        calls.append(len(calls))
        time.sleep(0.2)
        score(self, *arguments)

    monkeypatch.setattr(_Run, "_score", slow)
    times = RolloutTimes()
    probes = answer_probes(policy, environment, config.reward)
    ContinuousRollout(policy)(
        policy,
        environment,
        environment.tasks("train")[:2],
        config.rollout,
        members=1,
        key=KEY,
        probes=probes,
        times=times,
    )
    assert calls and 0.2 * len(calls) <= times.scoring < times.total


def test_it_is_refused_with_sharded_weights() -> None:
    content = {
        "rollout": {"engine": {"kind": "continuous"}},
        "training": {"processes": 2, "sharding": "fsdp"},
    }
    with pytest.raises(ValidationError, match=r"continuous.*training\.sharding=none"):
        ExperimentConfig.model_validate(content)


def test_a_policy_with_chat_and_grouped_heads(chat_policy: Any, taught: Any) -> None:
    """Grouped heads, a subword tokenizer, a random policy: turns end by their budget."""
    from igpo_core.config import RolloutConfig

    world: Any = WithTools(taught[1], lambda requests: [Observation("nothing") for _ in requests])
    asked = [Question(f"q{i}", "custom", "train", f"Who was born in Warsaw {i}?", ("Curie",)) for i in range(2)]
    settings = RolloutConfig(questions=2, group_size=2, max_turns=2, max_new_tokens=6, max_tokens=900)
    probes = answer_probes(chat_policy, world, reward_of({}))
    exact = rollout(chat_policy, world, asked, settings, members=2, key=KEY, probes=probes)
    ours = ContinuousRollout(chat_policy)(chat_policy, world, asked, settings, members=2, key=KEY, probes=probes)
    assert [item.token_ids for item in ours] == [item.token_ids for item in exact]
    for one, other in zip(exact, ours, strict=True):
        assert one.answer_scores is not None and other.answer_scores is not None
        assert one.answer_scores[0] == pytest.approx(other.answer_scores[0], abs=1e-5)


# of models that other settings than tiny's are needed for: heads of a size of their own, no window
OF_TYPES: dict[str, dict[str, Any]] = {
    "glm4": {"head_dim": 8}, "glm4_moe": {"head_dim": 8}, "mistral": {"sliding_window": None}, "gemma": {"head_dim": 8},
    "mixtral": {"sliding_window": None}, "phi3": {"sliding_window": None}, "qwen3": {"head_dim": 8}, "qwen3_moe": {"head_dim": 8},
}  # fmt: skip


@pytest.mark.parametrize("kind", PACKED_TYPES)
def test_a_packed_pass_of_each_type_is_the_plain_one(kind: str) -> None:
    """Two sequences one behind the other, and in slots, against each alone."""
    config = type(AutoConfig.for_model(kind))
    model = tiny(config, pad_token_id=0, max_position_embeddings=64, **OF_TYPES.get(kind, {})).eval()
    assert not unpackable(model)
    first, second = [3, 4, 5, 6, 7], [9, 8, 10]
    positions = torch.tensor([[*range(5), *range(3)]])
    with torch.no_grad():
        plain = [
            model.get_decoder()(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
            for ids in (first, second)
        ]
        with packing_layers(model):
            packing = Packing.of([5, 3], "cpu")
            packed = model.get_decoder()(
                input_ids=torch.tensor([first + second]), position_ids=positions, use_cache=False, packing=packing
            ).last_hidden_state[0]
        policy: Any = SimpleNamespace(model=model, half=False, end_ids=(1,), precision=nullcontext)
        in_slots = SlotModel(policy, slots=2, capacity=32, budget=4).feed([Block(1, 0, first), Block(0, 0, second)])
    torch.testing.assert_close(packed, torch.cat(plain), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(in_slots, torch.cat(plain), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "stablelm"])
def test_a_model_of_a_type_that_was_not_compared_is_padded_and_refused_by_name(taught: Any, kind: str) -> None:
    model = SimpleNamespace(config=type(AutoConfig.for_model(kind))(), device=torch.device("cuda"))
    policy: Any = replace(taught[2], model=model, half=True)
    assert not packs(policy, "none")
    with pytest.raises(ConfigError, match=rf"this model has type {kind}, of which no packed pass"):
        ContinuousRollout(policy)


@pytest.mark.parametrize("kind", ["glm4_moe", "mixtral", "qwen3_moe"])
def test_experts_are_packed_in_updates_and_refused_by_the_engine(taught: Any, kind: str) -> None:
    """Compiled, they read on the CPU how many tokens each expert has, which no CUDA graph takes."""
    model = tiny(type(AutoConfig.for_model(kind)), pad_token_id=0, **OF_TYPES[kind])
    on_gpu = SimpleNamespace(config=model.config, device=torch.device("cuda"), get_decoder=model.get_decoder)
    policy: Any = replace(taught[2], model=on_gpu, half=True)
    assert packs(policy, "none")
    with pytest.raises(ConfigError, match=rf"this model has experts \(type {kind}\)"):
        ContinuousRollout(policy)


def test_layers_of_a_models_own_code_are_padded(taught: Any) -> None:
    """Under a type that is known: they may compute attention by themselves, so that packed sequences see one another."""

    class OwnAttention(LlamaAttention):
        pass

    model = tiny(LlamaConfig)
    assert not unpackable(model)
    for layer in model.get_decoder().layers:
        layer.self_attn.__class__ = OwnAttention
    assert unpackable(model) == f"code of its own ({__name__})"
    OwnAttention.__module__ = "transformers_modules.somebody.modeling"  # as transformers loads it with remote code
    assert "transformers_modules.somebody" in unpackable(model)
    whole = tiny(LlamaConfig)
    whole.get_decoder().__class__ = type("OwnDecoder", (type(whole.get_decoder()),), {"__module__": "elsewhere"})
    assert unpackable(whole) == "code of its own (elsewhere)"


def test_a_policy_that_gives_no_numbers_ends_a_rollout(taught: Any) -> None:
    """With either engine: its turns would be scored as those of a policy that fails."""
    config, environment, policy = taught
    broken = replace(policy, model=copy.deepcopy(policy.model))
    with torch.no_grad():
        broken.model.get_decoder().norm.weight.fill_(float("nan"))
    for engine in (rollout, ContinuousRollout(broken)):
        with pytest.raises(IgpoError, match="turn 1: the policy's log-probabilities are no finite numbers"):
            engine(broken, environment, environment.tasks("train")[:1], config.rollout, members=1, key=KEY)


@pytest.mark.parametrize("logprob", [float("nan"), float("-inf"), float("inf")])
def test_no_number_is_appended(taught: Any, logprob: float) -> None:
    config, environment, policy = taught
    row = begin(policy, environment.tasks("train")[0], 0, config.rollout)
    with pytest.raises(IgpoError, match="no finite numbers"):
        row.append_turn(policy, [policy.end_ids[0]], [logprob], config.rollout)


def test_a_token_is_chosen_where_the_model_gives_no_numbers() -> None:
    """Whoever appends the turn says so; an index beyond the vocabulary would end the process before."""
    nothing = torch.full((2, 700), float("nan"))
    token, logprob = choose(nothing, torch.tensor([0.3, 0.9], dtype=torch.float64), Sampling(1.0, False, 1))
    assert token.max() < 700 and logprob.isnan().all()


def test_shorter_turns_after_longer_ones_have_the_exact_engines_tokens(taught: Any) -> None:
    config, environment, policy = taught
    engine, questions, key = ContinuousRollout(policy), environment.tasks("train")[:2], (5, "rollout", 2)
    engine(policy, environment, questions, config.rollout, members=2, key=key)
    short = config.rollout.model_copy(update={"max_new_tokens": config.rollout.max_new_tokens - 4})
    ours = engine(policy, environment, questions, short, members=2, key=key)
    exact = rollout(policy, environment, questions, short, members=2, key=key)
    assert [item.token_ids for item in ours] == [item.token_ids for item in exact]


def test_what_tools_return_waits_for_others_while_most_still_sample(
    taught: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven of 32 slots have a short turn, and a pass over others that sample takes eight: what their tools return waits until
    the other 25, with long turns, sample no more."""
    config, environment, policy = taught
    monkeypatch.setattr(continuous_engine, "PATIENCE", 0.05)
    monkeypatch.setattr(continuous_engine, "ROWS_TOGETHER", 4)  # eight of 32
    question, protocol = environment.tasks("train")[0], policy.protocol
    call = environment.example_call(question)
    short, final = (list(turn[0]) for turn in (protocol.turn("", call), protocol.turn("", Final("x"))))
    filler = " ".join(protocol.tokenizer.decode([20 + n % 5]) for n in range(36))
    long = list(protocol.turn(filler, call)[0])
    turns: dict[int, int] = {}

    def scripted(self: Any, logits: Any, place: torch.Tensor, sampling: Any) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = []
        for slot, now in enumerate(place[:, 0].tolist()):
            turns[slot] = turns.get(slot, -1) + int(now == 0 and bool(self.active[slot]))
            script = final if turns[slot] == 1 else short if slot < 7 else long
            chosen.append(script[min(now, len(script) - 1)])
        return torch.tensor(chosen), torch.zeros(len(chosen))

    passes: list[tuple[int, int]] = []  # rows, and rows that sample meanwhile
    feed = SlotModel.feed

    def counted(self: Any, blocks: Any) -> torch.Tensor:
        passes.append((len(blocks), int(self.active.sum())))
        return feed(self, blocks)

    monkeypatch.setattr(SlotModel, "_choose", scripted)
    monkeypatch.setattr(SlotModel, "feed", counted)
    settings = config.rollout.model_copy(
        update={"max_turns": 2, "max_new_tokens": 50, "max_tokens": 250, "batch_size": 32}
    )
    questions = environment.tasks("train")[:4]
    ContinuousRollout(policy)(policy, environment, questions, settings, members=8, key=KEY)
    assert passes == [(4, 0), (7, 0), (25, 7)]


def test_the_last_episodes_of_a_step_do_not_wait_for_one_another(taught: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 slots, of which two have turns of 43 and 7 tokens in turn, one behind the other: they were answered in lockstep, as if
    another six rows could still come, in 41 looks where the longer of the two needs 26."""
    config, environment, policy = taught
    monkeypatch.setattr(continuous_engine, "PATIENCE", 0.05)
    question, protocol = environment.tasks("train")[0], policy.protocol
    call = environment.example_call(question)
    filler = " ".join(protocol.tokenizer.decode([20 + n % 5]) for n in range(36))
    short, long, final = (
        list(turn[0]) for turn in (protocol.turn("", call), protocol.turn(filler, call), protocol.turn("", Final("x")))
    )
    turns: dict[int, int] = {}

    def scripted(self: Any, logits: Any, place: torch.Tensor, sampling: Any) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = []
        for slot, now in enumerate(place[:, 0].tolist()):
            turns[slot] = turns.get(slot, -1) + int(now == 0 and bool(self.active[slot]))
            script = final if slot > 1 or turns[slot] == 3 else (long, short)[(turns[slot] + slot) % 2]
            chosen.append(script[min(now, len(script) - 1)])
        return torch.tensor(chosen), torch.zeros(len(chosen))

    looks, decode = [0], SlotModel.decode
    monkeypatch.setattr(SlotModel, "_choose", scripted)
    monkeypatch.setattr(SlotModel, "decode", lambda self, *a: (looks.append(0), decode(self, *a))[1])
    settings = config.rollout.model_copy(
        update={"max_turns": 4, "max_new_tokens": 50, "max_tokens": 250, "batch_size": 32}
    )
    questions = environment.tasks("train")[:4]
    made = ContinuousRollout(policy)(policy, environment, questions, settings, members=8, key=(5, "rollout", 2))
    longer = max(sum(-(-len(turn.logprobs) // 4) for turn in item.turns) for item in made)
    assert longer == 26 and len(looks) - 1 <= longer + 4
