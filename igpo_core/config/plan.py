"""What a sweep will train, worked out once: each run whole, so that whoever trains it needs nothing but its description."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from igpo_core.config.experiment import ExperimentConfig
from igpo_core.config.identity import code_version, fingerprint
from igpo_core.config.policy import PretrainedPolicy
from igpo_core.config.specification import AblationSpecification
from igpo_core.settings import Settings

Place = tuple[str, str, int]  # cell, arm, seed


class RunSpec(Settings):
    """One training run, whole: what is trained, on which data, from which weights, and for which comparison."""

    study: str = Field(description="Name of the specification, and of MLflow's experiment.")
    sweep: str = Field(description="Runs are shared within a sweep alone: MLflow keeps a run under one of them.")
    arm: str
    cell: str = Field(
        "", description='A combination of factors\' levels, as "group=8,gamma=0.9"; empty without factors.'
    )
    experiment: ExperimentConfig
    data_version: str = Field(description="Folder below <home>/data.")
    code: str = Field(description="code_version of who planned it. Another code would compute other numbers.")
    arm_settings: dict[str, Any] = Field({}, description="What the specification says of the arm.")
    arm_number: int = Field(0, ge=0, description="Place of the arm in the specification: its colour in MLflow.")
    changes: dict[str, Any] = Field({}, description="What the start of the sweep set over the specification, by path.")

    @model_validator(mode="after")
    def _dtype_is_decided(self) -> "RunSpec":
        policy = self.experiment.policy
        if isinstance(policy, PretrainedPolicy) and policy.dtype == "auto":
            raise ValueError(
                "policy.dtype=auto: a planned run says float32 or bfloat16, so that every machine trains the same"
            )
        return self

    @property
    def seed(self) -> int:
        """Return the run seed."""
        return self.experiment.seed

    @property
    def name(self) -> str:
        """Return "<arm> seed <seed> <cell>", unique within a sweep."""
        return " ".join(filter(None, [self.arm, f"seed {self.seed}", self.cell]))

    @property
    def run_key(self) -> str:
        """Return twelve hex digits that change with whatever makes another run of it: the name of its folder."""
        return fingerprint(self.experiment.identity(), self.data_version, self.sweep, self.code)

    @property
    def start(self) -> str:
        """Return the key of the policy that the run starts from: its folder below <home>/warm_starts."""
        return warm_start_key(self.experiment, self.data_version, self.code)


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep."""

    specification: AblationSpecification
    versions: Mapping[str, str]
    """Data version by cell."""
    sweep: str
    """The name that runs of this study share, while base, factors, data and code stay as they are."""
    runs: tuple[RunSpec, ...]
    """Seed by seed. Where an arm ignores a factor, one run stands for all cells that differ in that factor alone."""
    places: Mapping[str, tuple[Place, ...]]
    """Run key -> the (cell, arm, seed) that the run stands for."""


def make_plan(specification: AblationSpecification, versions: Mapping[str, str]) -> Plan:
    """Return every run of a specification. versions: data version by cell."""
    sweep = specification.sweep(versions)
    runs: dict[str, RunSpec] = {}
    places: dict[str, list[Place]] = {}
    for seed in specification.seeds:
        for cell in specification.cells:
            for arm in specification.arms:
                spec = plan_run(specification, arm, seed, cell, versions[cell], sweep)
                runs.setdefault(spec.run_key, spec)
                places.setdefault(spec.run_key, []).append((cell, arm, seed))
    return Plan(
        specification, versions, sweep, tuple(runs.values()), {key: tuple(found) for key, found in places.items()}
    )


def plan_run(
    specification: AblationSpecification, arm: str, seed: int, cell: str, data_version: str, sweep: str
) -> RunSpec:
    """Return one run of a specification. Raises ConfigError, listing what there is, on an unknown arm or cell."""
    experiment = specification.experiment(arm, seed, cell)
    return RunSpec(
        study=specification.name,
        sweep=sweep,
        arm=arm,
        cell=cell,
        experiment=experiment,
        data_version=data_version,
        code=code_version(),
        arm_settings=specification.arms[arm],
        arm_number=list(specification.arms).index(arm),
        changes=specification.changes,
    )


def warm_start_key(experiment: ExperimentConfig, data_version: str, code: str) -> str:
    """Return twelve hex digits that change with everything that a warm start depends on, and with nothing that tells arms
    apart."""
    relevant = {
        "policy": experiment.policy.identity(),
        "stages": experiment.warm_start.model_dump(mode="json") if experiment.warm_start else None,
        "rollout": [experiment.rollout.max_turns, experiment.rollout.max_tokens],
        "batch": experiment.optimizer.tokens_per_batch,
        "threads": experiment.training.threads,
        "seed": experiment.seed if _start_depends_on_seed(experiment) else None,
    }
    return fingerprint(relevant, data_version, code)


def _start_depends_on_seed(experiment: ExperimentConfig) -> bool:
    """A pretrained model as it is serves all seeds: one copy of it is kept."""
    policy = experiment.policy
    drawn = not isinstance(policy, PretrainedPolicy) or policy.lora is not None
    return drawn or experiment.warm_start is not None
