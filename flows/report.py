"""What a sweep's page in Prefect shows: its links, its report, and what moved since the report before."""

from dataclasses import asdict

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.events import emit_event
from prefect.runtime import flow_run

from igpo_core.config import AblationSpecification
from tasks.lab.prefect_runs import Say, first_visit, flow_run_url
from tasks.report.reporting import Report
from tasks.report.watch import EVENT
from tasks.report.wording import literal_rows
from tasks.tracking.server import MlflowAway, answering, experiment_id
from tasks.tracking.views import show_view


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
