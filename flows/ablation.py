"""Flow `ablation`: arms x seeds (x cells of factors) from one specification, then statistics and report.

Every arm of a seed starts from the same warm start and sees the same questions in the same order with the same sampling
seeds and the same rollout budget; arms differ in the reward alone (igpo_core/config/specification.py refuses anything else).
"""

import itertools
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote
from pydantic import Field

from flows.children import Children, Name, Where, children_of, run_to_end
from flows.parameters import Arms, Changes, Preset, Seeds
from flows.prepare_data import prepare_data, published_versions
from flows.presets import load_specification, study_name
from flows.terminal import hush_tasks
from flows.work import announce, missing_starts, outlook, runs_of, simultaneous
from igpo_core.config import AblationSpecification, Plan, code_on_disk, code_version, make_plan
from igpo_core.config.specification import spell_changes
from igpo_core.errors import ConfigError, IgpoError
from tasks.data.published import mark_whole
from tasks.home import data_folder, home, open_home
from tasks.prefect_runs import Say, flow_run_url, run_log
from tasks.report.statistics import seeds_for_verdict
from tasks.runs.locks import locked
from tasks.runs.planned import Run
from tasks.runs.planning import known_timing, read_timing, run_seconds, warm_start_seconds
from tasks.runs.progress import Progress
from tasks.secrets import require_judge

if TYPE_CHECKING:
    from tasks.report.reporting import Report


STARTS = 10


def run_name() -> str:
    """Return the study, and what is set besides."""
    given = flow_run.parameters
    return " · ".join(filter(None, [study_name(given["preset"]), spell_changes(given.get("set") or {})]))


@flow(name="ablation", flow_run_name=run_name, validate_parameters=True)
def ablation(
    preset: Preset = "outcome-vs-igpo",
    arms: Arms | None = None,
    seeds: Seeds | None = None,
    processes: Annotated[int | None, Field(ge=1, le=64)] = None,
    where: Where = "processes",
    set: Changes | None = None,
) -> dict[str, Any]:
    """Data, warm starts, runs, statistics, report. Finished parts are found again and reused.

    Args:
        arms: Only these arms, the baseline and the primary arm. Empty: all of the preset.
        seeds: These run seeds, which must differ; any others than the preset's are exploratory. Empty: the preset's.
        processes: Runs at the same time on this machine, 1 to 64. Empty: the preset's number, else what the machine has.
        where: Where the arms run: in processes of this machine, or on work pool igpo-arms, which `make worker` serves.
        set: Other settings in the preset's base, for all arms alike.
    """
    open_home()
    say = run_log()
    hush_tasks()
    require_progress(flow_run.run_count)
    whole = load_specification(preset, set)
    specification = whole.select(arms, seeds)
    exploratory = whole.departures(specification)
    workers = len(specification.runs()) if where == "pool" else simultaneous(specification, processes)
    say(announce(specification, workers))
    require_judge(specification.base)

    # taken for dead, though its machine was only cut off, this sweep may have been started a second time
    with locked(home(), f"sweep-{flow_run.id}", say):
        versions = published_versions(specification) or prepare_data(preset, set)["versions"]
        links = show_links(specification, specification.sweep(versions), say)
        failed: dict[str, str] = {}
        while True:
            plan = make_plan(specification, versions)
            for version in {*versions.values()}:
                mark_whole(data_folder(version), plan.sweep)  # it was looked at just now
            runs = runs_of(plan, home())
            left = [run for run in runs if not run.finished]
            if left:
                children = children_of(str(flow_run.id), where)
                reasons = run_all(runs, children, workers, say)
                failed = {name: reason for name, reason in reasons.items() if reason}
            require_same_code()
            if failed:
                say("\n  ".join([f"{len(failed)} of {len(runs)} runs failed:", *map(": ".join, failed.items())]))
            if len(failed) == len(runs):
                raise IgpoError(f"all {len(failed)} runs failed. {next(iter(failed))}: {next(iter(failed.values()))}")
            report = write_report(plan, exploratory, say)
            if not left:
                say(f"everything was there: report of {report.made}{'' if report.reused else ', made anew'}")
            more = more_seeds(specification, report, workers)
            if not more:
                break
            widest = "none yet" if report.widest is None else f"{report.widest:.3f}"
            say(f"the widest interval ({widest}) or the number of seeds does not suffice yet: seeds {more} are added")
            specification = specification.select(None, [*specification.seeds, *more])
    show_report(report, plan.sweep)
    tell_what_moved(specification.name, report, say)
    links |= {"curves": report.compare, "report": report.url, **({"file": str(report.file)} if report.file else {})}
    say(
        "\n".join(
            ["", report.terminal, "", f"Report   {report.url}", *([f"         {report.file}"] if report.file else [])]
        )
    )
    return {
        "sweep": plan.sweep,
        "answer": report.answer,
        "terminal": report.terminal,
        "failed": failed,
        "links": links,
    }


def run_all(runs: Sequence[Run], children: Children, workers: int, say: Say) -> dict[str, str]:
    """Make what is not there: warm starts, then the arms of their seeds. Returns run name -> why it did not complete, "" where
    it did. runs: of one sweep, all of them or some seeds'.

    First come, first served: the runs of the first seeds start while the last warm starts are being made. Cells that
    share a warm start wait for one.
    """
    left = [run for run in runs if not run.finished]
    missing = missing_starts(left)
    # of the runs that share a warm start the costliest makes it: a step of it is timed besides
    by_cost = sorted(reversed(left), key=lambda run: run.spec.experiment.reward.needs_beliefs)
    first = {run.spec.start: run for run in by_cost if run.spec.start in missing}
    progress = Progress(warm_starts=len(first), runs=len(left), there=len(runs) - len(left), workers=workers)
    study, sweep, experiment = left[0].spec.study, left[0].spec.sweep, left[0].spec.experiment
    timing = read_timing(home(), sweep) or known_timing(home(), study, experiment)
    runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=workers)  # a thread a child
    with runner:

        def start(name: Name, run: Run, before: Any = "") -> PrefectFuture[str]:
            asked = {"title": title_of(name, run), "name": name, "failed_before": before}
            future: PrefectFuture[str] = runner.submit(
                isolated, {**asked, "told": quote((run, children, progress, say))}
            )
            return future

        def look_ahead() -> None:
            say(outlook(runs, timing, workers, home()))
            if timing is not None:
                progress.expect(warm_start_seconds(experiment, timing), run_seconds(experiment, timing))

        try:
            look_ahead()
            wanted = dict.fromkeys(run.spec.start for run in left if run.spec.start in first)  # seed by seed
            starts = {key: start("warm_start", first[key]) for key in wanted}
            trained = {run.spec.name: start("train", run, starts.get(run.spec.start, "")) for run in left}
            if timing is None and starts:
                next(iter(starts.values())).wait()
                timing = read_timing(home(), sweep)
                look_ahead()
            wait(list(trained.values()))
        except BaseException:  # cancelled or told to end: the arms leave checkpoints, and end before this process does
            children.end()
            raise
    return {name: run.result() for name, run in trained.items()}


def more_seeds(specification: AblationSpecification, report: "Report", workers: int) -> list[int]:
    """Seeds to add where the answer is not as narrow as asked for: as many as keep the workers busy; none at the limit.

    What decides is the width alone, never where the interval lies: stopping when it leaves zero would find too much. With
    fewer seeds than a verdict takes, a narrow interval means little: seeds that happen to fare alike.
    """
    until, seeds = specification.until, specification.seeds
    if until is None:
        return []
    needed = seeds_for_verdict(max(1, len(specification.arms) - 1))
    if len(seeds) >= needed and report.widest is not None and report.widest <= until.width:
        return []
    batch = max(1, workers // max(1, len(specification.runs()) // len(seeds)))
    new = (seed for seed in itertools.count() if seed not in seeds)
    return list(itertools.islice(new, min(batch, until.seeds - len(seeds))))


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


def title_of(name: Name, run: Run) -> str:
    """What the task and the flow run are called."""
    spec = run.spec
    if name == "train":
        return f"train {spec.name}"
    return " ".join(filter(None, ["warm start", f"seed {spec.seed}", spec.cell]))


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{title}")
def isolated(title: str, name: Name, failed_before: str, told: Any) -> str:
    """A child flow run in a process of its own: own torch threads and random state, and a crash takes nothing along.

    "" when it completed, else the reason. failed_before: why the warm start that it needs failed; then it is not started.
    """
    run, children, progress, say = told
    started = time.monotonic()
    not_started = f"not started, its warm start failed: {failed_before}" if failed_before else ""
    reason = not_started or run_to_end(children, name, run, say)
    far = progress.done(name, None if reason else time.monotonic() - started)
    if reason:
        say(f"warning: {title} FAILED: {reason} · {far}")
    elif name == "train":
        data = run.spec.experiment.data
        score = run.result()["metrics"][f"test/all/{data.headline}"]
        say(f"{run.spec.name}: test {data.headline_title} {score:.2f} · {far}")
    else:
        say(f"{title} · {far}")
    return reason


def _mlflow_is_away(task: Any, task_run: Any, state: Any) -> bool:
    from tasks.tracking.server import MlflowAway

    return isinstance(state.result(raise_on_failure=False), MlflowAway)


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    task_run_name="report",
    retries=30,
    retry_delay_seconds=20,
    retry_condition_fn=_mlflow_is_away,
)
def write_report(plan: Plan, exploratory: Sequence[str], say: Say) -> "Report":
    """Statistics and figures from MLflow's runs, into the sweep's report run, once they have all that they owe to MLflow.

    While MLflow is away this is tried for ten minutes. Then the sweep fails; started again, only the report is made.
    """
    from tasks.report import reporting
    from tasks.tracking.mlflow_runs import log_data
    from tasks.tracking.sending import send_runs
    from tasks.tracking.server import answering

    specification = plan.specification
    with answering():
        for version in sorted({*plan.versions.values()}):
            log_data(specification.name, version, data_folder(version))
        send_runs(home(), say, plan.places.keys())
        content = specification.model_dump(mode="json")
        return reporting.write_report(content, plan.sweep, plan.versions, plan.places, specification.cells, exploratory)


def show_report(report: "Report", sweep: str) -> None:
    """The report on the page of the sweep in Prefect."""
    from tasks.report.wording import literal_rows

    create_markdown_artifact(report.markdown, key=f"report-{sweep}".lower(), description=report.answer)
    create_table_artifact(literal_rows(report.rows), description="The result as a table")
    create_link_artifact(link=report.url, link_text="report.html in MLflow", description="The report, in MLflow")


def tell_what_moved(study: str, report: "Report", say: Say) -> None:
    """A warning and an event for each effect that left its earlier interval; automations can react to the event. Once: a
    report that is found as it was has told them."""
    from dataclasses import asdict

    from prefect.events import emit_event

    from tasks.report.watch import EVENT

    for arm in () if report.reused else report.moved:
        say(f"warning: {arm.sentence()}")
        resource = {"prefect.resource.id": f"igpo-lab.study.{study}", "prefect.resource.name": study}
        emit_event(EVENT, resource, payload={**asdict(arm), "report": report.url})


def show_links(specification: AblationSpecification, sweep: str, say: Say) -> dict[str, str]:
    """Links that open while the sweep runs; none to MLflow while it is away."""
    from tasks.tracking.server import MlflowAway, answering, experiment_id
    from tasks.tracking.views import show_view

    study = specification.name
    page = flow_run_url(str(flow_run.id))
    say(f"Prefect  {page}")
    try:
        with answering():
            arms, about, rubric = specification.arms, specification.description, specification.base.data.rubric
            curves = show_view(experiment_id(study), study, sweep, arms, about, rubric)
    except MlflowAway as error:
        say(f"warning: {error}. The sweep goes on; its runs send what they owe when MLflow answers")
        return {"prefect": page}
    say(f"Curves   {curves}")
    create_link_artifact(
        link=curves,
        link_text="Curves by arm in MLflow",
        description="Dev scores, turns and dead groups by arm, in MLflow",
    )
    return {"prefect": page, "curves": curves}


if __name__ == "__main__":
    from flows.command import main

    sys.exit(main(sys.argv[1:]))
