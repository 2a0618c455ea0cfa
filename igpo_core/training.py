"""One training step after another: rollouts, rewards, advantages, update; accelerate inside."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from igpo_core.batching import packed_batches, token_batches
from igpo_core.checkpoints import CheckpointState, load_weights, read_checkpoint, write_checkpoint, write_folder
from igpo_core.clock import now
from igpo_core.config import ContinuousEngine, ExperimentConfig, VllmEngine, fingerprint
from igpo_core.config.reward import LaggedScorer, TurnGains
from igpo_core.credit import Credit, assign_credit
from igpo_core.environments.base import Environment
from igpo_core.errors import CheckpointError, ConfigError, DataError, IgpoError
from igpo_core.estimates import wants_checkpointing
from igpo_core.metrics import rollout_metrics
from igpo_core.objective import LossTerms, policy_loss, token_weights
from igpo_core.policies import Policy, export_policy, save_policy
from igpo_core.ranks import ALONE, Ranks, join_group
from igpo_core.rewards.contrast import Contrast, contrast_pool
from igpo_core.rewards.scoring import Scored, answer_probes, require_room, reward_trajectories
from igpo_core.rollout.continuous_engine import ContinuousRollout
from igpo_core.rollout.mismatch import Drift, mismatch_metrics, own_logprobs
from igpo_core.rollout.rows import Engine, RolloutTimes, prompt_fits
from igpo_core.rollout.served_engine import ServedEngine
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.sampled import SampledLogprobs, packs
from igpo_core.seeds import python_rng
from igpo_core.sharding import full_state, is_sharded, shard, whole_weights
from igpo_core.trajectory import Question, Trajectory
from igpo_core.update import numbers, token_advantages, token_batch, training_mode, update_metrics
from igpo_core.weights import Snapshot, copy_into, has_adapter, require_no_dropout, trained


@dataclass(frozen=True)
class StepResult:
    """step: steps done, this one included. metrics: names as in docs/method.md."""

    step: int
    metrics: dict[str, float]
    scored: list[Scored]
    credit: Credit


class Trainer:
    """Trains `policy` in place. Every random draw is keyed by (config.seed, purpose, step), so that a trainer restored
    from a checkpoint at step k makes steps k+1, k+2, .. with the same bits as one that never stopped."""

    def __init__(self, config: ExperimentConfig, environment: Environment, policy: Policy) -> None:
        self.config, self.environment, self.policy = config, environment, policy
        every = environment.tasks("train")
        self.questions = [question for question in every if prompt_fits(policy, config.rollout, question)]
        self.left_out = len(every) - len(self.questions)
        if not self.questions:
            raise DataError(
                f"none of the {len(every)} train questions leaves room for a turn within rollout.max_tokens="
                f"{config.rollout.max_tokens}: raise it, or give shorter questions"
            )
        self._names = contrast_pool(environment) if config.reward.others else ()
        require_room(policy, environment, self.questions, config, self.contrast(0))
        settings = config.optimizer
        # float32 on CPU and no autocast: the ratio before the first update is 1 and beliefs are exact
        device = policy.model.device.type
        join_group(device)  # accelerate would make one that listens on all interfaces
        self.accelerator = Accelerator(mixed_precision="no", cpu=device == "cpu")
        self.ranks = Ranks(self.accelerator.process_index, self.accelerator.num_processes)
        if config.training.world != self.ranks.count:  # accelerate falls back to one process where it finds no backend
            raise ConfigError(
                f"training.processes={config.training.processes} on training.nodes={config.training.nodes} makes "
                f"{config.training.world}, and "
                f"{self.ranks.count} found one another: launch them as the flow train does (tasks/runs/together.py), and see "
                "that torch.distributed has gloo or nccl"
            )
        self.checkpointing = wants_checkpointing(config, policy.model)
        if self.checkpointing:
            require_no_dropout(policy.model)
            # its name in transformers 5.17; 5.23 has it too, and calls it deprecated
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.packed = packs(policy, config.training.sharding)
        self.sampled = sampled = SampledLogprobs(policy.model, packed=self.packed)
        if config.training.sharding == "fsdp":
            shard(sampled, policy.model)
        optimizer = torch.optim.AdamW(
            trained(policy.model),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        warmup = max(1, settings.warmup_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / warmup))
        # accelerate's own scheduler would step once for each process
        self.optimizer = self.accelerator.prepare(optimizer)
        self.model = sampled if is_sharded(sampled) else self.accelerator.prepare(sampled)
        self.scheduler = scheduler
        if is_sharded(sampled):  # its units know one another from the first pass of the whole on
            with torch.no_grad():
                self.model([], policy.protocol.pad_id, 1.0, False)
        self.reference = Snapshot(policy.model) if settings.kl_coefficient else None
        self.scorer = None  # the older weights whose beliefs count; None: the policy's own
        if config.reward.needs_beliefs and config.reward.older_scorer:
            self.scorer = Snapshot(policy.model)
        engine = config.rollout.engine
        self.served = ServedEngine(engine, self.ranks.number) if isinstance(engine, VllmEngine) else None
        if self.served is not None and config.rollout.temperature != 1:
            self.served.require_processed_logprobs(policy.protocol.prompt(self.questions[0].text))
        self._own_engine = ContinuousRollout(policy) if isinstance(engine, ContinuousEngine) else rollout
        self._served_step: int | None = None  # whose weights the servers have
        self.step = 0
        self.whole = True  # False only while an update is applied: then weights belong to no step and are not saved
        self.counters = {"rollouts": 0.0, "questions": 0.0, "sampled_tokens": 0.0, "seconds": 0.0}

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        training = self.config.training
        if self.step >= training.steps:
            return True
        return training.amount is not None and self.counters[training.budget] >= training.amount

    def whole_weights(self) -> AbstractContextManager[None]:
        """What forward passes without gradient run within, for which no other process waits; all processes enter it."""
        return whole_weights(self.model)

    def contrast(self, step: int) -> Contrast | None:
        """Return the other answers of a step that gains are compared with; None where the arm has no contrast."""
        count = self.config.reward.others
        return Contrast(self.environment, self._names, count, self.config.seed, step) if count else None

    @property
    def _lag(self) -> int | None:
        """Steps between copies of a lagged scorer; None where the arm has another one."""
        reward = self.config.reward
        return (
            reward.scorer.steps if isinstance(reward, TurnGains) and isinstance(reward.scorer, LaggedScorer) else None
        )

    def run_step(self) -> StepResult:
        """One step. Raises IgpoError, naming the step, when the loss or the gradient is not finite."""
        device = self.policy.model.device
        started, config, step = now(device), self.config, self.step
        times = RolloutTimes()
        asked = self.ranks.share(self._step_questions(step))
        own = self._roll_out(asked, times)
        rolled = now(device)
        if self.scorer is not None and self._lag and step % self._lag == 0:
            self.scorer.take()
        with self.scorer.instead() if self.scorer else nullcontext(), self.whole_weights():
            scored = self._reward(own, [place for place, _ in asked])
        trajectories = [item.trajectory for item in scored]
        if config.reward.needs_beliefs and not self._rides:  # passes of their own
            scored_in = now(device) - rolled
            times.scoring += scored_in
            times.total += scored_in
        groups = [item.trajectory.group for item in scored]
        credit = assign_credit(
            [item.turn_rewards() for item in scored], groups, config.reward, seed=config.seed, step=step
        )
        # before the update: whoever is told to end between it and its line of metrics has to give the step up
        seen = rollout_metrics(scored, credit, groups)
        weighed = now(device)
        update = self._update(trajectories, credit.turns, credit.queries)
        ended = now(device)
        self.step += 1
        # a budget of seconds ends the run by the first one's clock: all take as many steps
        self._count(trajectories, self.ranks.agreed(ended - started))
        self.whole = True
        metrics = {
            **seen,
            **update,
            "time/rollout": times.total - times.tools - times.scoring,
            "time/search": times.tools,
            "time/scoring": times.scoring,
            "time/update": ended - weighed,
            "time/step": ended - started,
            **{f"progress/{name}": value for name, value in self.counters.items()},
            **mismatch_metrics(trajectories, config.rollout.engine),
        }
        return StepResult(self.step, metrics, scored, credit)

    @property
    def _rides(self) -> bool:
        """Whether beliefs are read in the forward passes of the rollout."""
        return self.config.reward.beliefs_while_rolling_out and self.served is None

    def engine(self) -> Engine:
        """What samples with the weights of now; servers are given them first. All processes call it."""
        if self.served is None:
            return self._own_engine
        if self._served_step != self.step:
            weights = full_state(self.policy.model)
            if self.ranks.first:
                write = partial(save_policy, self.policy, weights=weights)
                self.served.load(
                    partial(export_policy, self.policy) if has_adapter(self.policy.model) else write, self.step
                )
            self.ranks.agreed(None)
            self._served_step = self.step
        return self.served

    def load_policy(self, folder: Path) -> None:
        """Take other weights, to evaluate them. All processes call it."""
        load_weights(folder, self.policy.model)
        self._served_step = None

    def _roll_out(self, asked: Sequence[tuple[int, Question]], times: RolloutTimes) -> list[Trajectory]:
        """The trajectories of this process's questions of the step, with the trainer's own log-probabilities."""
        config = self.config
        questions, places = [question for _, question in asked], [place for place, _ in asked]
        purpose = f"rollout {config.replicate}" if config.replicate else "rollout"
        key = (config.seed, purpose, self.step)
        size = config.rollout.group_size
        if self.served is None:
            probes = None
            if self._rides:
                probes = answer_probes(self.policy, self.environment, config.reward, self.contrast(self.step))
            with self.whole_weights():
                return self._own_engine(
                    self.policy, self.environment, questions, config.rollout,
                    members=size, key=key, probes=probes, times=times, places=places,
                )  # fmt: skip
        engine = self.engine()
        found = engine(
            self.policy, self.environment, questions, config.rollout, members=size, key=key, times=times, places=places
        )
        device = self.policy.model.device
        started = now(device)
        with self.whole_weights():
            found = own_logprobs(self.policy, found, config)
        times.total += now(device) - started
        return found

    def _reward(self, own: list[Trajectory], places: Sequence[int]) -> list[Scored]:
        """All trajectories of the step, rewarded: each process its own, unless a gain needs those of other questions."""
        config, size = self.config, self.config.rollout.group_size
        placed = [(places[n // size] * size + n % size, item) for n, item in enumerate(own)]
        key = (config.seed, self.step)
        if isinstance(config.reward, TurnGains) and config.reward.credit == "query":
            return reward_trajectories(
                self.policy,
                self.environment,
                self.ranks.gathered(placed),
                config.reward,
                key=key,
                served=not self._rides,
            )
        scored = (
            reward_trajectories(
                self.policy,
                self.environment,
                own,
                config.reward,
                key=key,
                served=not self._rides,
                contrast=self.contrast(self.step),
            )
            if own
            else []
        )
        return self.ranks.gathered([(place, item) for (place, _), item in zip(placed, scored, strict=True)])

    def _step_questions(self, step: int) -> list[Question]:
        """The questions of a step: consecutive places in an endless run of permutations, each keyed by its number."""
        count, size = self.config.rollout.questions, len(self.questions)
        chosen = []
        orders: dict[int, list[int]] = {}
        for place in range(step * count, (step + 1) * count):
            lap = place // size
            if lap not in orders:
                orders[lap] = list(range(size))
                python_rng(self.config.seed, "question order", lap).shuffle(orders[lap])
            chosen.append(self.questions[orders[lap][place % size]])
        return chosen

    def _count(self, trajectories: Sequence[Trajectory], seconds: float) -> None:
        self.counters["rollouts"] += len(trajectories)
        self.counters["questions"] += self.config.rollout.questions
        self.counters["sampled_tokens"] += sum(item.sampled_tokens for item in trajectories)
        self.counters["seconds"] += seconds

    def _update(
        self,
        trajectories: Sequence[Trajectory],
        advantages: Sequence[Sequence[float]],
        queries: Sequence[Sequence[float]] | None = None,
    ) -> dict[str, float]:
        settings, limits = self.config.optimizer, self.config.rollout
        rows = [
            token_advantages(self.policy.protocol, item, row, queries[i] if queries else None)
            for i, (item, row) in enumerate(zip(trajectories, advantages, strict=True))
        ]
        groups = {item.group for item, row in zip(trajectories, rows, strict=True) if any(row)}
        weights = token_weights(
            [item.sampled_tokens for item in trajectories],
            settings.denominator,
            most=limits.max_turns * limits.max_new_tokens,
            live=[item.group in groups for item in trajectories] if settings.dead_groups == "drop" else None,
        )
        # A trajectory without any advantage has no gradient unless KL or entropy is on: it costs no pass. A dropped one has none.
        regular = bool(settings.kl_coefficient or settings.entropy_coefficient)
        sizes = [len(item.token_ids) for item in trajectories]
        active = [i for i, row in enumerate(rows) if (regular and weights[i]) or any(row)]
        metrics: dict[str, float] = {}
        first: list[torch.Tensor] = []  # by micro-batch: what the ratios of further updates are to
        own_drift: list[Drift] = []  # of the first update: the engine sampled with these very weights
        for update in range(settings.updates_per_step):
            for parameter in trained(self.policy.model):  # zeros, not None: AdamW must also move on an empty update
                parameter.grad = torch.zeros_like(parameter)
            done: list[LossTerms] = []
            tokens = padded = 0
            batching = packed_batches if self.packed else token_batches
            batches = batching(active, sizes, settings.tokens_per_batch)
            own, rounds = batches[self.ranks.number :: self.ranks.count], -(-len(batches) // self.ranks.count)
            for number in range(rounds):
                # gradients are summed over processes at the last one, for which all must come: an idle one with no weight
                batch = own[number] if number < len(own) else batches[0][:1]
                scale = 1.0 if number < len(own) else 0.0
                items = [trajectories[i] for i in batch]
                waits = nullcontext() if number == rounds - 1 else self.accelerator.no_sync(self.model)
                # the way back is within all of them, for checkpointing computes layers again there
                with waits, self.sampled.packing():
                    reference = self._reference_logprobs(items)
                    with training_mode(self.model, self.checkpointing):
                        terms, logprobs = self._loss(
                            items,
                            [rows[i] for i in batch],
                            [scale * weights[i] for i in batch],
                            first[number] if update else None,
                            reference,
                        )
                        self.accelerator.backward(terms.total * self.ranks.count)  # for it takes their mean
                if not update:
                    first.append(logprobs)
                    if scale and self._own_engine is not rollout:
                        own_drift.append(Drift.of(logprobs, items))
                if scale:
                    # read at the end: each number that is read lets a GPU wait
                    done.append(replace(terms, total=terms.total.detach()))
                    lengths = [sizes[i] for i in batch]
                    tokens += sum(lengths)
                    padded += sum(lengths) if self.packed else max(lengths) * len(batch)
            norm = self.accelerator.clip_grad_norm_(trained(self.policy.model), settings.max_grad_norm)
            if isinstance(norm, DTensor):
                norm = norm.full_tensor()
            every = self.ranks.each(([numbers(terms) for terms in done], tokens, padded))
            share = math.fsum(w * item.sampled_tokens for w, item in zip(weights, trajectories, strict=True))
            metrics = update_metrics([part for several, _, _ in every for part in several], float(norm), share)
            if self.reference is None:
                del metrics["train/kl"]  # nothing was compared
            tokens, padded = sum(n for _, n, _ in every), sum(n for _, _, n in every)
            metrics["train/padding_share"] = 1 - tokens / padded if padded else 0.0
            if not all(map(math.isfinite, metrics.values())):
                raise IgpoError(
                    f"step {self.step + 1}: the loss or the gradient is not finite ({metrics}); the weights before this "
                    "step are unharmed in the last checkpoint. Lower optimizer.learning_rate or reward.gamma."
                )
            self.whole = False
            self.optimizer.step()
        metrics |= Drift.metrics([one for several in self.ranks.each(own_drift) for one in several])
        metrics["train/learning_rate"] = float(self.scheduler.get_last_lr()[0])
        self.scheduler.step()
        return metrics

    def _reference_logprobs(self, trajectories: Sequence[Trajectory]) -> torch.Tensor | None:
        """Return what the reference gives the sampled tokens; None without one."""
        if self.reference is None:
            return None
        pad, temperature = self.policy.protocol.pad_id, self.config.rollout.temperature
        with torch.no_grad(), self.reference.instead(), self.policy.precision():
            logprobs: torch.Tensor = self.model(trajectories, pad, temperature, False)[0]
        return logprobs

    def _loss(
        self,
        trajectories: Sequence[Trajectory],
        advantages: Sequence[Sequence[float]],
        weights: Sequence[float],
        first: torch.Tensor | None,
        reference: torch.Tensor | None,
    ) -> tuple[LossTerms, torch.Tensor]:
        """Return the loss of a micro-batch, and the log-probabilities of its sampled tokens without gradient. first: those of the
        step's first update, None in the first itself. reference: those of the reference, None without one."""
        settings = self.config.optimizer
        temperature = self.config.rollout.temperature
        pad = self.policy.protocol.pad_id
        with self.policy.precision():
            logprobs, entropies = self.model(trajectories, pad, temperature, settings.entropy_coefficient > 0)
        terms = policy_loss(
            token_batch(trajectories, advantages, weights, self.config, logprobs, entropies, reference, first),
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            kl_coefficient=settings.kl_coefficient,
            entropy_coefficient=settings.entropy_coefficient,
        )
        return terms, logprobs.detach()

    def save(self, folder: Path, *, alone: bool = False) -> None:
        """Write everything needed to go on, atomically (igpo_core.checkpoints). All processes call it, unless the first one
        does alone, as it can where it has all weights."""
        state = CheckpointState(
            configuration=fingerprint(self.config.identity()),
            step=self.step,
            counters=self.counters,
            scheduler=self.scheduler.state_dict(),
            torch_rng=torch.get_rng_state(),
            tensors=self._tensors(),
        )
        write_checkpoint(folder, self.policy, state, full_state(self.policy.model), ALONE if alone else self.ranks)

    def save_policy(self, folder: Path) -> None:
        """Write the policy alone. All processes call it."""
        weights = full_state(self.policy.model)
        if self.ranks.first:
            write_folder(folder, lambda path: save_policy(self.policy, path, weights))
        self.ranks.agreed(None)

    def _tensors(self) -> dict[str, Any]:
        """The optimizer's moments by names of parameters, and a lagged scorer's weights: as this process holds them."""
        tensors: dict[str, Any] = {"optimizer": get_optimizer_state_dict(self.policy.model, self.optimizer.optimizer)}
        if self.scorer is not None and self._lag:
            tensors["scorer"] = {str(place): tensor for place, tensor in enumerate(self.scorer.kept)}
        return tensors

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint. Raises CheckpointError when it is damaged or of another configuration."""
        own = self._tensors()
        state = read_checkpoint(folder, self.policy, own)
        if state.configuration != fingerprint(self.config.identity()):
            raise CheckpointError(
                f"{folder} is of another configuration than this run: going on from it would mix two runs. Delete the "
                "folder, or name another checkpoint."
            )
        options = StateDictOptions(full_state_dict=state.tensors is not own)  # of shards each process has its part
        set_optimizer_state_dict(
            self.policy.model, self.optimizer.optimizer, state.tensors["optimizer"], options=options
        )
        self.scheduler.load_state_dict(state.scheduler)
        torch.set_rng_state(state.torch_rng)
        if self.scorer is not None and "scorer" in state.tensors:
            kept = {str(place): tensor for place, tensor in enumerate(self.scorer.kept)}
            copy_into(kept, state.tensors["scorer"])
        self.step, self.counters = state.step, dict(state.counters)
