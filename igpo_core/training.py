"""One training step after another.

questions -> Sampler: rollouts, in which the beliefs at turn boundaries are read
          -> scoring: beliefs -> gains, and the outcome
          -> assign_credit: gains and outcomes of a group -> one advantage a turn
          -> Learner: one advantage for every sampled token of its turn -> update
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from igpo_core.checkpoints import CheckpointState, load_weights, read_checkpoint, write_checkpoint, write_folder
from igpo_core.clock import now
from igpo_core.config import ExperimentConfig, fingerprint
from igpo_core.config.reward import TurnGains
from igpo_core.config.variants import LaggedScorer
from igpo_core.credit import Credit, assign_credit
from igpo_core.environments.base import Environment
from igpo_core.errors import CheckpointError, ConfigError, DataError
from igpo_core.learner import Learner
from igpo_core.memory import within_memory
from igpo_core.metrics import rollout_metrics
from igpo_core.policies import Policy, save_policy
from igpo_core.ranks import ALONE, Ranks, join_group
from igpo_core.rewards.contrast import Contrast, contrast_pool
from igpo_core.rewards.room import require_room
from igpo_core.rewards.scoring import Scored, answer_probes, reward_trajectories
from igpo_core.rollout.mismatch import mismatch_metrics
from igpo_core.rollout.rows import Engine, RolloutTimes, prompt_fits
from igpo_core.sampler import Sampler
from igpo_core.sharding import full_state
from igpo_core.trajectory import Question, Trajectory
from igpo_core.weights import Snapshot, copy_into


@dataclass(frozen=True)
class StepResult:
    """What one step made."""

    step: int
    """Steps done, this one included."""
    metrics: dict[str, float]
    """Names as in docs/method.md."""
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
        # float32 on CPU and no autocast: the ratio before the first update is 1 and beliefs are exact
        device = policy.model.device.type
        join_group(device)  # accelerate would make one that listens on all interfaces
        accelerator = Accelerator(mixed_precision="no", cpu=device == "cpu")
        self.ranks = Ranks(accelerator.process_index, accelerator.num_processes)
        if config.training.world != self.ranks.count:  # accelerate falls back to one process where it finds no backend
            raise ConfigError(
                f"training.processes={config.training.processes} on training.nodes={config.training.nodes} makes "
                f"{config.training.world}, and "
                f"{self.ranks.count} found one another: launch them as the flow train does (tasks/runs/together.py), and see "
                "that torch.distributed has gloo or nccl"
            )
        self.learner = Learner(config, policy, accelerator, self.ranks)
        self.scorer = None  # the older weights whose beliefs count; None: the policy's own
        if config.reward.needs_beliefs and config.reward.older_scorer:
            self.scorer = Snapshot(policy.model)
        self.sampler = Sampler(config, environment, policy, self.questions, self.ranks, self.whole_weights)
        self.step = 0
        self.counters = {"rollouts": 0.0, "questions": 0.0, "sampled_tokens": 0.0, "seconds": 0.0}

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        training = self.config.training
        if self.step >= training.steps:
            return True
        return training.amount is not None and self.counters[training.budget] >= training.amount

    @property
    def whole(self) -> bool:
        """False only while an update is applied: then weights belong to no step and are not saved."""
        return self.learner.whole

    def whole_weights(self) -> AbstractContextManager[None]:
        """Return what forward passes without gradient run within, for which no other process waits; all processes enter it."""
        return self.learner.whole_weights()

    def contrast(self, step: int) -> Contrast | None:
        """Return the other answers of a step that gains are compared with; None where the arm has no contrast."""
        count = self.config.reward.others
        return Contrast(self.environment, self._names, count, self.config.seed, step) if count else None

    def run_step(self) -> StepResult:
        """Make one step. Raises IgpoError, naming the step, when the loss or the gradient is not finite, or memory runs out."""
        device = self.policy.model.device
        started, config, step = now(device), self.config, self.step
        times = RolloutTimes()
        asked = self.ranks.share(self.sampler.questions_of(step))
        with within_memory("rollout", config, step):
            own = self.roll_out(asked, times)
        rolled = now(device)
        if self.scorer is not None and self._lag and step % self._lag == 0:
            self.scorer.refresh()
        scorer = self.scorer.swapped_in() if self.scorer else nullcontext()
        with within_memory("beliefs", config, step), scorer, self.whole_weights():
            scored = self._reward(own, [place for place, _ in asked])
        trajectories = [item.trajectory for item in scored]
        if config.reward.needs_beliefs and not self._probes_ride:  # passes of their own
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
        with within_memory("update", config, step):
            update = self.learner.update(trajectories, credit.turns, credit.queries, step=step)
        ended = now(device)
        self.step += 1
        # a budget of seconds ends the run by the first one's clock: all take as many steps
        self._count(trajectories, self.ranks.broadcast(ended - started))
        self.learner.whole = True
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
    def _lag(self) -> int | None:
        """Steps between copies of a lagged scorer; None where the arm has another one."""
        reward = self.config.reward
        return (
            reward.scorer.steps if isinstance(reward, TurnGains) and isinstance(reward.scorer, LaggedScorer) else None
        )

    @property
    def _probes_ride(self) -> bool:
        """Whether beliefs are read in the forward passes of the rollout."""
        return self.config.reward.beliefs_while_rolling_out and self.sampler.served is None

    def engine(self) -> Engine:
        """Return the rollout engine after syncing the current weights to the servers. All processes call it."""
        return self.sampler.engine(self.step)

    def roll_out(self, asked: Sequence[tuple[int, Question]], times: RolloutTimes) -> list[Trajectory]:
        """Return the trajectories of questions of this step, with the beliefs that ride in them. asked: (place, question)."""
        probes = None
        if self._probes_ride:
            probes = answer_probes(self.policy, self.environment, self.config.reward, self.contrast(self.step))
        return self.sampler.roll_out(asked, self.step, times, probes)

    def load_policy(self, folder: Path) -> None:
        """Take other weights, to evaluate them. All processes call it."""
        load_weights(folder, self.policy.model)
        self.sampler.weights_changed()

    def _reward(self, own: list[Trajectory], places: Sequence[int]) -> list[Scored]:
        """All trajectories of the step, rewarded: each process its own, unless a gain needs those of other questions."""
        config, size = self.config, self.config.rollout.group_size
        placed = [(places[n // size] * size + n % size, item) for n, item in enumerate(own)]
        contrast = self.contrast(self.step)

        def reward(trajectories: list[Trajectory]) -> list[Scored]:
            return reward_trajectories(
                self.policy, self.environment, trajectories, config.reward,
                key=(config.seed, self.step), served=not self._probes_ride, contrast=contrast,
            )  # fmt: skip

        if isinstance(config.reward, TurnGains) and config.reward.credit.kind == "query":
            return reward(self.ranks.all_gather(placed))
        scored = reward(own) if own else []
        return self.ranks.all_gather([(place, item) for (place, _), item in zip(placed, scored, strict=True)])

    def _count(self, trajectories: Sequence[Trajectory], seconds: float) -> None:
        self.counters["rollouts"] += len(trajectories)
        self.counters["questions"] += self.config.rollout.questions
        self.counters["sampled_tokens"] += sum(item.sampled_tokens for item in trajectories)
        self.counters["seconds"] += seconds

    def save(self, folder: Path, *, alone: bool = False) -> None:
        """Write everything needed to go on, atomically (igpo_core.checkpoints). All processes call it, unless the first one
        does alone, as it can where it has all weights."""
        state = CheckpointState(
            configuration=fingerprint(self.config.identity()),
            step=self.step,
            counters=self.counters,
            scheduler=self.learner.scheduler.state_dict(),
            torch_rng=torch.get_rng_state(),
            tensors=self._tensors(),
        )
        write_checkpoint(folder, self.policy, state, full_state(self.policy.model), ALONE if alone else self.ranks)

    def save_policy(self, folder: Path) -> None:
        """Write the policy alone. All processes call it."""
        weights = full_state(self.policy.model)
        if self.ranks.is_main:
            write_folder(folder, lambda path: save_policy(self.policy, path, weights))
        self.ranks.broadcast(None)

    def _tensors(self) -> dict[str, Any]:
        """The optimizer's moments by names of parameters, and a lagged scorer's weights: as this process holds them."""
        tensors: dict[str, Any] = {"optimizer": self.learner.tensors()}
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
        self.learner.restore(state.tensors["optimizer"], state.scheduler, own=state.tensors is own)
        torch.set_rng_state(state.torch_rng)
        if self.scorer is not None and "scorer" in state.tensors:
            kept = {str(place): tensor for place, tensor in enumerate(self.scorer.kept)}
            copy_into(kept, state.tensors["scorer"])
        self.step, self.counters = state.step, dict(state.counters)
