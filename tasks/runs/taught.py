"""What a warm start is taught of published data: which trajectories are left out, and whether it is learnt by heart."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from igpo_core.config import AblationSpecification, ExperimentConfig, FileDemonstrations
from igpo_core.errors import ConfigError
from tasks.data.published import count_questions, trajectory_turns
from tasks.lab.home import data_folder
from tasks.runs.planned import PLAN, planned_in

MOST_REPEATS = 10  # demonstrations of a question from files; 2.7 were seen to leave room to learn


def about_warm_start(experiment: ExperimentConfig, folder: Path) -> list[str]:
    """Return loud lines on what a warm start is taught of published data: trajectories that are left out, few things shown again
    and again."""
    turns = _turns(experiment, folder)
    most = experiment.rollout.max_turns
    left = sum(count > most for count in turns)
    told = []
    if left:
        told.append(
            f"{left} of {len(turns)} trajectories are left out of the warm start: they have more than "
            f"rollout.max_turns={most} turns, the answer included, the longest {max(turns)}. Raise it, or shorten them"
        )
    return [*told, *by_heart(experiment, folder)]


def taught_by_heart(specification: AblationSpecification, versions: Mapping[str, str]) -> dict[str, list[str]]:
    """Return learnt_by_heart of each cell that has such a line. versions: of the published data, by cell."""
    found = {cell: by_heart(specification.cell_base(cell), data_folder(version)) for cell, version in versions.items()}
    return {cell: lines for cell, lines in found.items() if lines}


def require_verdict(specification: AblationSpecification, versions: Mapping[str, str], what: str) -> None:
    """Raise ConfigError where a warm start is learnt by heart, so that there is no verdict. what: it is that wants one."""
    for cell, (line, *_) in taught_by_heart(specification, versions).items():
        raise ConfigError(f"{specification.name}{f', cell {cell}' if cell else ''}: {what}. {line}")


@dataclass(frozen=True)
class Taught:
    """Whether what a policy was taught before its training forbids a verdict on it."""

    by_heart: tuple[str, ...] = ()
    """Why its warm start is learnt by heart; empty: it is not, as far as is known."""
    unknown: str = ""
    """Why nobody knows here, and what to do; empty: it is known."""


def planned_taught(folder: Path) -> Taught:
    """Return what is known of the warm start of the run in a folder, by its plan and its data."""
    spec = planned_in(folder)
    if spec is None:
        return Taught(
            unknown=f"{folder / PLAN} is no plan that this code can read: evaluate it with the code that planned it"
        )
    data = folder.parents[1] / "data" / spec.data_version
    if _is_taught_of_files(spec.experiment) and not data.is_dir():
        return Taught(
            unknown=f"{data}, which run {folder.name} was taught of, is not here: copy it from where it was trained"
        )
    return Taught(tuple(by_heart(spec.experiment, data)))


def by_heart(experiment: ExperimentConfig, folder: Path) -> list[str]:
    """Return learnt_by_heart of published data."""
    if not _is_taught_of_files(experiment):
        return []
    short = sum(count <= experiment.rollout.max_turns for count in _turns(experiment, folder))
    return learnt_by_heart(experiment, count_questions(folder)["train"], short)


def _turns(experiment: ExperimentConfig, folder: Path) -> list[int]:
    """Return the turns of each trajectory that a warm start may be taught; [] where it is taught none."""
    return trajectory_turns(folder) if _taught(experiment, "trajectories") else []


def learnt_by_heart(experiment: ExperimentConfig, train: int, trajectories: int = 0) -> list[str]:
    """Return a loud line where a warm start is made of few questions or trajectories from files, each shown again and again.

    train: questions; trajectories: that can be taught.
    """
    lines = []
    for use, there, made, more in (
        ("searches", train, f"made of {train} train questions", "questions (data.questions, data.corpus)"),
        ("trajectories", trajectories, f"copies of {trajectories} trajectories", "trajectories (data.trajectories)"),
    ):
        taught = _taught(experiment, use)
        if there and taught > MOST_REPEATS * there:  # where there is none, the warm start itself is refused
            lines.append(
                f"THE WARM START IS LEARNT BY HEART: {taught} demonstrations are {made}, {taught / there:.0f} times each. "
                "Training then starts from questions whose answers the policy knows, and what arms differ by on these says "
                f"nothing of the method: a comparison on such data carries no verdict. Give more {more}"
            )
    return lines


def _is_taught_of_files(experiment: ExperimentConfig) -> bool:
    return any(_taught(experiment, use) for use in ("searches", "trajectories"))


def _taught(experiment: ExperimentConfig, use: str) -> int:
    """Demonstrations from files of one use that the warm start is taught, repeats counted."""
    return sum(
        stage.steps * stage.batch_size
        for stage in (experiment.warm_start.stages if experiment.warm_start else ())
        if isinstance(stage.demonstrations, FileDemonstrations) and stage.demonstrations.use == use
    )
