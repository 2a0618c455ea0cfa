"""Multi-turn rollout on one GPU, with continuous batching: as many slots as rollout.batch_size, each an episode's history.

Tokens are sampled for all slots together, a CUDA graph a token, and looked at every few tokens. An episode whose turn has ended
calls a tool while the others go on; what the tool returns is appended behind its cached history, and when it ends its slot is
given to the next episode. The prompt is encoded once a group. Answer probes stand behind the prompt or the observation in the
same pass: nothing sees them, and the turn overwrites them.

Uniform numbers are those of transformers_engine, keyed by (seed, purpose, step, question, member), so that in float32 both
engines sample the same trajectories. On a GPU a decoding step has one shape, whatever its slots hold, so that a row's numbers
do not depend on the others'; a pass over prompts or observations has the shape of what came together. Two runs of a seed sample
the same tokens as long as the same episodes come together, which a tool of varying duration changes, and otherwise up to
rounding.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from functools import partial

import torch

from igpo_core.attention import require_packable
from igpo_core.clock import now
from igpo_core.config import Decoding, RolloutConfig
from igpo_core.environments.base import Environment
from igpo_core.errors import ConfigError
from igpo_core.logprobs import belief_logprobs
from igpo_core.policies import Policy
from igpo_core.protocol import AnswerProbe
from igpo_core.rollout.rows import RolloutTimes, Row, begin, call_tools
from igpo_core.rollout.slots import Block, Sampling, SlotModel
from igpo_core.rollout.tool_threads import ToolThreads
from igpo_core.seeds import numpy_rng
from igpo_core.trajectory import Observation, Question, Trajectory

STEPS_BETWEEN_LOOKS = 4  # tokens that are sampled before anyone asks which turns have ended
TOKENS_A_PASS = 16_384  # of prompts, observations and probes
ROWS_TOGETHER = 8  # a pass over fewer than one slot in so many waits for more, while others sample
PATIENCE = 0.005  # seconds that a look waits for tools, so that quick ones come together; the device samples meanwhile
CALLS = 64  # of tools, at a time


@dataclass
class _Episode(Row):
    """uniforms: one number for each token that may be sampled, [max_turns * max_new_tokens], float64. cached: tokens of the
    history that are in its slot. probes: behind each of its histories."""

    uniforms: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    cached: int = 0
    slot: int = -1
    probes: Sequence[AnswerProbe] = ()


Probes = Callable[[Question], Sequence[AnswerProbe]]


def require_half(device: str, half: bool) -> None:
    """Raise ConfigError for a policy that computes in float32 on a GPU."""
    if device == "cuda" and not half:
        raise ConfigError(
            "rollout.engine.kind=continuous computes in bfloat16 on a GPU (torch's flash kernel knows no float32): set "
            "rollout.engine.kind=transformers, or of a pretrained policy policy.dtype=bfloat16"
        )


class ContinuousRollout:
    """The engine of one policy, which keeps its cache and its graphs from step to step."""

    def __init__(self, policy: Policy) -> None:
        """Raise ConfigError for a policy that the engine cannot run."""
        require_packable(policy.model)
        require_half(policy.model.device.type, policy.half)
        self._policy = policy
        self._model: SlotModel | None = None

    @torch.no_grad()
    def __call__(
        self,
        policy: Policy,
        environment: Environment,
        questions: Sequence[Question],
        config: RolloutConfig,
        *,
        members: int,
        key: tuple[int, str, int],
        decoding: Decoding = "sampled",
        probes: Probes | None = None,
        times: RolloutTimes | None = None,
        places: Sequence[int] | None = None,
    ) -> list[Trajectory]:
        """As igpo_core.rollout.transformers_engine.rollout, of the policy that the engine was made for."""
        if policy is not self._policy:
            raise ValueError("this engine was made for another policy: it has the other one's weights and cache")
        started, times = now(policy.model.device), times or RolloutTimes()
        seed, purpose, step = key
        episodes = []
        for place, question in zip(places or range(len(questions)), questions, strict=True):
            first = begin(policy, question, place, config)
            asked = tuple(probes(question)) if probes is not None else ()
            if any(probe.prefix_ids != asked[0].prefix_ids for probe in asked):
                raise ValueError("the probes of a question must share their prefix")
            for member in range(members):
                uniforms = torch.from_numpy(
                    numpy_rng(seed, purpose, step, place, member).random(config.max_turns * config.max_new_tokens)
                )
                episodes.append(
                    _Episode(
                        question, first.group, list(first.ids), first.prompt_length, uniforms=uniforms, probes=asked
                    )
                )
        if not episodes:
            return []
        slots = min(config.batch_size, len(episodes))
        model = self._fitting(slots, config, max((_room(item.probes) for item in episodes), default=0))
        sampling = Sampling(config.temperature, decoding == "greedy", config.max_new_tokens)
        threads = ToolThreads(CALLS)
        try:
            _Run(policy, environment, config, model, slots, sampling, times, threads, episodes).play()
        finally:
            threads.close()
        times.total += now(policy.model.device) - started
        return [episode.finished() for episode in episodes]

    def _fitting(self, slots: int, config: RolloutConfig, probes: int) -> SlotModel:
        """A model of at least so many slots, with the policy's weights of now."""
        capacity = -(-(config.max_tokens + probes) // 128) * 128
        held = self._model
        if held is None or slots > held.slots or capacity > held.capacity or config.max_new_tokens > held.budget:
            if held is not None:
                slots, capacity = max(slots, held.slots), max(capacity, held.capacity)
            self._model = held = None  # its cache goes before the new one comes
            self._model = held = SlotModel(self._policy, slots, capacity, config.max_new_tokens)
        held.refresh()
        return held


def _room(probes: Sequence[AnswerProbe]) -> int:
    """Columns behind a history that its probes take: the answers follow one another in the same place."""
    return max((len(probe.prefix_ids) + len(probe.answer_ids) for probe in probes), default=0)


class _Run:
    """One call of the engine. slots: how many it uses; its episodes wait, hold a slot, or are finished."""

    def __init__(
        self,
        policy: Policy,
        environment: Environment,
        config: RolloutConfig,
        model: SlotModel,
        slots: int,
        sampling: Sampling,
        times: RolloutTimes,
        threads: ToolThreads,
        episodes: Sequence[_Episode],
    ) -> None:
        self.policy, self.environment, self.config, self.model = policy, environment, config, model
        self.slots, self.sampling, self.times, self.threads = slots, sampling, times, threads
        self.waiting = deque(episodes)
        self.free = list(range(slots))[::-1]
        self.blocks: list[tuple[_Episode, list[int]]] = []  # what waits for a pass, behind `cached` tokens
        self.sampling_in: dict[int, _Episode] = {}  # by slot
        self.calling: dict[Future[tuple[Observation, float]], _Episode] = {}
        self.called = 0.0  # seconds of all episodes' tool calls
        self.prompts: dict[str, dict[int, _Episode]] = {}  # by group and slot: who has the group's prompt in its slot
        self.prompt_scores: dict[str, tuple[float, ...]] = {}

    def play(self) -> None:
        """Every episode to its end."""
        episodes = len(self.waiting)
        while self.waiting or self.blocks or self.sampling_in or self.calling:
            self._admit()
            at_work = self.slots - len(self.free)  # the last episodes do not wait for as many as fill all slots
            if self.blocks and (not self.sampling_in or len(self.blocks) * ROWS_TOGETHER >= at_work):
                self._pass()
            if self.sampling_in:
                self.model.decode(self.slots, STEPS_BETWEEN_LOOKS, self.sampling)
            self._collect()  # while the device samples
            self._look()
        self.times.tools += self.called / episodes

    def _admit(self) -> None:
        """Give free slots to episodes that wait. Who comes with its group, or finds one of it at work, takes over its prompt."""
        copies: list[tuple[_Episode, _Episode]] = []  # whose prompt, for whom
        fresh = False
        while self.free and self.waiting:
            episode = self.waiting.popleft()
            episode.slot = self.free.pop()
            there = self.prompts.setdefault(episode.group, {})
            source = next(iter(there.values()), None)
            if source is None:
                self.blocks.append((episode, list(episode.ids)))
                fresh = True
            else:
                copies.append((source, episode))
            there[episode.slot] = episode
        if fresh:
            self._pass()
        if not copies:
            return
        targets = [episode for _, episode in copies]
        longest = max(episode.prompt_length for episode in targets)  # what is behind a shorter one is overwritten
        self.model.copy([source.slot for source, _ in copies], [episode.slot for episode in targets], longest)
        for episode in targets:
            episode.cached = episode.prompt_length - 1
            if episode.probes:
                episode.answer_scores.append(self.prompt_scores[episode.group])
        self._begin(targets)

    def _collect(self) -> None:
        """Append what tools returned to their episodes' histories. Where nothing else is to be done they are waited for, as long
        as they come one soon after the other: a token costs the same for one slot as for all."""
        if not self.calling:
            return
        if self.sampling_in or self.blocks:
            done, _ = wait(self.calling, PATIENCE)
        else:
            before = 0
            done, others = wait(self.calling, return_when=FIRST_COMPLETED)
            while others and len(done) > before:
                before = len(done)
                done, others = wait(self.calling, PATIENCE)
        for found in [future for future in self.calling if future in done]:  # in the order of asking
            episode = self.calling.pop(found)
            observation, seconds = found.result()
            self.called += seconds
            last = episode.ids[-1]  # sampled, and not in the cache yet
            ids = episode.append_observation(self.policy.protocol, observation, self.config)
            if ids:
                self.blocks.append((episode, [last, *ids]))
            else:
                self._leave(episode)

    def _call(self, episode: _Episode) -> tuple[Observation, float]:
        """In a thread of its own: what the tool answers, and the seconds of the call. Nothing that computes belongs here: threads
        that compute take the interpreter from the one that feeds the device."""
        started = time.perf_counter()
        (observation,) = call_tools(self.environment, [episode])
        return observation, time.perf_counter() - started

    def _pass(self) -> None:
        """Encode all blocks that wait, with their probes, and let the turns behind them begin."""
        while self.blocks:
            taken: list[tuple[_Episode, list[int]]] = []
            tokens = 0
            while self.blocks and (not taken or tokens + self._size(self.blocks[0]) <= TOKENS_A_PASS):
                tokens += self._size(self.blocks[0])
                taken.append(self.blocks.pop(0))
            self._encode(taken)

    @staticmethod
    def _size(block: tuple[_Episode, list[int]]) -> int:
        episode, ids = block
        return len(ids) + _room(episode.probes[:1])

    def _encode(self, taken: list[tuple[_Episode, list[int]]]) -> None:
        started = now(self.model.device)
        feeds = [Block(e.slot, e.cached, [*ids, *_probe_ids(e.probes[:1])]) for e, ids in taken]
        hidden = self.model.feed(feeds)
        if any(episode.probes for episode, _ in taken):
            encoded = now(self.model.device)
            self._score(taken, hidden)
            probing = sum(len(_probe_ids(episode.probes[:1])) for episode, _ in taken)
            share = probing / sum(len(block.ids) for block in feeds)
            self.times.scoring += share * (encoded - started) + now(self.model.device) - encoded
        for episode, ids in taken:
            episode.cached += len(ids) - 1  # the last one is fed again, by the step that samples behind it
        self._begin([episode for episode, _ in taken])

    def _score(self, taken: list[tuple[_Episode, list[int]]], hidden: torch.Tensor) -> None:
        """Read the probes of a pass; answers after the first are passes of their own, behind the prefix that is there."""
        scores: list[list[float]] = [[] for _ in taken]
        starts, at = [], 0
        for episode, ids in taken:
            starts.append(at)
            at += len(ids) + len(_probe_ids(episode.probes[:1]))
        # the hidden state that predicts an answer's first token: of the last token before it
        before = [
            start + len(ids) + len(episode.probes[0].prefix_ids) - 1 if episode.probes else 0
            for start, (episode, ids) in zip(starts, taken, strict=True)
        ]
        first = hidden[torch.tensor(before, device=hidden.device)]
        states: list[torch.Tensor] = []  # by number of the answer, and so are the others
        targets: list[int] = []
        owners: list[tuple[int, int]] = []  # place in `taken` and tokens of the answer
        for number in range(max(len(episode.probes) for episode, _ in taken)):
            asked = [i for i, (episode, _) in enumerate(taken) if len(episode.probes) > number]
            answers = [list(taken[i][0].probes[number].answer_ids) for i in asked]
            places: list[int] = []  # of the states that predict the answers' tokens, in [first, fed]
            if number == 0:
                fed = hidden
                for i, ids in zip(asked, answers, strict=True):
                    places += [i, *range(len(first) + before[i] + 1, len(first) + before[i] + len(ids))]
            else:
                blocks, at = [], len(first)
                for i, ids in zip(asked, answers, strict=True):
                    episode, own = taken[i]
                    if len(ids) > 1:
                        start = episode.cached + len(own) + len(episode.probes[0].prefix_ids)
                        blocks.append(Block(episode.slot, start, ids[:-1]))
                    places += [i, *range(at, at + len(ids) - 1)]
                    at += len(ids) - 1
                fed = self.model.feed(blocks) if blocks else hidden[:0]
            states.append(torch.cat([first, fed])[torch.tensor(places, device=hidden.device)])
            targets += [token for ids in answers for token in ids]
            owners += [(i, len(ids)) for i, ids in zip(asked, answers, strict=True)]
        # the policy's own head: the engine's is rounded to bfloat16, and beliefs are projected in float32
        head, asked_for = self.policy.model.get_output_embeddings(), torch.tensor(targets, device=hidden.device)
        values = iter(belief_logprobs(head, torch.cat(states), asked_for).tolist())
        for i, count in owners:
            scores[i].append(math.fsum(next(values) for _ in range(count)) / count)
        for (episode, _), found in zip(taken, scores, strict=True):
            if episode.probes:
                episode.answer_scores.append(tuple(found))
                if not episode.turns:
                    self.prompt_scores[episode.group] = tuple(found)

    def _begin(self, episodes: Sequence[_Episode]) -> None:
        budget = self.config.max_new_tokens
        drawn = [sum(turn.end - turn.start for turn in episode.turns) for episode in episodes]
        self.model.begin_turns(
            [episode.slot for episode in episodes],
            [episode.cached for episode in episodes],
            [episode.ids[-1] for episode in episodes],
            torch.stack([e.uniforms[n : n + budget] for e, n in zip(episodes, drawn, strict=True)]),
        )
        for episode in episodes:
            self.sampling_in[episode.slot] = episode

    def _look(self) -> None:
        """Take the turns that have ended: they answer, fail, or call a tool."""
        if not self.sampling_in:
            return
        active, places = torch.stack([self.model.active.long(), self.model.places]).tolist()
        over = [slot for slot in self.sampling_in if not active[slot]]
        if not over:
            return
        rows = torch.tensor(over, device=self.model.device)
        sampled = zip(over, self.model.ids[rows].tolist(), self.model.logprobs[rows].tolist(), strict=True)
        for slot, ids, logprobs in sampled:
            episode, count = self.sampling_in.pop(slot), places[slot]
            episode.cached += count  # all but the last one, and the one before the turn
            episode.append_turn(self.policy, ids[:count], logprobs[:count], self.config)
            if episode.status is None:
                self.calling[self.threads.submit(partial(self._call, episode))] = episode
            else:
                self._leave(episode)

    def _leave(self, episode: _Episode) -> None:
        del self.prompts[episode.group][episode.slot]
        self.model.release([episode.slot])
        self.free.append(episode.slot)


def _probe_ids(probes: Sequence[AnswerProbe]) -> list[int]:
    """What is fed of a probe: the last answer token is predicted, and predicts nothing."""
    return [token for probe in probes for token in (*probe.prefix_ids, *probe.answer_ids[:-1])]
