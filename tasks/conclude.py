"""Prefect tasks at the end of a sweep: its report, and the winner in its registry."""

from collections.abc import Sequence

from prefect import task

from igpo_core.config import Plan
from tasks.lab.home import data_folder, home
from tasks.lab.prefect_runs import Say
from tasks.report import reporting
from tasks.report.reporting import Report
from tasks.runs.planned import Run
from tasks.runs.taught import taught_by_heart
from tasks.tracking.mlflow_runs import log_data
from tasks.tracking.owed import send_runs
from tasks.tracking.retries import OUTLASTS_MLFLOW
from tasks.tracking.server import answering


@task(**OUTLASTS_MLFLOW, task_run_name="report")
def write_report(plan: Plan, exploratory: Sequence[str], again: str, say: Say, added: Sequence[int] = ()) -> Report:
    """Write statistics and figures of the runs into the sweep's report run, once they have all that they owe to MLflow.
    again: the command that makes the comparison once more. added: seeds that `until` added.

    While MLflow is away this is tried for ten minutes. Then the sweep fails; started again, only the report is made.
    """
    specification = plan.specification
    with answering():
        for version in sorted({*plan.versions.values()}):
            log_data(specification.name, version, data_folder(version))
        send_runs(home(), say, plan.places.keys())
        content = specification.model_dump(mode="json")
        by_heart = taught_by_heart(specification, plan.versions)
        return reporting.write_report(
            content, plan.sweep, plan.versions, plan.places, specification.cells, again, exploratory, added, by_heart
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
