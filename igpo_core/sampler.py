"""The sampler: which questions a step asks, and their rollouts with the weights of now."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

from igpo_core.clock import now
from igpo_core.config import ContinuousEngine, EngineConfig, ExperimentConfig, VllmEngine
from igpo_core.environments.base import Environment
from igpo_core.policies import Policy, export_policy, save_policy
from igpo_core.ranks import Ranks
from igpo_core.rewards.scoring import Probes
from igpo_core.rollout.continuous_engine import ContinuousRollout
from igpo_core.rollout.mismatch import own_logprobs
from igpo_core.rollout.rows import Engine, OwnEngine, RolloutTimes
from igpo_core.rollout.served_engine import ServedEngine
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.seeds import python_rng
from igpo_core.sharding import full_state
from igpo_core.trajectory import Question, Trajectory
from igpo_core.weights import has_adapter


def own_engine(policy: Policy, engine: EngineConfig) -> OwnEngine:
    """Return the engine that samples in this process: where servers sample in training, the exact one."""
    return ContinuousRollout(policy) if isinstance(engine, ContinuousEngine) else rollout


class Sampler:
    """Rolls out questions with a policy that somebody else updates."""

    def __init__(
        self,
        config: ExperimentConfig,
        environment: Environment,
        policy: Policy,
        questions: Sequence[Question],
        ranks: Ranks,
        whole_weights: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """questions: of training, all of them; whole_weights: Learner.whole_weights."""
        self.config, self.environment, self.policy, self.questions = config, environment, policy, questions
        self._ranks, self._whole_weights = ranks, whole_weights
        engine = config.rollout.engine
        self.served = ServedEngine(engine, ranks.number) if isinstance(engine, VllmEngine) else None
        if self.served is not None and config.rollout.temperature != 1:
            self.served.require_processed_logprobs(policy.protocol.prompt(questions[0].text))
        self._own_engine = own_engine(policy, engine)
        self._served_step: int | None = None  # whose weights the servers have

    def questions_of(self, step: int) -> list[Question]:
        """Return the questions of a step: consecutive places in an endless run of permutations, each keyed by its number."""
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

    def engine(self, step: int) -> Engine:
        """Return the rollout engine after syncing the weights of this step to the servers. All processes call it."""
        if self.served is None:
            return self._own_engine
        if self._served_step != step:
            weights = full_state(self.policy.model)
            if self._ranks.is_main:
                write = partial(save_policy, self.policy, weights=weights)
                self.served.load(partial(export_policy, self.policy) if has_adapter(self.policy.model) else write, step)
            self._ranks.broadcast(None)
            self._served_step = step
        return self.served

    def weights_changed(self) -> None:
        """Let the servers be given the weights anew, whatever step they have."""
        self._served_step = None

    def roll_out(
        self, asked: Sequence[tuple[int, Question]], step: int, times: RolloutTimes, probes: Probes | None = None
    ) -> list[Trajectory]:
        """Return the trajectories of this process's questions of a step, with the trainer's own log-probabilities.

        asked: (place in the step, question). probes: what is read while rolling out; servers read none.
        """
        config = self.config
        questions, places = [question for _, question in asked], [place for place, _ in asked]
        purpose = f"rollout {config.replicate}" if config.replicate else "rollout"
        key, size = (config.seed, purpose, step), config.rollout.group_size
        if self.served is None:
            with self._whole_weights():
                return self._own_engine(
                    self.policy, self.environment, questions, config.rollout,
                    members=size, key=key, probes=probes, times=times, places=places,
                )  # fmt: skip
        engine = self.engine(step)
        found = engine(
            self.policy, self.environment, questions, config.rollout, members=size, key=key, times=times, places=places
        )
        device = self.policy.model.device
        started = now(device)
        with self._whole_weights():
            found = own_logprobs(self.policy, found, config)
        times.total += now(device) - started
        return found
