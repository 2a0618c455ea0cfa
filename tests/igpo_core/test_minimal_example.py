"""examples/igpo_minimal.py is what a reader reads first: it equals the library, and its training loop learns."""

import ast
import copy
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples import igpo_minimal as minimal
from igpo_core.advantages import turn_advantages
from igpo_core.config import ExperimentConfig, reward_of
from igpo_core.credit import TurnRewards, assign_credit
from igpo_core.objective import policy_loss, token_weights
from igpo_core.rewards.information_gain import AnswerProbe, answer_log_likelihoods
from igpo_core.rewards.outcome import f1_score
from igpo_core.sampled import sampled_logprobs
from igpo_core.trajectory import Malformed, Question, RolloutStatus, Trajectory, Turn
from igpo_core.update import token_advantages, token_batch

BATCHES = range(50)
OUTCOMES = (0.0, 0.5, 2 / 3, 1.0)


def random_rewards(rng: random.Random) -> tuple[list[list[float]], list[int]]:
    """Return (rewards, groups) of one batch, its rows in random order.

    Groups: 0 is mixed, with a malformed trajectory; 1 has trajectories of one turn alone; 2 is dead, with one turn each;
    3 is dead although it has several turns; 4 has one trajectory.
    """
    rows: list[tuple[list[float], int]] = []
    for _ in range(rng.randint(2, 5)):
        gains = [rng.choice([0.0, rng.gauss(0, 1), rng.gauss(0, 1e-3)]) for _ in range(rng.randint(0, 3))]
        rows.append(([*gains, rng.choice(OUTCOMES)], 0))
    rows.append(([*(rng.gauss(0, 1) for _ in range(rng.randint(0, 3))), minimal.PENALTY], 0))
    rows += [([outcome], 1) for outcome in rng.sample([*OUTCOMES, minimal.PENALTY], 3)]
    dead, gain = rng.choice([*OUTCOMES, minimal.PENALTY]), rng.gauss(0, 1)
    rows += [([dead], 2)] * 3
    rows += [([gain] * turns + [dead], 3) for turns in (1, 2, 3)]
    rows.append(([rng.gauss(0, 1), rng.choice(OUTCOMES)], 4))
    rng.shuffle(rows)
    return [row for row, _ in rows], [group for _, group in rows]


def random_trajectory(rng: random.Random, turns: int) -> minimal.Trajectory:
    """Return one with any tokens: a turn has 1 to 6, a result 1 to 4, an answer 1 to 3."""

    def words(count: int) -> list[int]:
        return rng.choices(range(len(minimal.WORDS)), k=count)

    answer = " ".join(minimal.WORDS[token] for token in words(rng.randint(1, 3)))
    item = minimal.Trajectory(minimal.Question("", answer, {}), words(rng.randint(1, 6)))
    for left in reversed(range(turns)):
        turn = words(rng.randint(1, 6))
        item.turns.append((len(item.tokens), len(item.tokens) + len(turn)))
        item.tokens += turn
        if left:
            item.tokens += words(rng.randint(1, 4))
    return item


def random_policy(seed: int) -> LlamaForCausalLM:
    """Return a small policy with opinions: fresh weights ten times as large as usual."""
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=len(minimal.WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(shape)


def moved(policy: LlamaForCausalLM, seed: int) -> LlamaForCausalLM:
    """Return a copy whose weights are a few percent off."""
    other = copy.deepcopy(policy)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return other


def of_library(item: minimal.Trajectory, group: int) -> Trajectory:
    """Return the library's form of a trajectory; its constructor checks that spans follow one another without a gap.

    The log-probabilities at sampling are zeros, which no loss reads: it is given those of the old policy.
    """
    result_ends = [start for start, _ in item.turns[1:]] + [len(item.tokens)]
    turns = tuple(
        Turn(start, end, result_end, Malformed("any tokens"), (0.0,) * (end - start))
        for (start, end), result_end in zip(item.turns, result_ends, strict=True)
    )
    question = Question(str(group), "minimal", "train", item.question.text, (item.question.answer,))
    return Trajectory(question, str(group), tuple(item.tokens), item.turns[0][0], turns, RolloutStatus.MALFORMED)


# ------------------------------------------------------------------------------------------------- equal to the library


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_advantages_equal_the_librarys(monkeypatch: pytest.MonkeyPatch, gamma: float) -> None:
    monkeypatch.setattr(minimal, "GAMMA", gamma)
    config = reward_of(
        {
            "penalty_on": "trajectory",
            "format_penalty": minimal.PENALTY,
            "eps": minimal.FLOOR,
            "normalization": {"kind": "separate", "floor": minimal.FLOOR},
            "gamma": gamma,
        }
    )
    for seed in BATCHES:
        rewards, groups = random_rewards(random.Random(seed))
        own = minimal.turn_advantages(rewards, groups)
        door = turn_advantages(rewards, groups, gamma=gamma, eps=minimal.FLOOR)
        earned = [
            TurnRewards(len(row), tuple(row[:-1]), max(0.0, row[-1]), row[-1] != minimal.PENALTY) for row in rewards
        ]
        credit = assign_credit(earned, groups, config, seed=0, step=0)
        for row, of_door, of_arm, group in zip(own, door, credit.turns, groups, strict=True):
            assert row == pytest.approx(of_door, abs=1e-9, rel=0)
            assert row == pytest.approx(of_arm, abs=1e-9, rel=0)
            if group in (2, 3):
                assert not any(row)
        assert any(len(row) > 1 and any(row) for row in own)


def test_advantages_of_two_trajectories_by_hand() -> None:
    # gains .2 and 0: mean .1, std .1; outcomes 1 and 0: mean .5, std .5; then A_1 = z_1 + z_2
    gain, outcome = 0.1 / 0.1001, 0.5 / 0.5001
    assert minimal.turn_advantages([[0.2, 1.0], [0.0, 0.0]], [7, 7]) == [
        pytest.approx([gain + outcome, outcome]),
        pytest.approx([-gain - outcome, -outcome]),
    ]


def test_beliefs_equal_the_librarys() -> None:
    every: list[float] = []
    for seed in BATCHES:
        rng, policy = random.Random(seed), random_policy(seed)
        items = [random_trajectory(rng, turns) for turns in (1, *(rng.randint(1, 4) for _ in range(3)))]
        answers = [minimal.encode(item.question.answer) for item in items]
        cuts = [[start for start, _ in item.turns] for item in items]
        probes = [AnswerProbe((minimal.TOKENS["answer"],), tuple(ids), (minimal.END,)) for ids in answers]
        expected = answer_log_likelihoods(policy, [item.tokens for item in items], cuts, probes)
        for item, own, answer, values in zip(items, cuts, answers, expected, strict=True):
            found = minimal.beliefs(policy, [item.tokens[:cut] for cut in own], answer)
            assert found == pytest.approx(values, abs=1e-5, rel=0)
            every += found
    assert torch.tensor(every).std() > 0.3  # they differ by far more than what is allowed


@pytest.mark.parametrize("old", ["itself", "another"])
def test_gradients_equal_the_librarys(old: str) -> None:
    """old: the policy that sampled. Of another one ratios are not 1, and some are clipped."""
    config = ExperimentConfig.model_validate({"data": {"kind": "lookup"}, "policy": {"kind": "new"}})
    clipped = 0.0
    for seed in BATCHES:
        rng, policy = random.Random(seed), random_policy(seed)
        rewards, groups = random_rewards(rng)
        items = [random_trajectory(rng, len(row)) for row in rewards]
        advantages = minimal.turn_advantages(rewards, groups)
        reference = moved(policy, 1)
        sampler = policy if old == "itself" else moved(policy, 2)
        parameters = list(policy.parameters())
        own = torch.autograd.grad(minimal.igpo_loss(policy, sampler, reference, items, advantages), parameters)

        trajectories = [of_library(item, group) for item, group in zip(items, groups, strict=True)]
        with torch.no_grad():
            first, _ = sampled_logprobs(sampler, trajectories, minimal.PAD, 1.0)
            compared, _ = sampled_logprobs(reference, trajectories, minimal.PAD, 1.0)
        logprobs, _ = sampled_logprobs(policy, trajectories, minimal.PAD, 1.0)
        unused: Any = None  # the protocol finds queries, and no query has an advantage of its own here
        rows = [token_advantages(unused, item, row, None) for item, row in zip(trajectories, advantages, strict=True)]
        weights = token_weights([item.sampled_tokens for item in trajectories], "sequence", most=1)
        batch = token_batch(
            trajectories, rows, weights, config, logprobs, None, compared, None if old == "itself" else first
        )
        terms = policy_loss(
            batch, clip_low=minimal.CLIP, clip_high=minimal.CLIP, kl_coefficient=minimal.KL, entropy_coefficient=0.0
        )
        clipped += float(terms.clipped)
        for one, other in zip(own, torch.autograd.grad(terms.total, parameters), strict=True):
            assert (one - other).abs().max() < 1e-6
        assert max(float(one.abs().max()) for one in own) > 1e-2
    assert clipped > 0 if old == "another" else clipped == 0


def test_f1_equals_the_librarys() -> None:
    rng = random.Random(0)
    for _ in range(200):
        given, right = (" ".join(rng.choices(["elm-1", "oak-2", "rye-3"], k=rng.randint(low, 3))) for low in (0, 1))
        assert minimal.f1(given, right) == pytest.approx(f1_score(given, [right]))


# ------------------------------------------------------------------------------------------------------------ rollouts


def test_a_rollout_keeps_what_was_sampled_and_where() -> None:
    scripts = {
        "ann": ["search city of ann <end>", "search street of ann <end>", "answer street-5 city-3 <end>"],
        "bob": ["answer city-3 <end>"],
        "cal": ["search city of ann"],  # no <end>
        "dee": ["<end>"],
        "eve": ["search city of ann <end>"] * 4,  # one search too many
    }

    def agent(running: Sequence[minimal.Trajectory]) -> list[list[int]]:
        return [minimal.encode(scripts[item.question.text.split()[3]][len(item.turns)]) for item in running]

    results = {"city of ann": "city-3"}
    ann, bob, cal, dee, eve = done = minimal.rollout(
        agent, [minimal.Question(f"question address of {person} ?", "street-5 city-3", results) for person in scripts]
    )
    assert [item.answer for item in done] == ["street-5 city-3", "city-3", None, None, None]
    assert ann.tokens == minimal.encode(
        "question address of ann ? search city of ann <end> result city-3 <end> "
        "search street of ann <end> result nothing <end> answer street-5 city-3 <end>"
    )
    assert ann.turns == [(5, 10), (13, 18), (21, 25)]
    assert [item.turns for item in (bob, cal, dee)] == [[(5, 8)], [(5, 9)], [(5, 6)]]
    assert eve.turns == [(5, 10), (13, 18), (21, 26), (29, 34)] and len(eve.tokens) == 34
    for item in done:
        of_library(item, 0)


def test_turns_are_sampled_from_the_policy_whatever_the_batch_mates() -> None:
    policy, rng = random_policy(0), random.Random(0)
    with torch.no_grad():
        policy.lm_head.weight *= 1e4  # the likeliest token is certain, and sampling has one result
    items = [random_trajectory(rng, turns) for turns in (1, 4, 2, 3) * 4]
    expected = []
    for item in items:
        turn: list[int] = []
        while len(turn) < minimal.MAX_NEW_TOKENS and minimal.END not in turn:
            turn.append(int(policy(input_ids=torch.tensor([item.tokens + turn])).logits[0, -1].argmax()))
        expected.append(turn)
    assert minimal.sample_turns(policy, items) == expected
    with torch.no_grad():  # whatever is seen, <end> is the likeliest token
        policy.lm_head.weight.zero_()
        policy.model.norm.weight.zero_()
        policy.lm_head.bias = torch.nn.Parameter(1e4 * torch.eye(len(minimal.WORDS))[minimal.END])
    assert minimal.sample_turns(policy, items) == [[minimal.END]] * len(items)


# ---------------------------------------------------------------------------------------------------- the file as it is


def test_it_is_short_and_stands_on_torch_and_transformers_alone() -> None:
    source = Path(str(minimal.__file__)).read_text()
    assert len(source.splitlines()) <= 250
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert imported - sys.stdlib_module_names == {"torch", "transformers"}


def test_its_training_loop_runs_and_repeats_itself() -> None:
    told, again = (list(minimal.train(warm_start=40, steps=2)) for _ in range(2))
    assert told == again and len(told) == 2
    assert all(0 < mean_f1 < 1 and mean_gain != 0 for mean_f1, mean_gain in told)


@pytest.mark.night
def test_it_learns() -> None:
    told = list(minimal.train())
    (f1_before, gain_before), (f1_after, gain_after) = (
        torch.tensor(part).mean(0).tolist() for part in (told[:5], told[-5:])
    )
    assert f1_after > f1_before + 0.15  # .475 to .742 when it was measured; a mean of five steps is off by about .03
    assert gain_after > gain_before > 0
