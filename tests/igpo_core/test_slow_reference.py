"""Everything that is fast against the same method written out slowly: one plain forward pass a token, a belief, an update.

No cache, no batch, no packed probes, no chunks: what speed changes, it changes within float32 rounding, and the tokens not
at all.
"""

import itertools
import math
from typing import Any

import pytest
import torch

from igpo_core.config import ExperimentConfig
from igpo_core.policies import Policy
from igpo_core.rewards.outcome import f1_score
from igpo_core.seeds import numpy_rng
from igpo_core.training import Trainer
from igpo_core.trajectory import Episode, Final, Question, ToolCall
from tests.igpo_core.test_training import configure, fresh_copy


def logits_of(policy: Policy, ids: list[int]) -> torch.Tensor:
    """[len(ids), vocabulary] by one pass over the whole history."""
    logits: torch.Tensor = policy.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def slow_belief(policy: Policy, history: list[int], answers: tuple[str, ...]) -> float:
    """log of the summed probabilities of all accepted answers, over the tokens of the likeliest."""
    likely = []
    for answer in answers:
        probe = policy.protocol.probe(answer)
        start = len(history) + len(probe.prefix_ids)
        logprobs = logits_of(policy, [*history, *probe.prefix_ids, *probe.answer_ids]).log_softmax(-1)
        values = [float(logprobs[start + i - 1, token]) for i, token in enumerate(probe.answer_ids)]
        likely.append((sum(values), len(values)))
    return math.log(sum(math.exp(total) for total, _ in likely)) / max(likely)[1]


def slow_rollout(
    policy: Policy, environment: Any, question: Question, config: ExperimentConfig, key: tuple[Any, ...]
) -> tuple[list[int], list[list[int]], list[float], str | None]:
    """(all ids, places of the sampled tokens by turn, beliefs, answer)."""
    settings, protocol = config.rollout, policy.protocol
    uniforms = iter(numpy_rng(*key).random(settings.max_turns * settings.max_new_tokens).tolist())
    ids = protocol.prompt(question.text)
    turns: list[list[int]] = []
    beliefs = []
    while True:
        beliefs.append(slow_belief(policy, ids, question.answers))
        start = len(ids)
        while len(ids) - start < settings.max_new_tokens:
            probabilities = logits_of(policy, ids)[-1].log_softmax(-1).double().exp()
            cumulative = probabilities.cumsum(0)
            target = next(uniforms) * float(cumulative[-1])
            ids.append(int((cumulative <= target).sum()))
            if ids[-1] in protocol.stop_ids:
                break
        turns.append(list(range(start, len(ids))))
        action = protocol.parse(ids[start:])
        if isinstance(action, Final) and ids[-1] in protocol.stop_ids:
            return ids, turns, beliefs, action.text
        if not isinstance(action, ToolCall) or ids[-1] not in protocol.stop_ids or len(turns) == settings.max_turns:
            return ids, turns, beliefs, None
        observed = protocol.observation(environment.step([(Episode(question), action)])[0].text)
        if len(ids) + len(observed) + settings.max_new_tokens > settings.max_tokens:
            return ids, turns, beliefs, None
        ids += observed


def slow_z(value: float, pool: list[float], floor: float) -> float:
    """(r - mean) / (std + floor) in the pool of its group; 0 where all values are equal."""
    mean = sum(pool) / len(pool)
    std = (sum((other - mean) ** 2 for other in pool) / len(pool)) ** 0.5
    return 0.0 if len(set(pool)) == 1 else (value - mean) / (std + floor)


def slow_step(policy: Policy, optimizer: Any, trainer: Trainer, step: int) -> list[list[int]]:
    """One update of `policy`, sampled tokens one by one; returns the ids of its trajectories."""
    config = trainer.config
    drawn, groups = [], []
    with torch.no_grad():
        for place, question in enumerate(trainer.sampler.questions_of(step)):
            for member in range(config.rollout.group_size):
                key = (config.seed, "rollout", step, place, member)
                drawn.append((question, *slow_rollout(policy, trainer.environment, question, config, key)))
                groups.append(str(place))
    gains, outcomes = [], []
    for question, _, _, beliefs, answer in drawn:
        seen = beliefs if config.reward.gain.kind == "log_prob_diff" else [math.exp(value) for value in beliefs]
        gains.append([b - a for a, b in itertools.pairwise(seen)])
        outcomes.append(0.0 if answer is None else f1_score(answer, question.answers))
    advantages = []
    for own, outcome, group, (*_, answer) in zip(gains, outcomes, groups, drawn, strict=True):
        mates = [i for i, other in enumerate(groups) if other == group]
        row = [slow_z(gain, [g for i in mates for g in gains[i]], config.reward.floor) for gain in own]
        row.append(slow_z(outcome, [outcomes[i] for i in mates], config.reward.eps))
        row = [sum(row[t:]) for t in range(len(row))]  # gamma is 1
        row[-1] += config.reward.format_penalty if answer is None else 0.0  # the malformed turn alone is charged
        advantages.append(row)
    loss = torch.zeros(())
    for (_, ids, turns, _, _), row in zip(drawn, advantages, strict=True):
        logprobs = logits_of(policy, ids).log_softmax(-1)
        sampled = sum(map(len, turns))
        for places, advantage in zip(turns, row, strict=True):
            for place in places:  # ratio 1 in value, with the gradient of the log-probability
                now = logprobs[place - 1, ids[place]]
                loss = loss - advantage * torch.exp(now - now.detach()) / sampled / len(drawn)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), config.optimizer.max_grad_norm)
    optimizer.step()
    return [ids for _, ids, _, _, _ in drawn]


@pytest.mark.parametrize("gain", ["prob_diff", "log_prob_diff"])
def test_three_steps_equal_the_method_written_out(taught: Any, gain: str) -> None:
    config = configure(
        taught,
        reward={"reward": "outcome_and_gain", "gain": gain},
        optimizer={"warmup_steps": 0, "learning_rate": 1e-3, "tokens_per_batch": 150},
        rollout={"questions": 2, "group_size": 3},
    )
    fast, slow = fresh_copy(taught), fresh_copy(taught)
    trainer = Trainer(config, taught[1], fast)
    optimizer = torch.optim.AdamW(
        slow.model.parameters(),
        lr=config.optimizer.learning_rate,
        betas=config.optimizer.betas,
        weight_decay=config.optimizer.weight_decay,
    )
    moved = [parameter.detach().clone() for parameter in slow.model.parameters()]
    for step in range(3):
        result = trainer.run_step()
        ids = slow_step(slow, optimizer, trainer, step)
        assert [list(item.trajectory.token_ids) for item in result.scored] == ids
        assert any(len(item.trajectory.turns) > 1 for item in result.scored)
    for before, one, other in zip(moved, fast.model.parameters(), slow.model.parameters(), strict=True):
        assert (one - before).abs().max() > 1e-4  # it moved
        # Adam divides by the gradient's own size, so where that is rounding alone the step's sign is rounding too
        assert (one - other).abs().mean() < 1e-5
