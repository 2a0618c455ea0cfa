"""Batched multi-turn rollout on a transformers model, with one KV cache over all turns.

A history is encoded once: sampled tokens enter the cache as they are sampled, an observation is prefilled in one pass
on top of it, and finished rows leave the batch at the next turn. Every token's uniform number is drawn up front from a
generator keyed by (seed, purpose, step, question, member), so a trajectory does not depend on its batch mates.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from igpo_core.config import Decoding, RolloutConfig
from igpo_core.environments.base import Environment, Observation
from igpo_core.policies import Policy
from igpo_core.seeds import numpy_rng
from igpo_core.trajectory import Action, Answer, Malformed, Question, RolloutStatus, Search, Trajectory, Turn


@dataclass
class RolloutTimes:
    """Seconds spent in the search tool and in the rollout as a whole."""

    search: float = 0.0
    total: float = 0.0


@dataclass
class _Row:
    """A trajectory while it grows."""

    question: Question
    group: str
    ids: list[int]
    prompt_length: int
    uniforms: torch.Tensor  # [max_turns * max_new_tokens], float64
    drawn: int = 0
    turns: list[Turn] = field(default_factory=list)
    observations: list[str] = field(default_factory=list)
    status: RolloutStatus | None = None

    def finished(self) -> Trajectory:
        assert self.status is not None
        return Trajectory(
            self.question,
            self.group,
            tuple(self.ids),
            self.prompt_length,
            tuple(self.turns),
            self.status,
            tuple(self.observations),
        )


def prompt_fits(policy: Policy, config: RolloutConfig, question: Question) -> bool:
    """Whether the question's prompt leaves room for one whole turn."""
    return len(policy.protocol.prompt(question.text)) + config.max_new_tokens <= config.max_tokens


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
    times: RolloutTimes | None = None,
) -> list[Trajectory]:
    """`members` trajectories for each question, in question order.

    key = (seed, purpose, step) seeds the sampling. Raises ValueError for a prompt that leaves no room for a turn (see
    prompt_fits). Log-probabilities kept with the tokens are those of the sampling distribution (float32).
    """
    started, times = time.perf_counter(), times or RolloutTimes()
    seed, purpose, step = key
    rows = []
    for place, question in enumerate(questions):
        prompt = policy.protocol.prompt(question.text)
        if len(prompt) + config.max_new_tokens > config.max_tokens:
            raise ValueError(
                f"question {question.id}: a prompt of {len(prompt)} tokens and a turn of {config.max_new_tokens} exceed "
                f"rollout.max_tokens={config.max_tokens}: raise it or drop the question"
            )
        for member in range(members):
            rng = numpy_rng(seed, purpose, step, place, member)
            uniforms = torch.from_numpy(rng.random(config.max_turns * config.max_new_tokens))
            rows.append(_Row(question, f"{place}/{question.id}", list(prompt), len(prompt), uniforms))
    for start in range(0, len(rows), config.batch_size):
        _run(policy, environment, rows[start : start + config.batch_size], config, decoding, times)
    times.total += time.perf_counter() - started
    return [row.finished() for row in rows]


def _run(
    policy: Policy,
    environment: Environment,
    rows: list[_Row],
    config: RolloutConfig,
    decoding: Decoding,
    times: RolloutTimes,
) -> None:
    stream = _Stream(policy, config, decoding)
    pending = [row.ids for row in rows]
    for turn in range(config.max_turns):
        sampled = stream.sample_turn(rows, pending)
        actions: list[Action] = []
        for row, (ids, logprobs) in zip(rows, sampled, strict=True):
            action = policy.protocol.parse(ids)
            actions.append(action)
            start = len(row.ids)
            row.ids += ids
            row.turns.append(Turn(start, len(row.ids), len(row.ids), action, tuple(logprobs)))
            row.status = _ending(action, ids[-1] in policy.protocol.stop_ids, turn == config.max_turns - 1)
        searching = [i for i, row in enumerate(rows) if row.status is None]
        found = _search(environment, [(rows[i].question, actions[i]) for i in searching], times)
        keep, pending = [], []
        for i, observation in zip(searching, found, strict=True):
            row, ids = rows[i], policy.protocol.observation(observation.text)
            if len(row.ids) + len(ids) + config.max_new_tokens > config.max_tokens:
                row.status = RolloutStatus.WINDOW_FULL
                continue
            last = row.turns[-1]
            row.ids += ids
            row.turns[-1] = Turn(last.start, last.end, len(row.ids), last.action, last.logprobs, observation.hop)
            row.observations.append(observation.text)
            keep.append(i)
            pending.append(ids)
        if not keep:
            return
        stream.keep(keep)
        rows = [rows[i] for i in keep]


def _ending(action: Action, stopped: bool, last_turn: bool) -> RolloutStatus | None:
    """How the trajectory ends with this turn; None: it searches on."""
    if not stopped:
        return RolloutStatus.TURN_TRUNCATED
    if isinstance(action, Malformed):
        return RolloutStatus.MALFORMED
    if isinstance(action, Answer):
        return RolloutStatus.ANSWERED
    return RolloutStatus.TURN_LIMIT if last_turn else None


def _search(
    environment: Environment, wanted: Sequence[tuple[Question, Action]], times: RolloutTimes
) -> list[Observation]:
    requests = [(question, action.query) for question, action in wanted if isinstance(action, Search)]
    started = time.perf_counter()
    found = environment.search(requests) if requests else []
    times.search += time.perf_counter() - started
    if len(found) != len(requests):
        raise ValueError(f"the search tool answered {len(found)} of {len(requests)} queries")
    return found


class _Stream:
    """The batch's KV cache. Columns are shared by all rows; `seen` marks which of them hold a token of a row."""

    def __init__(self, policy: Policy, config: RolloutConfig, decoding: Decoding) -> None:
        self.model, self.pad = policy.model, policy.protocol.pad_id
        self.decoder, self.head = (policy.model.get_decoder(), policy.model.get_output_embeddings())
        self.device = policy.model.device
        self.stops = torch.tensor(policy.protocol.stop_ids, device=self.device)
        self.config, self.greedy = config, decoding == "greedy"
        self.cache = DynamicCache(config=policy.model.config)
        self.seen = torch.zeros(0, 0, dtype=torch.bool)  # [rows, columns]
        self.lengths = torch.zeros(0, dtype=torch.long)  # tokens in the cache, by row
        self.last: list[int] | None = None  # each row's last sampled token: sampled, but not yet in the cache

    def keep(self, rows: list[int]) -> None:
        """Drop the other rows."""
        index = torch.tensor(rows, device=self.device)
        if len(rows) < len(self.seen):
            self.cache.batch_select_indices(index)
            self.seen, self.lengths = self.seen[index], self.lengths[index]
        assert self.last is not None
        self.last = [self.last[i] for i in rows]

    def sample_turn(self, rows: list[_Row], pending: list[list[int]]) -> list[tuple[list[int], list[float]]]:
        """Prefill `pending` (prompt or observation) and sample one turn for every row: its ids and log-probs."""
        logits = self._prefill(pending)
        count, budget = len(rows), self.config.max_new_tokens
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
            logits = self._advance(torch.where(alive, token, self.pad)[:, None], alive[:, None])[:, 0]
        lengths = torch.stack(alives, 1).sum(1).tolist()
        ids, values = torch.stack(tokens, 1).tolist(), torch.stack(logprobs, 1).tolist()
        for row, length in zip(rows, lengths, strict=True):
            row.drawn += length
        self.last = [row[length - 1] for row, length in zip(ids, lengths, strict=True)]
        return [(ids[i][:n], values[i][:n]) for i, n in enumerate(lengths)]

    def _prefill(self, pending: list[list[int]]) -> torch.Tensor:
        """Logits [rows, vocabulary] after each row's last sampled token and pending tokens."""
        if self.last is None:
            self.seen = torch.zeros(len(pending), 0, dtype=torch.bool, device=self.device)
            self.lengths = torch.zeros(len(pending), dtype=torch.long, device=self.device)
            blocks = pending
        else:
            blocks = [[token, *ids] for token, ids in zip(self.last, pending, strict=True)]
        width = max(map(len, blocks))
        tokens = torch.tensor([ids + [self.pad] * (width - len(ids)) for ids in blocks], device=self.device)
        counts = torch.tensor([len(ids) for ids in blocks], device=self.device)
        real = torch.arange(width, device=self.device) < counts[:, None]
        return self._advance(tokens, real, last=counts - 1)[:, 0]

    def _advance(self, tokens: torch.Tensor, real: torch.Tensor, last: torch.Tensor | None = None) -> torch.Tensor:
        """Append a block of columns; logits [rows, 1, vocabulary] at column `last` of the block (one column: at it)."""
        count, width = tokens.shape
        positions = self.lengths[:, None] + (real.cumsum(1) - 1).clamp(min=0)
        past = self.seen.shape[1]
        self.seen = torch.cat([self.seen, real], 1)
        causal = torch.ones(width, past + width, dtype=torch.bool, device=self.device).tril(past)
        # [rows, 1, width, columns]; every block starts with a real token, so no padded column's softmax is over nothing
        mask = (self.seen[:, None, :] & causal)[:, None]
        hidden = self.decoder(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
        ).last_hidden_state
        self.lengths = self.lengths + real.sum(1)
        if last is not None:
            hidden = hidden[torch.arange(count, device=self.device), last][:, None]
        logits: torch.Tensor = self.head(hidden).float()
        return logits

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
