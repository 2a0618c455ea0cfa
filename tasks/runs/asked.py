"""Which models an evaluation measures, on which questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from igpo_core.config import AblationSpecification, ExperimentConfig, Plan
from igpo_core.config.reasons import reasons
from igpo_core.errors import ConfigError
from tasks.lab.home import data_folder, home
from tasks.lab.prefect_runs import Say
from tasks.lab.secrets import provide
from tasks.runs.models import with_model
from tasks.runs.planned import Run
from tasks.specification.presets import load_specification

if TYPE_CHECKING:
    from tasks.runs.evaluations import DataSet, Environments, Unit

Ending = Literal["base", "start", "last", "best"]  # a model of a sweep: before any training, warm start, checkpoints
SAMPLING_SEEDS = 3


@dataclass(frozen=True)
class Asked:
    """Every measurement of an evaluation."""

    specification: AblationSpecification
    units: "list[Unit]"
    """Model by model."""
    environments: "Environments"

    @property
    def by_model(self) -> "list[list[Unit]]":
        """Return the measurements of each set of weights."""
        found: dict[tuple[str, int | None], list[Unit]] = {}
        for unit in self.units:
            found.setdefault((unit.model.name, unit.model.seed), []).append(unit)
        return list(found.values())


def plan_evaluation(
    models: Sequence[str],
    preset: str,
    split: str,
    limit: int | None,
    cell: str,
    data: Sequence[str] | None,
    sources: Sequence[str] | None,
    seeds: Sequence[int] | None,
    changes: Mapping[str, Any] | None,
    say: Say,
) -> Asked:
    """Find the models, publish the data, and return what is to be measured. The arguments are those of the flow `evaluate`.

    Raises ConfigError, DataError or CheckpointError, before anything is measured, where a model, a data set or a source is not
    there, where data sets are scored otherwise, or where the engine cannot run a model.
    """
    from tasks.runs.candidates import find_candidates
    from tasks.runs.evaluations import Environments, require_engine, units_of

    specification = load_specification(preset, changes)
    experiment = specification.experiment(
        specification.baseline, specification.seeds[0], cell or specification.cells[0]
    )
    own = _data_set(specification.name, experiment, split, limit, (), say)
    chosen = tuple(sources or ())
    sets = [_data_set(specification.name, experiment, split, limit, chosen, say)] if data is None else []
    for name in data or ():
        other = specification if name == preset else load_specification(name)
        asked = experiment if name == preset else _with_data(experiment, other)
        sets.append(_data_set(other.name, asked, split, limit, chosen, say))
    if len({one.name for one in sets} | {one.version for one in sets}) < 2 * len(sets):
        raise ConfigError(
            f"data {', '.join(data or ())}: two of them are the same questions, or have the same name; give each once, "
            "under a name of its own"
        )
    environments = Environments(own)
    for one in sets:
        environments.questions(one)  # a source that is not there is told now
    require_draws(seeds, experiment)
    candidates = find_candidates(models, home(), own.experiment, own.version)
    require_engine(candidates, own.experiment)
    draws = list(seeds or specification.seeds[:SAMPLING_SEEDS])
    return Asked(specification, units_of(candidates, sets, draws), environments)


def plan_sweep_evaluation(endings: Sequence[Ending], plan: Plan, say: Say) -> Asked:
    """Return what a sweep compares at its end, on the test questions that its runs were asked: of its own runs, with the settings
    and the data that they had. The specification's file and data are not read again: hours have passed.

    Raises CheckpointError where a run's checkpoint is damaged.
    """
    from tasks.runs.candidates import candidates_of_runs
    from tasks.runs.evaluations import DataSet, Environments, units_of

    specification = plan.specification
    (cell,) = specification.cells
    experiment = specification.experiment(specification.baseline, specification.seeds[0], cell)
    provide(experiment.data)
    version = plan.versions[cell]
    own = DataSet(
        specification.name, version, data_folder(version), with_model(experiment, home(), say), "test", None, (),
        most=experiment.evaluation.test_questions,
    )  # fmt: skip
    candidates = candidates_of_runs(endings, [Run(spec, home()) for spec in plan.runs], own.experiment, version)
    units = units_of(candidates, [own], specification.seeds[:SAMPLING_SEEDS])
    return Asked(specification, units, Environments(own))


def require_draws(seeds: Sequence[int] | None, experiment: ExperimentConfig) -> None:
    """Raise ConfigError where sampling seeds are asked for and nothing is sampled, or one of them twice."""
    if not seeds:
        return
    listed = ", ".join(map(str, seeds))
    if len({*seeds}) < len(seeds):
        raise ConfigError(f"seeds {listed}: the same seed draws the same again; give each once")
    if "sampled" not in experiment.evaluation.decoding:
        raise ConfigError(
            f"seeds {listed}: evaluation.decoding is greedy, which draws nothing and is measured once. Leave "
            'seeds out, or set evaluation.decoding to ["sampled"] (or ["sampled", "greedy"]; the first is the headline)'
        )


def require_one_cell(specification: AblationSpecification) -> None:
    """Raise ConfigError where a sweep has factors: models of its cells have settings, and perhaps questions, of their own."""
    if specification.factors:
        raise ConfigError(
            f"evaluate: {specification.name} has factors ({', '.join(specification.factors)}), and models of one comparison are "
            "measured under the same settings and questions, which its cells do not share: start the sweep without evaluate, and "
            "then the flow evaluate once for each cell, with the run keys of its models and cell="
            f"{specification.cells[0]!r} and so on"
        )


def _with_data(experiment: ExperimentConfig, other: AblationSpecification) -> ExperimentConfig:
    """Return the experiment on another specification's data. Warm start and reward have no part in an evaluation."""
    data, headline = other.base.data, experiment.data.headline
    if data.headline != headline:
        raise ConfigError(
            f"data {other.name} is scored by {data.headline}, and the preset's by {headline}: compare them in evaluations of "
            "their own"
        )
    content = experiment.model_dump(exclude={"data", "warm_start", "reward"})
    try:
        return ExperimentConfig.model_validate(
            {**content, "data": data.model_dump(), "reward": {"reward": "outcome_only"}}
        )
    except ValidationError as error:
        raise ConfigError(f"data {other.name}: {'; '.join(reasons(error, ExperimentConfig))}") from error


def _data_set(
    name: str, experiment: ExperimentConfig, split: str, limit: int | None, sources: tuple[str, ...], say: Say
) -> "DataSet":
    from tasks.data.publishing import prepare
    from tasks.runs.evaluations import DataSet

    published = prepare(experiment.data, home())
    provide(experiment.data)
    experiment = with_model(experiment, home(), say)
    return DataSet(name, published.version, published.folder, experiment, split, limit, sources)
