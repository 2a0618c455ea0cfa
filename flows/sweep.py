"""The runs of a sweep, in child flow runs: warm starts first, each in a process of its own, as many at a time as workers."""

from collections.abc import Sequence
from typing import Any

from prefect.futures import PrefectFuture, wait
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from igpo_core.config import code_on_disk, code_version
from igpo_core.errors import ConfigError, IgpoError
from tasks.child import isolated
from tasks.lab.home import home
from tasks.lab.prefect_runs import Say
from tasks.runs.children import Children, Name
from tasks.runs.devices import spread
from tasks.runs.planned import Run
from tasks.runs.planning import known_timing, read_timing, shared_seconds
from tasks.runs.progress import Progress
from tasks.runs.work import missing_starts, outlook, seen, to_train

STARTS = 10


def run_all(runs: Sequence[Run], children: Children, workers: int, say: Say, *, scores: bool = True) -> dict[str, str]:
    """Make what is not there: warm starts, then the arms of their seeds. Returns run name -> why it did not complete, "" where
    it did. runs: of one sweep, all of them or some seeds'; scores: whether the line of a finished run has its test score.

    First come, first served: the runs of the first seeds start while the last warm starts are being made. Cells that
    share a warm start wait for one.
    """
    left = [run for run in runs if not run.finished]
    missing = missing_starts(left)
    # of the runs that share a warm start the costliest makes it: a step of it is timed besides
    by_cost = sorted(reversed(left), key=lambda run: run.spec.experiment.reward.needs_beliefs)
    first = {run.spec.start: run for run in by_cost if run.spec.start in missing}
    progress = Progress(warm_starts=len(first), runs=len(left), there=len(runs) - len(left), workers=workers)
    # the first of these warm starts is made first, and with it a step is timed
    sample = next((first[run.spec.start] for run in left if run.spec.start in first), left[0])
    study, sweep, experiment = sample.spec.study, sample.spec.sweep, to_train(sample)
    timing = read_timing(home(), sweep, experiment) or known_timing(home(), study, experiment)
    going = spread(experiment.training, min(workers, len(left)), seen(experiment.training))
    runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=workers)  # a thread a child
    with runner:

        def start(name: Name, run: Run, before: Any = "") -> PrefectFuture[str]:
            asked = {"title": title_of(name, run), "name": name, "failed_before": before}
            future: PrefectFuture[str] = runner.submit(
                isolated, {**asked, "told": quote((run, children, progress, say, scores))}
            )
            return future

        def look_ahead() -> None:
            say(outlook(runs, timing, going, home()))
            if timing is not None:
                progress.expect(*shared_seconds(experiment, timing, going))

        try:
            look_ahead()
            wanted = dict.fromkeys(run.spec.start for run in left if run.spec.start in first)  # seed by seed
            starts = {key: start("warm_start", first[key]) for key in wanted}
            trained = {run.spec.name: start("train", run, starts.get(run.spec.start, "")) for run in left}
            if timing is None and starts:
                next(iter(starts.values())).wait()
                timing = read_timing(home(), sweep, experiment)
                look_ahead()
            wait(list(trained.values()))
        except BaseException:  # cancelled or told to end: the arms leave checkpoints, and end before this process does
            children.end()
            raise
    return {name: run.result() for name, run in trained.items()}


def title_of(name: Name, run: Run) -> str:
    """What the task and the flow run are called."""
    spec = run.spec
    if name == "train":
        return f"train {spec.name}"
    return " ".join(filter(None, ["warm start", f"seed {spec.seed}", spec.cell]))


def require_progress(starts: int) -> None:
    """Raise IgpoError when this sweep was started again and again after crashes (an automation does that)."""
    if starts > STARTS:
        raise IgpoError(
            f"this sweep crashed {starts - 1} times and is not started again: see the end of its log and of the worker's for "
            "what ended it (out of memory, as a rule), then start it anew; what is finished is reused"
        )


def require_same_code() -> None:
    """Raise ConfigError when igpo_core was edited since this process imported it: what runs is not what can be read."""
    if code_on_disk() != code_version():
        raise ConfigError(
            "igpo_core was edited while the sweep ran: its runs are of the code as it was at the start, and no report is "
            "written. Undo the edit and start again to have it, or start again for runs of the new code. To edit "
            "meanwhile, run sweeps from a clone of their own."
        )
