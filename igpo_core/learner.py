"""The learner: a policy's weights, its optimizer, and one update on the trajectories of a step; accelerate inside."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
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
from igpo_core.config import ContinuousEngine, ExperimentConfig
from igpo_core.errors import IgpoError
from igpo_core.estimates import wants_checkpointing
from igpo_core.objective import LossTerms, policy_loss, token_weights
from igpo_core.policies import Policy
from igpo_core.ranks import Ranks
from igpo_core.rollout.mismatch import Drift
from igpo_core.sampled import SampledLogprobs, packs
from igpo_core.sharding import is_sharded, shard, whole_weights
from igpo_core.trajectory import Trajectory
from igpo_core.update import numbers, token_advantages, token_batch, training_mode, update_metrics
from igpo_core.weights import Snapshot, require_no_dropout, trained


@dataclass(frozen=True)
class _Work:
    """What an update learns from: rows[i][k]: advantage of the k-th sampled token of trajectory i; weights[i]: of each of its
    tokens in the loss; active: trajectories that have a gradient."""

    trajectories: Sequence[Trajectory]
    rows: Sequence[Sequence[float]]
    weights: Sequence[float]
    active: Sequence[int]


@dataclass
class _Passed:
    """What this process's passes of one update left, by micro-batch, and how many tokens they had, without and with padding."""

    terms: list[LossTerms] = field(default_factory=list)
    logprobs: list[torch.Tensor] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    tokens: int = 0
    padded: int = 0


class Learner:
    """Updates `policy` in place, by all processes together."""

    def __init__(self, config: ExperimentConfig, policy: Policy, accelerator: Accelerator, ranks: Ranks) -> None:
        self.config, self.policy, self.accelerator, self.ranks = config, policy, accelerator, ranks
        settings = config.optimizer
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
        self.optimizer = accelerator.prepare(optimizer)
        self.model = sampled if is_sharded(sampled) else accelerator.prepare(sampled)
        self.scheduler = scheduler
        if is_sharded(sampled):  # its units know one another from the first pass of the whole on
            with torch.no_grad():
                self.model([], policy.protocol.pad_id, 1.0, False)
        self.reference = Snapshot(policy.model) if settings.kl_coefficient else None
        self.whole = True
        """False only while an update is applied: then weights belong to no step and are not saved."""

    def whole_weights(self) -> AbstractContextManager[None]:
        """Return what forward passes without gradient run within, for which no other process waits; all processes enter it."""
        return whole_weights(self.model)

    def update(
        self,
        trajectories: Sequence[Trajectory],
        advantages: Sequence[Sequence[float]],
        queries: Sequence[Sequence[float]] | None = None,
        *,
        step: int,
    ) -> dict[str, float]:
        """Make the updates of a step. Returns train/ metrics.

        advantages[i][t]: of every token sampled in turn t; queries[i][t]: what the tokens of its call share besides; step: the
        one that is made, from 0. Raises IgpoError, naming the step, when the loss or the gradient is not finite.
        """
        work, settings = self._weigh(trajectories, advantages, queries), self.config.optimizer
        metrics: dict[str, float] = {}
        first: list[torch.Tensor] = []  # by micro-batch: what the ratios of further updates are to
        drift: list[Drift] = []  # of the first update: the engine sampled with these very weights
        for update in range(settings.updates_per_step):
            passed = self._accumulate(work, first if update else None)
            if not update:
                first, drift = passed.logprobs, passed.drift
            norm = self.accelerator.clip_grad_norm_(trained(self.policy.model), settings.max_grad_norm)
            metrics = self._measure(work, passed, norm.full_tensor() if isinstance(norm, DTensor) else norm)
            if not all(map(math.isfinite, metrics.values())):
                raise IgpoError(
                    f"step {step + 1}: the loss or the gradient is not finite ({metrics}); the weights before this "
                    "step are unharmed in the last checkpoint. Lower optimizer.learning_rate or reward.gamma."
                )
            self.whole = False
            self.optimizer.step()
        metrics |= Drift.metrics([one for several in self.ranks.all_values(drift) for one in several])
        metrics["train/learning_rate"] = float(self.scheduler.get_last_lr()[0])
        self.scheduler.step()
        return metrics

    def _weigh(
        self,
        trajectories: Sequence[Trajectory],
        advantages: Sequence[Sequence[float]],
        queries: Sequence[Sequence[float]] | None,
    ) -> "_Work":
        """Return what each token is pushed by, and which trajectories need a pass at all."""
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
        active = [i for i, row in enumerate(rows) if (regular and weights[i]) or any(row)]
        return _Work(trajectories, rows, weights, active)

    def _accumulate(self, work: "_Work", first: Sequence[torch.Tensor] | None) -> "_Passed":
        """Leave the gradient of the loss in the weights, summed over micro-batches and processes.

        first: log-probabilities of the step's first update by micro-batch, which ratios are to; None: this is the first.
        """
        # others than the continuous engine have the log-probabilities of a pass as this one
        own_rounding = isinstance(self.config.rollout.engine, ContinuousEngine)
        for parameter in trained(self.policy.model):  # zeros, not None: AdamW must also move on an empty update
            parameter.grad = torch.zeros_like(parameter)
        passed = _Passed()
        sizes = [len(item.token_ids) for item in work.trajectories]
        batching = packed_batches if self.packed else token_batches
        batches = batching(work.active, sizes, self.config.optimizer.tokens_per_batch)
        own, rounds = batches[self.ranks.number :: self.ranks.count], -(-len(batches) // self.ranks.count)
        for number in range(rounds):
            # gradients are summed over processes at the last one, for which all must come: an idle one with no weight
            batch = own[number] if number < len(own) else batches[0][:1]
            scale = 1.0 if number < len(own) else 0.0
            items = [work.trajectories[i] for i in batch]
            waits = nullcontext() if number == rounds - 1 else self.accelerator.no_sync(self.model)
            # the way back is within all of them, for checkpointing computes layers again there
            with waits, self.sampled.packing():
                reference = self._reference_logprobs(items)
                with training_mode(self.model, self.checkpointing):
                    terms, logprobs = self._loss(
                        items,
                        [work.rows[i] for i in batch],
                        [scale * work.weights[i] for i in batch],
                        None if first is None else first[number],
                        reference,
                    )
                    self.accelerator.backward(terms.total * self.ranks.count)  # for it takes their mean
            passed.logprobs.append(logprobs)
            if scale:
                if own_rounding and first is None:
                    passed.drift.append(Drift.of(logprobs, items))
                # read at the end: each number that is read lets a GPU wait
                passed.terms.append(replace(terms, total=terms.total.detach()))
                lengths = [sizes[i] for i in batch]
                passed.tokens += sum(lengths)
                passed.padded += sum(lengths) if self.packed else max(lengths) * len(batch)
        return passed

    def _measure(self, work: "_Work", passed: "_Passed", norm: Any) -> dict[str, float]:
        """Return train/ metrics of an update, over all processes. norm: of the gradient, before it is clipped."""
        every = self.ranks.all_values(([numbers(terms) for terms in passed.terms], passed.tokens, passed.padded))
        share = math.fsum(w * item.sampled_tokens for w, item in zip(work.weights, work.trajectories, strict=True))
        metrics = update_metrics([part for several, _, _ in every for part in several], float(norm), share)
        if self.reference is None:
            del metrics["train/kl"]  # nothing was compared
        tokens, padded = sum(n for _, n, _ in every), sum(n for _, _, n in every)
        metrics["train/padding_share"] = 1 - tokens / padded if padded else 0.0
        return metrics

    def _reference_logprobs(self, trajectories: Sequence[Trajectory]) -> torch.Tensor | None:
        """Return what the reference gives the sampled tokens; None without one."""
        if self.reference is None:
            return None
        pad, temperature = self.policy.protocol.pad_id, self.config.rollout.temperature
        with torch.no_grad(), self.reference.swapped_in(), self.policy.precision():
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
            dual_clip=settings.dual_clip,
        )
        return terms, logprobs.detach()

    def tensors(self) -> dict[str, Any]:
        """Return the optimizer's moments by names of parameters, as this process holds them."""
        state: dict[str, Any] = get_optimizer_state_dict(self.policy.model, self.optimizer.optimizer)
        return state

    def restore(self, moments: dict[str, Any], scheduler: dict[str, Any], *, own: bool) -> None:
        """Go on with these moments and this schedule. own: whether they are this process's part of sharded ones."""
        options = StateDictOptions(full_state_dict=not own)
        set_optimizer_state_dict(self.policy.model, self.optimizer.optimizer, moments, options=options)
        self.scheduler.load_state_dict(scheduler)
