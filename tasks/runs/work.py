"""What a sweep consists of, what of it is there already, and how long the rest takes on this machine."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from igpo_core.config import (
    AblationSpecification,
    ExperimentConfig,
    PretrainedPolicy,
    TrainingConfig,
    code_version,
    warm_start_key,
)
from igpo_core.errors import ConfigError
from tasks.data.published import count_questions
from tasks.lab.home import PROJECT
from tasks.report.statistics import seeds_for_verdict
from tasks.runs.devices import Spread, accelerators, at_a_time, spread
from tasks.runs.planned import Run
from tasks.runs.planning import (
    Timing,
    data_key,
    estimate,
    known_timing,
    speaks_for,
    spell,
    start_of,
    sweep_seconds,
    untrained,
    with_questions_there,
)
from tasks.runs.processors import computed_in
from tasks.specification.presets import load_specification, presets, setting

MINUTES = "presets.tsv"  # in <home>/timings: what `make` shows beside each preset
DEFAULT = "outcome-vs-igpo"
WORLDS = (DEFAULT, "lookup")  # a sweep suggests the first of them that it is not
CONTROL = "easy"
DATA = "examples/own-data.yaml"  # tables that are shipped, to be copied
MODEL = "examples/own-model.yaml"  # the same with a pretrained model
# counted from its first steps on two cores of an AMD EPYC, 2026-11-28: whoever asks has never timed it
DATA_SECONDS = 240.0


def announce(specification: AblationSpecification, workers: int) -> str:
    """What will be made, in words. workers: runs at the same time, if there are so many."""
    runs, cells = specification.runs(), specification.cells
    budgets = sorted({_budget(specification.cell_base(cell)) for cell in cells})
    crossed = f" x {len(cells)} cells ({'; '.join(cells)})" if cells != ("",) else ""
    lines = [
        f"{specification.name}: {len(specification.arms)} arms ({', '.join(specification.arms)}) x {len(specification.seeds)} "
        f"seeds{crossed} = {len(runs)} runs, each {' or '.join(budgets)}, {min(workers, len(runs))} at a time; "
        f"every arm of a seed starts from {start_of(specification.base)}"
    ]
    if isinstance(specification.base.policy, PretrainedPolicy):
        lines.append(
            f"the policy is {' or '.join(sorted({computed_in(specification.cell_base(cell)) for cell in cells}))}"
        )
    lines += [f"warning: {line}" for line in untrained(specification.base.model_dump(mode="json"))]
    for arm in specification.arms:
        ignored = specification.ignored_factors(arm)
        if ignored:
            lines.append(f"{arm} ignores {', '.join(ignored)}: one run a seed serves all its levels")
    needed = seeds_for_verdict(max(1, len(specification.arms) - 1))
    if len(specification.seeds) == 1:
        lines.append("warning: one seed has no interval; a difference of one seed says little")
    elif max(len(specification.seeds), specification.until.seeds if specification.until else 0) < needed:
        lines.append(
            f"warning: {len(specification.seeds)} seeds carry no verdict, whatever they show: that takes {needed} of them"
        )
    return "\n".join(lines)


def _budget(base: Any) -> str:
    training, rollout = base.training, base.rollout
    rollouts = training.steps * rollout.questions * rollout.group_size
    if training.budget == "steps":
        return f"{training.steps} steps and {rollouts} rollouts"
    return f"{training.amount:g} {training.budget.replace('_', ' ')}, {training.steps} steps at most"


def outlook(runs: Sequence[Run], timing: Timing | None, going: Spread, home: Path) -> str:
    """How much of these runs is there, and what the rest will take, as far as a step was timed."""
    left = [run for run in runs if not run.finished]
    there = f"{len(runs) - len(left)} of {len(runs)} runs were there"
    if not left:
        return f"{there}; nothing is left to train"
    if left[0].spec.experiment.training.world > 1:
        return f"{there}; runs of several processes are not timed: see make dry-run"
    if timing is None:
        return f"{there}; how long the rest takes is told once a step was timed"
    starts = {run.spec.start: run.spec.experiment for run in left if not run.start.exists()}
    return f"{there}; {estimate([to_train(run) for run in left], list(starts.values()), timing, going, home)}"


def to_train(run: Run) -> ExperimentConfig:
    """Return what a planned run computes: it evaluates on no more questions than its data have."""
    return with_questions_there(run.spec.experiment, count_questions(run.data))


def missing_starts(runs: Sequence[Run]) -> set[str]:
    """The warm starts that these runs need and that are not there."""
    return {run.spec.start for run in runs if not run.start.exists()}


def simultaneous(specification: AblationSpecification, asked: int | None = None) -> int:
    """Return how many runs are made at the same time on this machine. asked: in place of the specification's number.

    Raises ConfigError where more are asked for than this machine has accelerators, or shares of them.
    """
    training = specification.base.training
    return at_a_time(training, asked or specification.processes, seen(training))


def seen(training: TrainingConfig) -> list[str]:
    """Return the accelerators of this machine that runs may take."""
    return accelerators() if training.device == "cuda" else []


def counted(specification: AblationSpecification, asked: int | None = None) -> Spread:
    """Return how many runs at the same time are counted, no more than there are. Raises ConfigError as `simultaneous`."""
    training, workers = specification.base.training, simultaneous(specification, asked)
    return spread(training, min(workers, len(specification.runs())), seen(training))


def add_parts(parser: argparse.ArgumentParser) -> None:
    """Let a command take what of a preset is made, and how many runs at a time: as `resolve` and `simultaneous` are asked."""
    parser.add_argument("--arms", type=_names, help="only these arms, and the baseline: a,b")
    parser.add_argument("--seeds", type=_numbers, help="these run seeds in place of the preset's: 0,1,2")
    parser.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="another setting in base: optimizer.learning_rate=1e-5",
    )
    parser.add_argument(
        "--processes", type=int, choices=range(1, 65), metavar="N", help="runs at the same time, 1 to 64"
    )


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers: give it as 0,1,2 without spaces")
    return [int(part) for part in text.split(",")]


def whole_seconds(specification: AblationSpecification, home: Path) -> float | None:
    """Of a specification from nothing on this machine, servers and data apart; None where nothing like it was timed, or cells
    differ so much that the timed one does not speak for all."""
    timing = known_timing(home, specification.name, specification.cell_base(specification.cells[0]))
    if timing is None or specification.base.training.world > 1:
        return None
    runs, starts = whole(specification)
    if not all(speaks_for(timing, run) for run in runs):
        return None
    # what other data have is known once they are read
    asked = [with_questions_there(run, timing.questions if data_key(run) == timing.data else None) for run in runs]
    return sweep_seconds(asked, starts, timing, counted(specification))


def whole(specification: AblationSpecification) -> tuple[list[ExperimentConfig], list[ExperimentConfig]]:
    """All runs, and one run for each warm start that they need."""
    runs = [specification.experiment(arm, seed, cell) for cell, arm, seed in specification.runs()]
    return runs, list({warm_start_key(run, specification.name, code_version()): run for run in runs}.values())


def write_minutes(home: Path) -> None:
    """One line a preset of which a time is known: its name and "about 9 min"."""
    known = {name: _seconds(name, home) for name in presets()}
    path = home / "timings" / MINUTES
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{name}\tabout {spell(seconds)}\n" for name, seconds in known.items() if seconds is not None]
    path.write_text("".join(lines))


def tell_next(study: str, home: Path, say: Callable[[str], None]) -> None:
    """Say what to run after a sweep, and write the minutes that `make` shows beside presets."""
    try:
        write_minutes(home)
    except OSError as error:  # a full disk: the sweep itself is done
        say(f"warning: the minutes that `make` shows are not brought up to date: {error}")
    say(f"\nNEXT\n{next_commands(study, home)}")


def next_commands(study: str, home: Path) -> str:
    """Return what to run after a sweep, with its time on this machine where it is known."""
    world = next(name for name in WORLDS if name != study)
    rows = [
        ("another world", f"make ablation PRESET={world}", _time(world, home)),
        ("arms should end level", f"make ablation PRESET={CONTROL}", _time(CONTROL, home)),
        ("your data, in a copy of", f"make ablation PRESET={DATA}", _time(str(PROJECT / DATA), home, DATA_SECONDS)),
        ("and with a real model", f"make dry-run PRESET={MODEL}", "memory, disk and time; fetches the model, 93 MB"),
    ]
    shown = [row for row in rows if Path(row[1].partition("PRESET=")[2]).stem != study]
    widths = [max(len(row[column]) for row in shown) for column in (0, 1)]
    return "\n".join(f"  {what.ljust(widths[0])}  {command.ljust(widths[1])}  {time}" for what, command, time in shown)


def _time(preset: str, home: Path, elsewhere: float | None = None) -> str:
    """Return it in words. elsewhere: seconds that it took on another machine."""
    seconds = _seconds(preset, home)
    if seconds is not None:
        return f"about {spell(seconds)}"
    return "not timed here" if elsewhere is None else f"not timed here; about {spell(elsewhere)} on two cores"


def _seconds(preset: str, home: Path) -> float | None:
    """whole_seconds; None of a preset that somebody is editing: its fault is told when it is run, and ends no other sweep."""
    try:
        return whole_seconds(load_specification(preset), home)
    except ConfigError:
        return None
