"""Flow `night`: a standing study. Each night makes its next seeds until a fixed number is there; then comes the verdict, once.

From then on a night runs a few fixed seeds again when code, data or a package that computes has changed, and says whether the
verdict moved. Where the study stands is read from the runs on disk and the reports in MLflow. Each night sends one message.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from prefect.runtime import flow_run
from pydantic import Field

from flows.ablation import run_name
from flows.children import children_of
from flows.dry_run import needed_disk
from flows.parameters import Preset
from flows.prepare_data import versions_of
from flows.presets import Request, resolve, study_name
from flows.report import register_winners, show_report, tell_what_moved, write_report
from flows.sweep import require_progress, require_same_code, run_all
from flows.work import simultaneous
from igpo_core.config import AblationSpecification, make_plan
from igpo_core.errors import ConfigError, IgpoError
from tasks.home import home, open_home
from tasks.prefect_runs import Say, flow_run_url, run_log
from tasks.report import morning
from tasks.report.messages import Channel, Message, NotSent, open_channel
from tasks.report.nights import Verdict, find_check, find_verdict, fix_seeds, read_report, read_scores, write_check
from tasks.report.reporting import comparison_of
from tasks.report.reporting import versions as versions_now
from tasks.report.standing import Change, State, Study, changes, standing_study, tonight, what_changed
from tasks.report.watch import EVENT
from tasks.runs.locks import locked
from tasks.runs.planned import Run, write_plan
from tasks.runs.pruning import prune, require_room
from tasks.secrets import require_judge
from tasks.tracking.sending import send_runs
from tasks.tracking.server import answering, experiment_id


@flow(name="night", flow_run_name=run_name, validate_parameters=True)
def night(
    preset: Preset = "outcome-vs-igpo",
    seeds: Annotated[int, Field(ge=6, le=1000)] = 20,
    seeds_a_night: Annotated[int, Field(ge=1, le=1000)] = 4,
    check_seeds: Annotated[int, Field(ge=1, le=100)] = 3,
    notify: str = "",
    mail_to: str = "",
    keep_days: Annotated[float, Field(ge=1)] = 30,
    free_gb: Annotated[float, Field(ge=0)] = 5,
) -> dict[str, str]:
    """Go on with the study, check its verdict, or find that there is nothing to do. Returns the message.

    Args:
        seeds: Seeds of the study in all, fixed before its first night: the preset's own, then the numbers after them.
        seeds_a_night: Seeds that one night makes.
        check_seeds: The first seeds of the study, which are run again after a change of code, data or a package that computes.
        notify: The Prefect block that the message goes through, as slack-webhook/my-team. Empty: the artifact alone.
        mail_to: Address of the message where notify is a mail server, as email-server-credentials/lab.
        keep_days: Runs and warm starts not touched for so many days are deleted, unless something needs them.
        free_gb: The night does not begin where its runs would leave less than this free on the disk.
    """
    igpo_home = open_home()
    say, channel = run_log(), open_channel(notify, mail_to)
    try:
        require_progress(flow_run.run_count)
        request, study = load_study(preset, seeds, seeds_a_night, check_seeds)
        with locked(igpo_home, f"sweep-{flow_run.id}", say):
            deleted = make_room(igpo_home, keep_days)
            message = go_on(igpo_home, request, study, free_gb, say)
    except Exception as error:
        failed = morning.failed(study_name(preset), error, f"prefect flow-run retry {flow_run.id}")
        tell(failed, study_name(preset), "", channel, say)
        raise
    return tell(message, study.name, deleted, channel, say)


def load_study(preset: str, seeds: int, a_night: int, checks: int) -> tuple[Request, Study]:
    """Return the preset with the seeds of the study, and the study. Raises ConfigError where it cannot be one."""
    request = resolve(preset)
    given = request.specification
    if given.until is not None:
        raise ConfigError(
            f"{preset} adds seeds `until` an interval is narrow: a standing study has a fixed number. Remove until"
        )
    require_judge(given.base)
    study = standing_study(given.name, given.seeds, max(1, len(given.arms) - 1), seeds, a_night, checks)
    return request.with_seeds(study.seeds), study


def go_on(igpo_home: Path, request: Request, study: Study, free_gb: float, say: Say) -> Message:
    """Do what the night has to do. Returns what there is to say."""
    specification = request.specification
    versions = versions_of(specification)
    plan = make_plan(specification, versions)
    sweep, runs = plan.sweep, write_plan(plan, igpo_home)
    finished = finished_seeds(runs)
    verdict, check = known_of(specification, sweep)
    todo = tonight(study, sweep, State(finished, verdict.sweep if verdict else "", bool(check)))
    say(f"{sweep}: {len(finished)} of {len(study.seeds)} seeds are there; tonight: {todo}")
    if verdict and todo.task == "nothing":
        return morning.nothing(study, verdict, check)
    if todo.seeds:
        asked = [run for run in runs if run.spec.seed in todo.seeds]
        if not all(run.finished for run in asked):
            require_room(igpo_home, needed_disk(specification, asked), free_gb)
        train_all(asked, simultaneous(specification), say)
    if verdict:
        return check_verdict(specification, study, versions, sweep, verdict, say)
    if not todo.last:
        return morning.progress(study, sweep, todo.seeds, len(finished) + len(todo.seeds))
    report = write_report(plan, (), request.command, say)
    show_report(report, sweep)
    register_winners(plan, report, say)
    tell_what_moved(specification.name, report, say)
    return morning.verdict(study, sweep, report.answer, report.warnings, report.url)


def finished_seeds(runs: Sequence[Run]) -> frozenset[int]:
    """Return the seeds whose every run is finished."""
    return frozenset(run.spec.seed for run in runs) - {run.spec.seed for run in runs if not run.finished}


def known_of(specification: AblationSpecification, sweep: str) -> tuple[Verdict | None, str]:
    """Return the study's verdict, and what the check of this sweep said. Raises ConfigError where its total was changed."""
    with answering():
        place, comparison = experiment_id(specification.name), comparison_of(specification.model_dump(mode="json"))
        fix_seeds(place, len(specification.seeds))
        return find_verdict(place, comparison, len(specification.seeds)), find_check(place, comparison, sweep)


def train_all(runs: Sequence[Run], workers: int, say: Say) -> None:
    """Train those of the night's runs that are not finished. Raises IgpoError where one failed."""
    if all(run.finished for run in runs):
        return
    children = children_of(str(flow_run.id), "processes")
    reasons = run_all(runs, children, workers, say)
    require_same_code()
    failed = [f"{name}: {why}" for name, why in reasons.items() if why]
    if failed:
        raise IgpoError("\n".join([f"{len(failed)} of {len(reasons)} runs failed:", *failed]))


def check_verdict(
    specification: AblationSpecification,
    study: Study,
    versions: dict[str, str],
    sweep: str,
    verdict: Verdict,
    say: Say,
) -> Message:
    """Compare the check seeds of now with the study. Returns whether its verdict moved, in words."""
    checked = make_plan(specification.select(None, list(study.checks)), versions).places
    with answering():
        send_runs(home(), say, checked.keys())
        place = experiment_id(specification.name)
        made_with, places = read_report(verdict.run_id)
        headline = specification.base.data.headline
        now = read_scores(place, sweep, checked, headline)
        found = changes(read_scores(place, verdict.sweep, places, headline), now, specification.baseline, study.checks)
        changed = what_changed(made_with, versions_now(versions, []))
        said = morning.checked(study, verdict, changed, found, _again(specification))
        comparison = comparison_of(specification.model_dump(mode="json"))
        url = write_check(place, comparison, sweep, study.checks, found, said)
    announce(specification.name, [change for change in found if change.moved], url)
    return morning.check(study, verdict, found, said)


def announce(study: str, moved: Sequence[Change], url: str) -> None:
    """Emit an event for each arm whose verdict moved; automations can react to it."""
    for change in moved:
        resource = {"prefect.resource.id": f"igpo-lab.study.{study}", "prefect.resource.name": study}
        emit_event(EVENT, resource, payload={**asdict(change), "report": url})


def make_room(igpo_home: Path, keep_days: float) -> str:
    """Delete old runs and warm starts of a home. Returns what was deleted, in words; empty where it was nothing."""
    old = prune(igpo_home, flow_run.scheduled_start_time.timestamp(), keep_days, delete=True)
    return old.told() if old.runs or old.warm_starts else ""


def tell(message: Message, study: str, deleted: str, channel: Channel | None, say: Say) -> dict[str, str]:
    """Make the message an artifact and send it. One that cannot be sent is a warning: the artifact has it."""
    page = flow_run_url(str(flow_run.id))
    message = morning.with_details(message, flow_run.scheduled_start_time, deleted, page)
    key = "night-" + re.sub("[^a-z0-9]+", "-", study.lower())
    create_markdown_artifact(morning.page(message), key=key, description="The message of the night")
    say(f"{message.subject}\n{message.body}")
    if channel is not None:
        try:
            channel.send(message)
        except NotSent as error:
            say(f"warning: the message of the night was not sent: {error}. It is in artifact {key}")
    return asdict(message)


def _again(specification: AblationSpecification) -> str:
    seeds = list(specification.seeds)
    return f"""prefect deployment run 'ablation/{specification.name}' --params '{{"seeds": {seeds}}}'"""
