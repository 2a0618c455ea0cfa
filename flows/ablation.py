"""Flow `ablation`: arms x seeds (x cells of factors) from one specification, then statistics and report.

Every arm of a seed starts from the same warm start and sees the same questions in the same order with the same sampling
seeds and the same rollout budget; arms differ in the reward alone (flows/specification.py refuses anything else).
"""

import itertools
import sys
from typing import TYPE_CHECKING, Annotated, Any, get_args

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote
from pydantic import Field

from flows.children import Children, Name, Where, children_of, run_to_end
from flows.prepare_data import prepare_data
from flows.specification import AblationSpecification, load_specification
from igpo_core.config import code_on_disk, code_version
from igpo_core.errors import ConfigError, IgpoError
from tasks.home import data_folder, home, warm_start_folder
from tasks.locks import locked
from tasks.prefect_runs import flow_run_url
from tasks.runs import identify
from tasks.secrets import require_judge
from tasks.servers import require_servers
from tasks.statistics import seeds_for_verdict

if TYPE_CHECKING:
    from tasks.reporting import Report


STARTS = 10


@flow(name="ablation", flow_run_name="{preset}", validate_parameters=True)
def ablation(
    preset: str = "outcome-vs-igpo",
    arms: list[str] | None = None,
    seeds: list[int] | None = None,
    processes: Annotated[int | None, Field(ge=1, le=64)] = None,
    where: Where = "processes",
) -> dict[str, Any]:
    """Data, warm starts, runs, statistics, report. Finished parts are found again and reused.

    Args:
        preset: Preset name in deployments/presets, or path of a specification.
        arms: Only these arms, and the baseline. Empty: all of the preset.
        seeds: These run seeds, which must differ. Empty: the preset's.
        processes: Runs at the same time on this machine, 1 to 64. Empty: the preset's number.
        where: Where the arms run: in processes of this machine, or on work pool igpo-arms, which `make worker` serves.
    """
    say = get_run_logger().info
    require_progress(flow_run.run_count)
    specification = load_specification(preset).select(arms, seeds)
    workers = len(specification.runs()) if where == "pool" else processes or specification.processes
    say(plan(specification, workers))
    require_judge(specification.base)

    # taken for dead, though its machine was only cut off, this sweep may have been started a second time
    with locked(home(), f"sweep-{flow_run.id}", say):
        versions: dict[str, str] = prepare_data(preset)["versions"]
        sweep = specification.sweep(versions)
        links = show_links(specification.name, sweep)
        failed: dict[str, str] = {}
        while True:
            children = children_of(str(flow_run.id), where)
            reasons = run_all(specification, versions, sweep, preset, children, workers)
            failed = {name: reason for name, reason in reasons.items() if reason}
            require_same_code()
            if failed:
                listed = [f"  {name}: {why}" for name, why in failed.items()]
                say("\n".join([f"{len(failed)} of {len(reasons)} runs failed:", *listed]))
            if len(failed) == len(reasons):
                raise IgpoError(f"all {len(failed)} runs failed. {next(iter(failed))}: {next(iter(failed.values()))}")
            report = write_report(specification, sweep, versions)
            more = more_seeds(specification, report, workers)
            if not more:
                break
            widest = "none yet" if report.widest is None else f"{report.widest:.3f}"
            say(f"the widest interval ({widest}) or the number of seeds does not suffice yet: seeds {more} are added")
            specification = specification.select(None, [*specification.seeds, *more])
    create_markdown_artifact(report.markdown, key=f"report-{sweep}".lower(), description="The report: tables and words")
    create_table_artifact(report.rows, description="The result as a table")
    create_link_artifact(
        link=report.url, link_text="Report in MLflow: report.html", description="The report's run in MLflow"
    )
    create_link_artifact(
        link=report.compare, link_text="Compare the runs in MLflow", description="The runs, compared in MLflow"
    )
    tell_what_moved(specification.name, report)
    return {
        "sweep": sweep,
        "terminal": report.terminal,
        "failed": failed,
        "links": {
            **links,
            "comparison": report.compare,
            "report": report.url,
            "prefect": flow_run_url(str(flow_run.id)),
        },
    }


def run_all(
    specification: AblationSpecification,
    versions: dict[str, str],
    sweep: str,
    preset: str,
    children: Children,
    workers: int,
) -> dict[str, str]:
    """Every warm start, then every arm of its seed. Run name -> why it did not complete, "" where it did.

    First come, first served: the runs of the first seeds start while the last warm starts are being made. Cells that
    share a warm start wait for one.
    """
    from tasks.warm_starts import warm_start_key

    runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=workers)  # a thread a child
    with runner:

        def start(name: str, before: Any, cell: str, **parameters: Any) -> PrefectFuture[str]:
            given = {"preset": preset, **parameters, **({"cell": cell} if cell else {})}
            words = [name.replace("_", " "), parameters.get("arm", ""), f"seed {parameters['seed']}", cell]
            title = " ".join(filter(None, words))
            asked = {"title": title, "name": name, "parameters": given, "failed_before": before}
            future: PrefectFuture[str] = runner.submit(isolated, {**asked, "children": quote(children)})
            return future

        try:
            starts: dict[str, PrefectFuture[str]] = {}
            runs: dict[str, PrefectFuture[str]] = {}
            needed = {}
            for cell, arm, seed in specification.runs():
                needed[cell, arm, seed] = warm_start_key(specification.experiment(arm, seed, cell), versions[cell])
                if needed[cell, arm, seed] not in starts:
                    starts[needed[cell, arm, seed]] = start("warm_start", "", cell, seed=seed)
            for (cell, arm, seed), key in needed.items():
                name = " ".join(filter(None, [arm, f"seed {seed}", cell]))
                runs[name] = start("train", starts[key], cell, arm=arm, seed=seed)
            next(iter(starts.values())).wait()
            get_run_logger().info(outlook(specification, versions, sweep, workers))
            wait(list(runs.values()))
        except BaseException:  # cancelled or told to end: the arms leave checkpoints, and end before this process does
            children.end()
            raise
    return {name: run.result() for name, run in runs.items()}


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


def plan(specification: AblationSpecification, workers: int) -> str:
    """What will be made, in words."""
    runs, cells = specification.runs(), specification.cells
    budgets = sorted({_budget(specification.cell_base(cell)) for cell in cells})
    crossed = f" x {len(cells)} cells ({'; '.join(cells)})" if cells != ("",) else ""
    lines = [
        f"{specification.name}: {len(specification.arms)} arms ({', '.join(specification.arms)}) x {len(specification.seeds)} "
        f"seeds{crossed} = {len(runs)} runs, each {' or '.join(budgets)}, {workers} at a time; every arm of a seed starts from "
        "the same warm start"
    ]
    for arm in specification.arms:
        ignored = specification.ignored_factors(arm)
        if ignored:
            lines.append(f"{arm} ignores {', '.join(ignored)}: one run a seed serves all its levels")
    if len(specification.seeds) == 1:
        lines.append("warning: one seed has no interval; a difference of one seed says little")
    return "\n".join(lines)


def outlook(specification: AblationSpecification, versions: dict[str, str], sweep: str, workers: int) -> str:
    """What is left to be made and what it will take, once a step has been timed; how much of it is there already."""
    from tasks.planning import estimate, read_timing
    from tasks.warm_starts import warm_start_key

    asked = specification.runs()
    left = [
        (specification.experiment(arm, seed, cell), versions[cell])
        for cell, arm, seed in asked
        if identify(specification.experiment(arm, seed, cell), versions[cell], sweep, home()).result() is None
    ]
    starts = {warm_start_key(experiment, version) for experiment, version in left}
    missing = [key for key in starts if not warm_start_folder(key).exists()]
    timing = read_timing(home(), sweep)
    training = specification.base.training
    if timing is None and training.world > 1:
        there = len(asked) - len(left)
        return f"{there} of {len(asked)} runs were there; runs of several processes are not timed: see make dry-run"
    if timing is None:
        return "no step could be timed: the first warm start failed"
    text = estimate([experiment for experiment, _ in left], len(missing), timing, workers, home())
    return f"{len(asked) - len(left)} of {len(asked)} runs were there; {text}"


def _budget(base: Any) -> str:
    training, rollout = base.training, base.rollout
    rollouts = training.steps * rollout.questions * rollout.group_size
    if training.budget == "steps":
        return f"{training.steps} steps and {rollouts} rollouts"
    return f"{training.amount:g} {training.budget.replace('_', ' ')}, {training.steps} steps at most"


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{title}")
def isolated(title: str, name: Name, parameters: dict[str, Any], failed_before: str, children: Any) -> str:
    """A child flow run in a process of its own: own torch threads and random state, and a crash takes nothing along.

    "" when it completed, else the reason. failed_before: why the warm start that it needs failed; then it is not started.
    """
    if failed_before:
        return f"not started, its warm start failed: {failed_before}"
    return run_to_end(children, name, parameters, get_run_logger().info)


def _mlflow_is_away(task: Any, task_run: Any, state: Any) -> bool:
    from tasks.tracking import MlflowAway

    return isinstance(state.result(raise_on_failure=False), MlflowAway)


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    task_run_name="report",
    retries=30,
    retry_delay_seconds=20,
    retry_condition_fn=_mlflow_is_away,
)
def write_report(specification: AblationSpecification, sweep: str, versions: dict[str, str]) -> "Report":
    """Statistics and figures from MLflow's runs, into the sweep's report run, once they have all that they owe to MLflow.

    While MLflow is away this is tried for ten minutes. Then the sweep fails; started again, only the report is made.
    """
    from tasks import reporting
    from tasks.mlflow_runs import log_data
    from tasks.sending import send_runs
    from tasks.tracking import answering

    places = places_of(specification, sweep, versions)
    with answering():
        for version in sorted(set(versions.values())):
            log_data(specification.name, version, data_folder(version))
        send_runs(home(), get_run_logger().info, places.keys())
        return reporting.write_report(
            specification.model_dump(mode="json"), sweep, versions, places, specification.cells
        )


def places_of(
    specification: AblationSpecification, sweep: str, versions: dict[str, str]
) -> dict[str, list[tuple[str, str, int]]]:
    """Return run key -> (cell, arm, seed) that the run stands for."""
    places: dict[str, list[tuple[str, str, int]]] = {}
    for cell in specification.cells:
        for arm in specification.arms:
            for seed in specification.seeds:
                run = identify(specification.experiment(arm, seed, cell), versions[cell], sweep, home())
                places.setdefault(run.run_key, []).append((cell, arm, seed))
    return places


def tell_what_moved(study: str, report: "Report") -> None:
    """A warning and an event for each effect that left its earlier interval; automations can react to the event."""
    from dataclasses import asdict

    from prefect.events import emit_event

    from tasks.watch import EVENT

    for arm in report.moved:
        get_run_logger().warning(arm.sentence())
        resource = {"prefect.resource.id": f"igpo-lab.study.{study}", "prefect.resource.name": study}
        emit_event(EVENT, resource, payload={**asdict(arm), "report": report.url})


def show_links(study: str, sweep: str) -> dict[str, str]:
    """Links that open while the sweep runs; none while MLflow is away."""
    from tasks.tracking import MlflowAway, answering, chart_url, experiment_id

    try:
        with answering():
            chart = chart_url(experiment_id(study), sweep)
    except MlflowAway as error:
        get_run_logger().warning(f"{error} The sweep goes on; its runs send what they owe when MLflow answers")
        return {}
    create_link_artifact(
        link=chart, link_text="Curves of this sweep in MLflow", description="Curves in MLflow, while the runs go on"
    )
    return {"chart": chart}


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    from argparse import ArgumentTypeError

    if not all(part.isdecimal() for part in text.split(",")):
        raise ArgumentTypeError(f"{text!r} is no list of numbers: give it as 0,1,2 without spaces")
    return [int(part) for part in text.split(",")]


def main(arguments: list[str]) -> int:
    """python -m flows.ablation PRESET [--arms a,b] [--seeds 0,1] [--processes N] [--where processes|pool]"""
    import argparse

    from prefect.exceptions import PrefectHTTPStatusError

    parser = argparse.ArgumentParser(
        prog="python -m flows.ablation", description="Compare the arms of a preset: docs/operate.md."
    )
    parser.add_argument("preset", nargs="?", default="outcome-vs-igpo")
    parser.add_argument("--arms", type=_names, help="only these arms, and the baseline: a,b")
    parser.add_argument("--seeds", type=_numbers, help="these run seeds in place of the preset's: 0,1,2")
    parser.add_argument(
        "--processes", type=int, choices=range(1, 65), metavar="N", help="runs at the same time, 1 to 64"
    )
    parser.add_argument("--where", choices=get_args(Where), default="processes", help="where the arms run")
    chosen = parser.parse_args(arguments)
    try:
        load_specification(chosen.preset).select(chosen.arms, chosen.seeds)  # bad input fails before any run exists
        require_servers()
        outcome = ablation(chosen.preset, chosen.arms, chosen.seeds, chosen.processes, chosen.where)
    except IgpoError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except PrefectHTTPStatusError as error:
        print(
            f"\nThe Prefect server does not serve: {error}\nIts log is in {home() / 'logs'}; a full disk is the usual reason. "
            "Then start again: what is finished is reused.",
            file=sys.stderr,
        )
        return 1
    print("\n" + outcome["terminal"])
    for name, reason in outcome["failed"].items():
        print(f"FAILED {name}: {reason}")
    for name, link in outcome["links"].items():
        print(f"{name:>12}  {link}")
    return 1 if outcome["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
