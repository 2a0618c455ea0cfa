"""Flow `night`: a standing study. Each night makes its next seeds until a fixed number is there; then comes the verdict, once.

From then on a night runs a few fixed seeds again when code, data or a package that computes has changed, and says whether the
verdict moved; where it did, the nights after it make the study anew. Where the study stands is read from the runs on disk and
from MLflow. Each night sends one message.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from prefect.runtime import flow_run
from pydantic import Field

from flows.ablation import run_name
from flows.children import children_of
from flows.parameters import Preset
from flows.prepare_data import versions_of
from flows.report import show_report, tell_what_moved
from flows.sweep import require_progress, require_same_code, run_all
from igpo_core.config import AblationSpecification, make_plan
from igpo_core.config.identity import COMPUTING
from igpo_core.errors import ConfigError, IgpoError
from tasks.conclude import register_winners, write_report
from tasks.lab.home import home, open_home
from tasks.lab.prefect_runs import Say, flow_run_url, run_log
from tasks.lab.secrets import require_judge
from tasks.report import morning
from tasks.report.messages import Channel, Message, NotSent, open_channel
from tasks.report.nights import (
    Check,
    Progress,
    Verdict,
    find_check,
    find_verdict,
    fix_seeds,
    read_progress,
    read_report,
    read_scores,
    write_check,
    write_progress,
)
from tasks.report.reporting import versions as versions_now
from tasks.report.standing import Change, State, Study, changes, standing_study, tonight, what_changed
from tasks.report.watch import EVENT, comparison_of
from tasks.runs.dry_run import needed_disk
from tasks.runs.locks import locked
from tasks.runs.planned import Run, write_plan
from tasks.runs.pruning import prune, require_room
from tasks.runs.taught import require_verdict
from tasks.runs.work import simultaneous
from tasks.specification.presets import Request, resolve, study_name
from tasks.tracking.owed import send_runs
from tasks.tracking.server import answering, experiment_id


@flow(name="night", flow_run_name=run_name, validate_parameters=True)
def night(
    preset: Preset = "outcome-vs-igpo",
    seeds: Annotated[int, Field(ge=6, le=1000)] = 20,
    seeds_a_night: Annotated[int, Field(ge=1, le=1000)] = 4,
    check_seeds: Annotated[int, Field(ge=6, le=100)] = 10,
    notify: str = "",
    mail_to: str = "",
    keep_days: Annotated[float, Field(ge=1)] = 30,
    free_gb: Annotated[float, Field(ge=0)] = 5,
) -> dict[str, str]:
    """Go on with the study, check its verdict, or find that there is nothing to do. Returns the message.

    Args:
        seeds: Seeds of the study in all, fixed before its first night: the numbers after the preset's largest seed. The
            preset's own are left out, for their scores may have been seen.
        seeds_a_night: Seeds that one night makes.
        check_seeds: So many of the first seeds of the study are run again after a change of code, data or a package that
            computes. More of them see smaller changes.
        notify: The Prefect block that the message goes through, as slack-webhook/my-team. Empty: the artifact alone. Where there
            is no such block the night does its work, and fails at its end.
        mail_to: Address of the message where notify is a mail server, as email-server-credentials/lab.
        keep_days: Runs and warm starts not touched for so many days are deleted, unless something needs them.
        free_gb: The night does not begin where its runs would leave less than this free on the disk.
    """
    say = run_log()
    channel = find_channel(notify, mail_to)
    try:
        igpo_home = open_home()
        require_progress(flow_run.run_count)
        request, study = load_study(preset, seeds, seeds_a_night, check_seeds)
        with locked(igpo_home, f"sweep-{flow_run.id}", say):
            deleted = make_room(igpo_home, keep_days)
            message = go_on(igpo_home, request, study, free_gb, say)
    except Exception as error:
        failed = morning.failed(study_name(preset), error, f"prefect flow-run retry {flow_run.id}")
        tell(failed, study_name(preset), "", channel, say)
        raise
    told = tell(message, study.name, deleted, channel, say)
    if isinstance(channel, NoChannel):
        raise ConfigError(
            f"the night's work is done, and its message is artifact {key_of(study.name)}, but {channel.why}"
        )
    return told


@dataclass(frozen=True)
class NoChannel:
    """The block of the message was named, but cannot be used."""

    why: str
    """The reason, in words that hold no secret, for the message and for whoever set `notify`."""
    error: Exception
    """The reason itself, for the log."""


def find_channel(notify: str, mail_to: str) -> Channel | NoChannel | None:
    """Return the channel of the night's message; None where none was asked for.

    One that cannot be had does not cost the night its work, and none of what the work is worth: the message, which says so too.
    """
    try:
        return open_channel(notify, mail_to)
    except Exception as error:
        return NoChannel(f"it was sent to nobody. {morning.reason(error)}", error)


def load_study(preset: str, seeds: int, a_night: int, checks: int) -> tuple[Request, Study]:
    """Return the preset with the seeds of the study, and the study. Raises ConfigError where it cannot be one."""
    request = resolve(preset)
    given = request.specification
    if given.until is not None:
        raise ConfigError(
            f"{preset} adds seeds `until` an interval is narrow: a standing study has a fixed number. Remove until"
        )
    require_judge(given.base)
    compared = max(1, len(given.arms) - 1)
    study = standing_study(given.name, given.seeds, compared, len(given.cells), seeds, a_night, checks)
    return request.with_seeds(study.seeds), study


@dataclass(frozen=True)
class Known:
    """What MLflow knows of the study."""

    verdict: Verdict | None
    check: Check | None
    """The sweep of today's code and data."""
    before: Progress | None
    """How far the study was after the last night that went on with it."""


def go_on(igpo_home: Path, request: Request, study: Study, free_gb: float, say: Say) -> Message:
    """Do the night's work, and return its message."""
    specification = request.specification
    versions = versions_of(specification)
    require_verdict(specification, versions, "a standing study ends with a verdict")
    plan = make_plan(specification, versions)
    sweep, runs = plan.sweep, write_plan(plan, igpo_home)
    finished = finished_seeds(runs)
    known = known_of(specification, sweep)
    todo = tonight(study, sweep, state_of(finished, known))
    say(f"{sweep}: {len(finished)} of {len(study.seeds)} seeds are there; tonight: {todo}")
    if known.verdict and todo.task == "nothing":
        other = known.check if known.verdict.sweep != sweep else None  # a check of the verdict's own code led to it
        return morning.nothing(study, known.verdict, other.said if other else "")
    if todo.seeds:
        asked = [run for run in runs if run.spec.seed in todo.seeds]
        if not all(run.finished for run in asked):
            require_room(igpo_home, needed_disk(specification, asked), free_gb)
        train_all(asked, simultaneous(specification), say)
    if known.verdict and todo.task == "check":
        return check_verdict(specification, study, versions, sweep, known.verdict, say)
    now = Progress(comparison(specification), sweep, len(finished) + len(todo.seeds), computed_with(versions))
    anew = why_anew(known, study, now, len(finished))
    with answering():
        write_progress(experiment_id(specification.name), now)
    if not todo.last:
        return morning.progress(study, sweep, todo.seeds, now.finished, anew)
    report = write_report(plan, (), request.command, say)
    show_report(report, sweep)
    register_winners(plan, report, say)
    tell_what_moved(specification.name, report, say)
    return morning.verdict(study, sweep, report.answer, report.warnings, report.url, anew)


def state_of(finished: frozenset[int], known: Known) -> State:
    """Return the state of the study. finished: seeds of which every run of this code and data is finished."""
    verdict = known.verdict.sweep if known.verdict else ""
    if known.check is None:
        return State(finished, verdict)
    return State(finished, verdict, "moved" if known.check.moved else "not moved")


def why_anew(known: Known, study: Study, now: Progress, finished: int) -> str:
    """Say why the study has fewer seeds than after the night before; empty where it has not. finished: seeds that
    were there when the night began."""
    before = known.before
    if known.verdict:
        return morning.made_anew(known.verdict)
    if before is None or finished >= before.finished:
        return ""
    specification = [] if before.comparison == now.comparison else ["the specification"]
    return morning.restarted(before, len(study.seeds), specification + what_changed(before.versions, now.versions))


def comparison(specification: AblationSpecification) -> str:
    """Return what reports of the study share in their tag."""
    return comparison_of(specification.model_dump(mode="json"))


def computed_with(versions: dict[str, str]) -> dict[str, Any]:
    """Return what computes now, of packages those alone whose version is part of the code's. versions: of the data, by cell."""
    found = versions_now(versions, [])
    return {**found, "packages": {name: number for name, number in found["packages"].items() if name in COMPUTING}}


def finished_seeds(runs: Sequence[Run]) -> frozenset[int]:
    """Return the seeds whose every run is finished."""
    return frozenset(run.spec.seed for run in runs) - {run.spec.seed for run in runs if not run.finished}


def known_of(specification: AblationSpecification, sweep: str) -> Known:
    """Return what MLflow knows of the study. Raises ConfigError where its total was changed."""
    with answering():
        place, same, total = experiment_id(specification.name), comparison(specification), len(specification.seeds)
        fix_seeds(place, total)
        return Known(find_verdict(place, same, total, sweep), find_check(place, same, sweep), read_progress(place))


def train_all(runs: Sequence[Run], workers: int, say: Say) -> None:
    """Train those of the night's runs that are not finished. Raises IgpoError where one failed.

    No score is told on the way: a study that is not complete is not looked at.
    """
    if all(run.finished for run in runs):
        return
    children = children_of(str(flow_run.id), "processes", runs)
    reasons = run_all(runs, children, workers, say, scores=False)
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
        said = morning.checked(study, verdict, changed, found)
        url = write_check(place, comparison(specification), sweep, study.checks, found, said)
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
    return old.told() if old.all else ""


def tell(message: Message, study: str, deleted: str, channel: Channel | NoChannel | None, say: Say) -> dict[str, str]:
    """Make the message an artifact and send it. One that cannot be sent is a warning: the artifact has it."""
    page, key = flow_run_url(str(flow_run.id)), key_of(study)
    message = morning.with_details(message, flow_run.scheduled_start_time, deleted, page)
    if isinstance(channel, NoChannel):
        message = morning.with_warning(message, channel.why)
    create_markdown_artifact(morning.page(message), key=key, description="The message of the night")
    say(f"{message.subject}\n{message.body}")
    if isinstance(channel, Channel):
        try:
            channel.send(message)
        except NotSent as error:
            say(f"warning: the message of the night was not sent: {error}. It is in artifact {key}")
    return asdict(message)


def key_of(study: str) -> str:
    """Return the key of the artifact that the night's message is."""
    return "night-" + re.sub("[^a-z0-9]+", "-", study.lower())
