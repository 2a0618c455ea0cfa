"""The report of a sweep: made of what MLflow has, and shown on the sweep's page in Prefect."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.runtime import flow_run

from igpo_core.config import AblationSpecification, Plan
from tasks.home import data_folder, home
from tasks.prefect_runs import Say, first_visit, flow_run_url
from tasks.report import reporting
from tasks.report.reporting import Report
from tasks.report.watch import EVENT
from tasks.report.wording import literal_rows
from tasks.runs.planned import Run
from tasks.tracking.mlflow_runs import log_data
from tasks.tracking.owed import send_runs
from tasks.tracking.server import MlflowAway, answering, experiment_id
from tasks.tracking.views import show_view


def mlflow_is_away(task: Any, task_run: Any, state: Any) -> bool:
    """Return whether a task failed because MLflow does not answer now."""
    return isinstance(state.result(raise_on_failure=False), MlflowAway)


# of a task that needs MLflow: tried for ten minutes while it is away
OUTLASTS_MLFLOW: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": 30,
    "retry_delay_seconds": 20,
    "retry_condition_fn": mlflow_is_away,
}


@task(**OUTLASTS_MLFLOW, task_run_name="report")
def write_report(plan: Plan, exploratory: Sequence[str], again: str, say: Say, added: Sequence[int] = ()) -> Report:
    """Statistics and figures from MLflow's runs, into the sweep's report run, once they have all that they owe to MLflow.
    again: the command that makes the comparison once more. added: seeds that `until` added.

    While MLflow is away this is tried for ten minutes. Then the sweep fails; started again, only the report is made.
    """
    specification = plan.specification
    with answering():
        for version in sorted({*plan.versions.values()}):
            log_data(specification.name, version, data_folder(version))
        send_runs(home(), say, plan.places.keys())
        content = specification.model_dump(mode="json")
        return reporting.write_report(
            content, plan.sweep, plan.versions, plan.places, specification.cells, again, exploratory, added
        )


@task(**OUTLASTS_MLFLOW, task_run_name="register the winner")
def register_winners(plan: Plan, report: Report, say: Say) -> None:
    """Register the winner of each cell's verdict in MLflow as models:/<study>@best.

    A sweep that departs from its preset registers it as @exploratory. A sweep that adds seeds registers the last report's winner.
    """
    from tasks.tracking.registry import register_winner  # torch takes seconds

    content = plan.specification.model_dump(mode="json")
    runs = {spec.run_key: Run(spec, home()) for spec in plan.runs}
    for winner in report.winners:
        own = [
            run
            for key, run in runs.items()
            if run.finished and any(place[:2] == (winner.cell, winner.arm) for place in plan.places[key])
        ]
        name = register_winner(winner, own, content, report.run_id, report.exploratory)
        say(f"registered {name}: {winner.arm}, {winner.verdict}")


def show_report(report: Report, sweep: str) -> None:
    """Show the report on the sweep's page in Prefect."""
    create_markdown_artifact(report.markdown, key=f"report-{sweep}".lower(), description=report.answer)
    create_table_artifact(literal_rows(report.rows), description="The result as a table")
    create_link_artifact(link=report.url, link_text="report.html in MLflow", description="The report, in MLflow")


def tell_what_moved(study: str, report: Report, say: Say) -> None:
    """A warning and an event for each effect that left its earlier interval; automations can react to the event. Once: a
    report that is found as it was has told them."""
    for arm in () if report.reused else report.moved:
        say(f"warning: {arm.sentence()}")
        resource = {"prefect.resource.id": f"igpo-lab.study.{study}", "prefect.resource.name": study}
        emit_event(EVENT, resource, payload={**asdict(arm), "report": report.url})


def show_links(specification: AblationSpecification, sweep: str, say: Say) -> dict[str, str]:
    """Links that open while the sweep runs; none to MLflow while it is away."""
    study = specification.name
    page = flow_run_url(str(flow_run.id))
    say("\n".join(first_visit(str(flow_run.id))))
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
