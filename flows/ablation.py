"""Flow `ablation`: arms x seeds (x cells of factors) from one specification, then statistics and report.

Every arm of a seed starts from the same warm start and sees the same questions in the same order with the same sampling
seeds and the same rollout budget; arms differ in the reward alone (igpo_core/config/specification.py refuses anything else).
"""

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from flows.children import Where, begin_imports, children_of
from flows.evaluate import compare_models
from flows.parameters import Arms, Changes, Preset, Seeds
from flows.prepare_data import versions_of
from flows.report import show_links, show_report, tell_what_moved
from flows.sweep import require_progress, require_same_code, run_all
from igpo_core.config import AblationSpecification, Plan, make_plan
from igpo_core.config.specification import spell_changes
from igpo_core.errors import IgpoError
from tasks.conclude import register_winners, write_report
from tasks.data.published import mark_whole
from tasks.lab.home import data_folder, open_home
from tasks.lab.prefect_runs import Say, run_log
from tasks.lab.secrets import require_judge
from tasks.lab.terminal import hush_tasks
from tasks.report.reporting import Report
from tasks.report.statistics import seeds_for_verdict
from tasks.runs.asked import Ending, plan_sweep_evaluation, require_one_cell
from tasks.runs.locks import SWEEP, locked
from tasks.runs.models import ready
from tasks.runs.planned import Run, write_plan
from tasks.runs.taught import about_warm_start, require_verdict
from tasks.runs.work import announce, simultaneous, tell_next
from tasks.specification.presets import resolve, study_name


def run_name() -> str:
    """Return the study, and what is set besides."""
    given = flow_run.parameters
    return " · ".join(filter(None, [study_name(given["preset"]), spell_changes(given.get("set") or {})]))


@flow(name="ablation", flow_run_name=run_name, validate_parameters=True)
def ablation(
    preset: Preset = "outcome-vs-igpo",
    arms: Arms = None,
    seeds: Seeds | None = None,
    processes: Annotated[int | None, Field(ge=1, le=64)] = None,
    where: Where = "processes",
    set: Changes = None,
    evaluate: Annotated[list[Ending] | None, Field(min_length=1)] = None,
) -> dict[str, Any]:
    """Data, warm starts, runs, statistics, report. Finished parts are found again and reused.

    Args:
        seeds: These run seeds, which must differ; any others than the preset's are exploratory. Empty: the preset's.
        processes: Runs at the same time on this machine, 1 to 64. Empty: the preset's number, else what the machine has.
        where: Where the arms run: in processes of this machine, or on work pool igpo-arms, which `make worker` serves.
        evaluate: What of the sweep is compared at its end on the test questions, the first with the others: base (the policy
            before any training), start (warm starts), last and best (checkpoints of every arm). Not with factors. Empty:
            the report alone.
    """
    request = resolve(preset, set, arms, seeds)
    if evaluate:
        require_one_cell(request.specification)
    igpo_home, say = open_home(), run_log()
    hush_tasks()
    require_progress(flow_run.run_count)
    specification = request.specification
    workers = len(specification.runs()) if where == "pool" else simultaneous(specification, processes)
    say(announce(specification, workers))
    require_judge(specification.base)
    begin_imports(where)

    # taken for dead, though its machine was only cut off, this sweep may have been started a second time; whoever starts the
    # servers takes one that holds no lock for dead
    with locked(igpo_home, f"{SWEEP}{flow_run.id}", say):
        versions = versions_of(specification)
        if specification.until:
            require_verdict(specification, versions, "until adds seeds for the sake of a verdict")
        make_ready(specification, versions, igpo_home, say)
        links = show_links(specification, specification.sweep(versions), say)
        while True:
            plan = make_plan(request.specification, versions)
            runs = write_plan(plan, igpo_home)
            failed = make_runs(runs, where, workers, say)
            say("making the report")  # said once, however often the task is tried
            report = write_report(plan, request.exploratory, request.command, say, request.added)
            more = more_seeds(request.specification, report, workers)
            if not more:
                break
            widest = "none yet" if report.widest is None else f"{report.widest:.3f}"
            say(f"the widest interval ({widest}) or the number of seeds does not suffice yet: seeds {more} are added")
            request = request.go_on(more)
        links |= tell(plan, report, say)
        if evaluate:
            compare_models(plan_sweep_evaluation(evaluate, plan, say), say)
        tell_next(specification.name, igpo_home, say)
    return {
        "sweep": plan.sweep,
        "answer": report.answer,
        "terminal": report.terminal,
        "failed": failed,
        "links": links,
    }


def tell(plan: Plan, report: Report, say: Say) -> dict[str, str]:
    """Show the report, register its winner, and say the answer. Returns the links."""
    if report.reused:
        say(f"the report of {report.made} holds: nothing that it is made of has changed")
    show_report(report, plan.sweep)
    if report.winners:
        say("registering the winner")
    register_winners(plan, report, say)
    tell_what_moved(plan.specification.name, report, say)
    file = {"file": str(report.file)} if report.file else {}
    say("\n".join(["", report.terminal, "", f"Report   {report.url}", *(f"         {path}" for path in file.values())]))
    return {"curves": report.compare, "report": report.url, **file}


def make_ready(specification: AblationSpecification, versions: Mapping[str, str], home: Path, say: Say) -> None:
    """Convert models in GGUF files before several processes want them, and say what is odd about warm starts."""
    for cell, version in versions.items():
        base = specification.cell_base(cell)
        for line in about_warm_start(base, data_folder(version)):
            say(f"warning: {line}")
        ready(base.policy, home, say)


def make_runs(runs: Sequence[Run], where: Where, workers: int, say: Say) -> dict[str, str]:
    """Train the sweep's runs that are not finished. Returns run name -> why it failed. Raises IgpoError where all failed, and
    before any where this machine lacks the accelerators that they want."""
    for run in runs:
        mark_whole(run.data, run.spec.sweep)  # it was looked at just now
    failed: dict[str, str] = {}
    if all(run.finished for run in runs):
        say("every run was there")
    else:
        reasons = run_all(runs, children_of(str(flow_run.id), where, runs), workers, say)
        failed = {name: reason for name, reason in reasons.items() if reason}
    require_same_code()
    if failed:
        say("\n  ".join([f"{len(failed)} of {len(runs)} runs failed:", *map(": ".join, failed.items())]))
    if len(failed) == len(runs):
        raise IgpoError(f"all {len(failed)} runs failed. {next(iter(failed))}: {next(iter(failed.values()))}")
    return failed


def more_seeds(specification: AblationSpecification, report: Report, workers: int) -> list[int]:
    """Seeds to add where the answer is not as narrow as asked for: as many as keep the workers busy; none at the limit. They
    are counted on from the largest: smaller ones may be those that something was chosen on.

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
    return list(itertools.islice(itertools.count(max(seeds) + 1), min(batch, until.seeds - len(seeds))))


if __name__ == "__main__":
    from flows.command import main

    sys.exit(main(sys.argv[1:]))
