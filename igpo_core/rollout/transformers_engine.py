"""Batched multi-turn rollout on a transformers model, with one KV cache over all turns.

A history is encoded once: sampled tokens enter the cache as they are sampled, an observation is prefilled in one pass
on top of it, the same prompt once for all members of a group, and finished rows leave the batch at the next turn. Where
beliefs are asked for, their probes ride in those prefills. Every token's uniform number is drawn up front from a
generator keyed by (seed, purpose, step, question, member), so a trajectory does not depend on its batch mates.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from igpo_core.clock import now
from igpo_core.config import Decoding, RolloutConfig
from igpo_core.environments.base import Environment
from igpo_core.logprobs import belief_logprobs
from igpo_core.policies import Policy
from igpo_core.protocol import AnswerProbe
from igpo_core.rollout.cache import roomy_cache
from igpo_core.rollout.probes import ProbeBlock
from igpo_core.rollout.rows import RolloutTimes, Row, begin, call_tools
from igpo_core.seeds import numpy_rng
from igpo_core.trajectory import Question, Trajectory


@dataclass
class _Row(Row):
    """uniforms: one number for each token that may be sampled, [max_turns * max_new_tokens], float64."""

    uniforms: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    drawn: int = 0


@torch.no_grad()
def rollout(
    policy: Policy,
    environment: Environment,
    questions: Sequence[Question],
    config: RolloutConfig,
    *,
    members: int,
    key: tuple[int, str, int],
    decoding: Decoding = "sampled",
    probes: Callable[[Question], Sequence[AnswerProbe]] | None = None,
    times: RolloutTimes | None = None,
    places: Sequence[int] | None = None,
) -> list[Trajectory]:
    """`members` trajectories for each question, in question order.

    key = (seed, purpose, step) seeds the sampling. probes: the answer probes of a question, for Trajectory.answer_scores;
    None makes no scoring at all. places: of the questions in the step, where they are a part of it (several processes); they
    key the sampling and name the groups. Raises ValueError for a prompt that leaves no room for a turn (see
    prompt_fits). Log-probabilities kept with the tokens are those of the sampling distribution (float32).
    """
    started, times = now(policy.model.device), times or RolloutTimes()
    seed, purpose, step = key
    rows = []
    for place, question in zip(places or range(len(questions)), questions, strict=True):
        first = begin(policy, question, place, config)
        for member in range(members):
            rng = numpy_rng(seed, purpose, step, place, member)
            uniforms = torch.from_numpy(rng.random(config.max_turns * config.max_new_tokens))
            rows.append(_Row(question, first.group, list(first.ids), first.prompt_length, uniforms=uniforms))
    with policy.precision():
        for start in range(0, len(rows), config.batch_size):
            _run(policy, environment, rows[start : start + config.batch_size], config, decoding, probes, times)
    times.total += now(policy.model.device) - started
    return [row.finished() for row in rows]


def _run(
    policy: Policy,
    environment: Environment,
    rows: list[_Row],
    config: RolloutConfig,
    decoding: Decoding,
    probes: Callable[[Question], Sequence[AnswerProbe]] | None,
    times: RolloutTimes,
) -> None:
    stream = _Stream(policy, config, decoding, times)
    stream.begin(rows, probes)
    pending: list[list[int]] = []
    for turn in range(config.max_turns):
        if turn:
            stream.observe(rows, pending)
        sampled = stream.sample_turn(rows)
        for row, (ids, logprobs) in zip(rows, sampled, strict=True):
            row.append_turn(policy, ids, logprobs, config)
        calling = [i for i, row in enumerate(rows) if row.status is None]
        started = time.perf_counter()
        found = call_tools(environment, [rows[i] for i in calling])
        times.tools += time.perf_counter() - started
        seen = [
            rows[i].append_observation(policy.protocol, item, config) for i, item in zip(calling, found, strict=True)
        ]
        keep = [i for i in calling if rows[i].status is None]
        pending = [ids for ids in seen if ids]
        if not keep:
            return
        stream.keep(keep)
        rows = [rows[i] for i in keep]


class _Stream:
    """The batch's KV cache. Columns are shared by all rows; `seen` marks which of them hold a token of a row."""

    def __init__(self, policy: Policy, config: RolloutConfig, decoding: Decoding, times: RolloutTimes) -> None:
        self.model, self.pad = policy.model, policy.protocol.pad_id
        self.decoder, self.head = (policy.model.get_decoder(), policy.model.get_output_embeddings())
        self.device = policy.model.device
        self.stops = torch.tensor(policy.end_ids, device=self.device)
        self.config, self.greedy, self.times = config, decoding == "greedy", times
        self.cache = roomy_cache(policy.model.config)
        self.seen = torch.zeros(0, 0, dtype=torch.bool)  # [rows, columns]
        self.lengths = torch.zeros(0, dtype=torch.long)  # tokens in the cache, by row
        self.last: list[int] = []  # each row's last sampled token: sampled, but not yet in the cache
        self.logits = torch.zeros(0, 0)  # [rows, vocabulary], for the next token
        self.probes: ProbeBlock | None = None

    def begin(self, rows: list[_Row], probes: Callable[[Question], Sequence[AnswerProbe]] | None) -> None:
        """Prefill each different prompt once, then give every row its copy."""
        first: dict[str, int] = {}
        for row in rows:
            first.setdefault(row.group, len(first))
        owner = [first[row.group] for row in rows]
        heads = [rows[owner.index(place)] for place in range(len(first))]
        if probes is not None:
            self.probes = ProbeBlock.of([probes(row.question) for row in heads], self.pad, self.device)
        self.seen = torch.zeros(len(heads), 0, dtype=torch.bool, device=self.device)
        self.lengths = torch.zeros(len(heads), dtype=torch.long, device=self.device)
        scores = self._prefill([row.ids for row in heads])
        index = torch.tensor(owner, device=self.device)
        self.cache.batch_select_indices(index)
        self.seen, self.lengths, self.logits = self.seen[index], self.lengths[index], self.logits[index]
        if self.probes is not None:
            self.probes = self.probes.select(owner)
            for row, place in zip(rows, owner, strict=True):
                row.answer_scores.append(scores[place])

    def observe(self, rows: list[_Row], observations: list[list[int]]) -> None:
        """Prefill each row's last sampled token and its observation."""
        scores = self._prefill([[token, *ids] for token, ids in zip(self.last, observations, strict=True)])
        for row, values in zip(rows, scores, strict=False):  # no scores without probes
            row.answer_scores.append(values)

    def keep(self, rows: list[int]) -> None:
        """Drop the other rows."""
        index = torch.tensor(rows, device=self.device)
        if len(rows) < len(self.seen):
            self.cache.batch_select_indices(index)
            self.seen, self.lengths = self.seen[index], self.lengths[index]
            if self.probes is not None:
                self.probes = self.probes.select(rows)
        self.last = [self.last[i] for i in rows]

    def sample_turn(self, rows: list[_Row]) -> list[tuple[list[int], list[float]]]:
        """Sample one turn for every row: its ids and log-probs."""
        logits, count, budget = self.logits, len(rows), self.config.max_new_tokens
        uniforms = torch.stack([row.uniforms[row.drawn : row.drawn + budget] for row in rows]).to(self.device)
        alive = torch.ones(count, dtype=torch.bool, device=self.device)
        tokens, logprobs, alives = [], [], []
        for place in range(budget):
            token, logprob = self._choose(logits, uniforms[:, place])
            tokens.append(token)
            logprobs.append(logprob)
            alives.append(alive)
            alive = alive & ~torch.isin(token, self.stops)
            if place == budget - 1 or not alive.any():
                break
            logits = self.head(
                self._advance(torch.where(alive, token, self.pad)[:, None], alive[:, None])[:, 0]
            ).float()
        lengths = torch.stack(alives, 1).sum(1).tolist()
        ids, values = torch.stack(tokens, 1).tolist(), torch.stack(logprobs, 1).tolist()
        for row, length in zip(rows, lengths, strict=True):
            row.drawn += length
        self.last = [row[length - 1] for row, length in zip(ids, lengths, strict=True)]
        return [(ids[i][:n], values[i][:n]) for i, n in enumerate(lengths)]

    def _prefill(self, blocks: list[list[int]]) -> list[tuple[float, ...]]:
        """Append each row's tokens, leaving the logits after the last of them; the probes' scores, if there are probes."""
        started = now(self.device)
        width = max(map(len, blocks))
        tokens = torch.tensor([ids + [self.pad] * (width - len(ids)) for ids in blocks], device=self.device)
        counts = torch.tensor([len(ids) for ids in blocks], device=self.device)
        real = torch.arange(width, device=self.device) < counts[:, None]
        if self.probes is None:
            hidden = self._advance(tokens, real)
            self.logits = self.head(hidden[torch.arange(len(blocks), device=self.device), counts - 1]).float()
            return []
        hidden = self._advance(tokens, real, self.probes)
        owner = torch.arange(len(blocks), device=self.device)
        self.logits = self.head(hidden[owner, counts - 1]).float()
        encoded = now(self.device)
        probes = self.probes
        at = torch.where(probes.at < 0, (counts - 1)[:, None], probes.at + width)
        owners = owner[:, None].expand_as(at)[probes.scored]
        values = belief_logprobs(self.head, hidden[owners, at[probes.scored]], probes.targets[probes.scored]).tolist()
        share = probes.width / (probes.width + width)
        self.times.scoring += share * (encoded - started) + now(self.device) - encoded
        return probes.means(values)

    def _advance(self, tokens: torch.Tensor, real: torch.Tensor, probes: ProbeBlock | None = None) -> torch.Tensor:
        """Append a block of columns; hidden states [rows, columns of the block and of the probes, width].

        Every block starts with a real token, so no padded column's softmax is over nothing.
        """
        width = tokens.shape[1]
        positions = self.lengths[:, None] + (real.cumsum(1) - 1).clamp(min=0)
        past = self.seen.shape[1]
        self.seen = torch.cat([self.seen, real], 1)
        self.lengths = self.lengths + real.sum(1)
        mask = self.seen[:, None, :]  # [rows, columns of the block, columns]
        if width > 1:
            causal = torch.ones(width, past + width, dtype=torch.bool, device=self.device).tril(past)
            mask = mask & causal
        if probes is not None:
            tokens = torch.cat([tokens, probes.tokens], 1)
            positions = torch.cat([positions, self.lengths[:, None] + probes.offsets], 1)
            history = self.seen[:, None, :].expand(-1, probes.width, -1)
            unseen = torch.zeros(len(tokens), width, probes.width, dtype=torch.bool, device=self.device)
            mask = torch.cat([torch.cat([mask, unseen], 2), torch.cat([history, probes.sees], 2)], 1)
        hidden: torch.Tensor = self.decoder(
            input_ids=tokens,
            attention_mask=mask[:, None],
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        if probes is not None and probes.width:
            self.cache.crop(-probes.width)
        return hidden

    def _choose(self, logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A token for each row by inverting its cumulative distribution, and the token's log-probability."""
        if self.greedy:
            logprobs = torch.log_softmax(logits, -1)
            token = logprobs.argmax(-1)
        else:
            logprobs = torch.log_softmax(logits / self.config.temperature, -1)
            cumulative = logprobs.double().exp().cumsum(-1)
            target = uniforms[:, None] * cumulative[:, -1:]
            token = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
        return token, logprobs.gather(1, token[:, None])[:, 0]
