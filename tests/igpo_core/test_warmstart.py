"""Rendering of demonstrations and the supervised loss, by hand; what an evaluation may depend on."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from igpo_core.config import LookupDemonstrations, WarmStart, WarmStartStage
from igpo_core.credit import Credit
from igpo_core.environments.base import Demonstration, DemonstrationTurn, Lesson
from igpo_core.environments.searching import SEARCH, search_for
from igpo_core.errors import ConfigError
from igpo_core.evaluation import evaluate
from igpo_core.metrics import correlation, rollout_metrics
from igpo_core.policies import build_policy, make_policy
from igpo_core.rewards.scoring import Scored
from igpo_core.trajectory import Final, Question, RolloutStatus, Trajectory, Turn
from igpo_core.warmstart import render, run_warm_start, schedule, supervised_loss

QUESTION = Question("q", "lookup", "train", "who is F1 ?", ("F2",), hops=1, facts={"boss of F1": "boss of F1 is F2 ."})


def demonstration(**last: Any) -> Demonstration:
    search = DemonstrationTurn(
        "boss of F1", search_for("boss of F1"), "boss of F1 is F2 .", (("boss", 0.25), ("rival", 0.75))
    )
    return Demonstration(QUESTION, (search, DemonstrationTurn("done", Final("F2"), **last)))


def test_a_demonstration_has_the_tokens_of_a_rollout(lookup_setup: Any) -> None:
    protocol = lookup_setup[2].protocol
    example = render(protocol, demonstration(answer_weight=5.0))
    text = "<bos> who is F1 ? <think> boss of F1 </think> <tool_call> boss of F1 </tool_call> <tool_response> boss of F1 is F2 "
    text += ". </tool_response> <think> done </think> <answer> F2 </answer>"
    assert protocol.decode(example.ids) == text
    # 5 prompt tokens; 10 sampled; 8 observed; then <think> done </think> <answer>, the answer's own token, </answer>
    assert example.weights == (0.0,) * 5 + (1.0,) * 10 + (0.0,) * 8 + (1.0,) * 4 + (5.0, 1.0)
    assert example.soft == {11: ((protocol.ids["boss"], 0.25), (protocol.ids["rival"], 0.75))}


def test_a_lesson_is_plain_words(lookup_setup: Any) -> None:
    protocol = lookup_setup[2].protocol
    example = render(protocol, Lesson(("boss", "of", "F1"), (0.0, 0.0, 2.0)))
    assert protocol.decode(example.ids) == "<bos> boss of F1" and example.weights == (0.0, 0.0, 0.0, 2.0)


def test_a_lesson_needs_one_token_a_word(chat_policy: Any) -> None:
    with pytest.raises(ConfigError, match="tokenizer=words"):
        render(chat_policy.protocol, Lesson(("extraordinary", "geography"), (0.0, 1.0)))


def test_the_loss_written_out(lookup_setup: Any) -> None:
    policy = lookup_setup[2]
    examples = [
        render(policy.protocol, demonstration(answer_weight=5.0)),
        render(policy.protocol, Lesson(("boss",), (2.0,))),
    ]
    with torch.no_grad():
        loss = supervised_loss(policy, examples)
        expected = 0.0
        for example in examples:
            logprobs = torch.log_softmax(policy.model(torch.tensor([example.ids])).logits[0], -1)
            for place, weight in enumerate(example.weights):
                target = example.soft.get(place, ((example.ids[place], 1.0),)) if weight else ()
                expected -= weight * sum(share * float(logprobs[place - 1, token]) for token, share in target)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_schedule() -> None:
    stage = WarmStartStage(steps=100, learning_rate=1.0, warmup_steps=10, demonstrations=LookupDemonstrations())
    assert schedule(stage, 0) == pytest.approx(0.1)  # a tenth of the warm-up, cosine still at 1
    assert schedule(stage, 50) == pytest.approx(0.55)  # half-way between 1 and 0.1
    assert schedule(stage, 99) < 0.11
    half = stage.model_copy(update={"final_share": 0.5})
    assert schedule(half, 50) == pytest.approx(0.75)


def test_a_warm_start_depends_on_the_seed_alone(lookup_setup: Any) -> None:
    config, environment, _ = lookup_setup
    stage = WarmStartStage(steps=3, learning_rate=1e-2, batch_size=4, demonstrations=LookupDemonstrations())

    def weights(seed: int, budget: int = 2048) -> torch.Tensor:
        optimizer = config.optimizer.model_copy(update={"tokens_per_batch": budget})
        own = config.model_copy(update={"seed": seed, "warm_start": WarmStart(stages=(stage,)), "optimizer": optimizer})
        policy = build_policy(own, environment)
        random.random(), torch.rand(3)  # whatever else draws numbers
        run_warm_start(own, environment, policy, progress=lambda *_: None)
        return torch.cat([p.detach().flatten() for p in policy.model.parameters()])

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))
    assert torch.allclose(first, weights(0, budget=64), atol=1e-4)  # batches change the sum's order alone


class Killed(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("killed_at", [20, 30, 40])
def test_a_warm_start_that_was_killed_ends_with_the_same_bits(
    lookup_setup: Any, tmp_path: Path, killed_at: int
) -> None:
    """In a first stage of 30 steps, at its end, and in a second one; checkpoints come at each step, and a damaged one is
    passed over."""
    config, environment, _ = lookup_setup
    stage = {"learning_rate": 1e-3, "batch_size": 2, "demonstrations": {"kind": "lookup"}}
    stages = [{**stage, "steps": 30}, {**stage, "steps": 20}]
    config = config.model_copy(update={"warm_start": WarmStart.model_validate({"stages": stages})})

    def kill(done: int, steps: int, metrics: dict[str, float]) -> None:
        if done == killed_at:
            raise Killed

    whole, half = build_policy(config, environment), build_policy(config, environment)
    expected = run_warm_start(config, environment, whole, progress=lambda *_: None)
    with pytest.raises(Killed):
        run_warm_start(config, environment, half, progress=kill, folder=tmp_path, every=0)
    (left,) = (tmp_path / "checkpoints").iterdir()
    assert left.name == f"step-{killed_at - 1:06d}"
    again = build_policy(config, environment)
    seen: list[int] = []
    found = run_warm_start(
        config, environment, again, progress=lambda done, *_: seen.append(done), folder=tmp_path, every=1e9
    )
    assert seen[0] == killed_at and found == expected
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    (left / "state.pt").write_bytes(b"")
    said: list[str] = []
    from_nothing = build_policy(config, environment)
    run_warm_start(config, environment, from_nothing, progress=lambda *_: None, folder=tmp_path, warn=said.append)
    assert "CHECKPOINT DAMAGED" in said[0]
    assert torch.equal(next(whole.model.parameters()), next(from_nothing.model.parameters()))


def test_an_evaluation_repeats_itself_and_slices(taught: Any) -> None:
    config, environment, policy = taught
    first = evaluate(policy, environment, config, split="dev", limit=8, decoding="sampled", step=1)
    assert first.metrics == pytest.approx(
        evaluate(policy, environment, config, split="dev", limit=8, decoding="sampled", step=9).metrics
        | {name: first.metrics[name] for name in ("all/seconds", "all/tool_seconds")}
    )
    assert first.metrics["lookup/f1"] == first.metrics["all/f1"]
    assert not [name for name in first.metrics if "hops_" in name and "reached" not in name]  # one length: all of them
    assert first.metrics["all/questions"] == 8 and len(first.records) == 8
    assert all(item.beliefs is None for item in first.scored)
    mean = sum(record["f1"] for record in first.records) / 8
    assert first.metrics["all/f1"] == pytest.approx(mean)


def scored(group: str, outcomes: tuple[float, ...], turns: int) -> Scored:
    spans = [Turn(2 + 2 * t, 3 + 2 * t, 4 + 2 * t, search_for("x"), (-0.5,)) for t in range(turns - 1)]
    start = 2 + 2 * (turns - 1)
    spans.append(Turn(start, start + 1, start + 1, Final("F2"), (-1.5,)))
    trajectory = Trajectory(
        QUESTION, group, tuple(range(start + 1)), 2, tuple(spans), RolloutStatus.ANSWERED, ("o",) * (turns - 1)
    )
    return Scored(trajectory, {"f1": outcomes[0], "em": outcomes[0]}, outcomes[0], outcomes[0])


def test_step_metrics_by_hand() -> None:
    items = [scored("a", (1.0,), 2), scored("a", (0.0,), 1), scored("b", (0.0,), 1), scored("b", (0.0,), 3)]
    advantages = [[1.0, 1.0], [-1.0], [0.0], [0.0, 0.0, 0.0]]
    nothing = [[0.0] * len(row) for row in advantages]
    credit = Credit(advantages, None, advantages, nothing, 0.0, 0.0)
    metrics = rollout_metrics(items, credit, ["a", "a", "b", "b"])
    assert metrics["train/f1"] == 0.25 and metrics["train/turns"] == 1.75 and metrics["train/tool_calls"] == 0.75
    assert metrics["advantage/dead_groups"] == 0.5  # group b
    # first-turn advantages 1, -1, 0, 0 against turns 2, 1, 1, 3: means 0 and 1.75;
    # covariance (0.25 + 0.75) / 4 = 0.25; stds sqrt(0.5) and sqrt((0.0625 + 0.5625 * 2 + 1.5625) / 4) = sqrt(0.6875)
    assert metrics["advantage/first_turn_by_turns"] == pytest.approx(0.25 / (0.5 * 0.6875) ** 0.5)
    assert metrics["train/entropy"] == pytest.approx((1.5 * 4 + 0.5 * 3) / 7)
    assert not any(name.startswith("reward/gain") for name in metrics)
    assert correlation([1.0, 1.0], [0.0, 1.0]) == 0.0


def test_a_stop_token_is_trained_where_it_pads_too(chat_policy: Any) -> None:
    """SmolLM2 pads with its eos token: a mask made of the pad's id would take the ends of turns out of the loss."""
    tokenizer = copy.deepcopy(chat_policy.protocol.tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    policy = make_policy(chat_policy.model, tokenizer, SEARCH)
    question = Question("q", "custom", "train", "Who built it?", ("Ida",))

    def example(searches: int) -> Any:
        turn = DemonstrationTurn("look", search_for("bridge"), "1. Brenn: a town")
        last = DemonstrationTurn("done", Final("Ida"))
        return render(policy.protocol, Demonstration(question, (*[turn] * searches, last)))

    examples = [example(0), example(2)]
    stops = [
        weight
        for one in examples
        for token, weight in zip(one.ids, one.weights, strict=True)
        if token == tokenizer.eos_token_id and weight
    ]
    assert policy.protocol.pad_id == tokenizer.eos_token_id and stops == [1.0] * 4  # one turn and three
    alone = sum(supervised_loss(policy, [one]).item() for one in examples)
    assert supervised_loss(policy, examples).item() == pytest.approx(alone, rel=1e-5)
