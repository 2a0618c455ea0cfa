"""A report's tables again, from MLflow alone: python -m tasks.report.recompute REPORT_RUN_ID, with MLFLOW_TRACKING_URI where
it is not the embedded server. What it prints must be what the report says."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from igpo_core.errors import DataError, IgpoError
from tasks.report.reporting import rubric_of
from tasks.report.summaries import CellReport, cell_reports
from tasks.report.sweeps import collect
from tasks.report.wording import aligned, terminal_table
from tasks.tracking.server import client, tracking_uri


def recompute(run_id: str) -> list[CellReport]:
    """The tables of a report run, computed again from the training runs in MLflow: its specification and which run stands
    for what are read from its artifacts, no number is."""
    import yaml
    from mlflow.exceptions import MlflowException

    mlflow = client()
    try:
        tags = mlflow.get_run(run_id).data.tags
    except MlflowException as error:
        raise DataError(f"MLflow at {tracking_uri()} gives no run {run_id}: {error.message}") from error
    if tags.get("kind") != "report":
        raise DataError(f"run {run_id} is no report of a sweep: give the id of its run tagged kind=report")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(mlflow.download_artifacts(run_id, "", name))
        specification = yaml.safe_load((folder / "specification.yaml").read_text())
        known = json.loads((folder / "places.json").read_text())
    places = {key: [tuple(place) for place in places] for key, places in known["places"].items()}
    found = collect(specification["name"], tags["sweep"], places, rubric=rubric_of(specification))
    return cell_reports(
        specification, found, known["cells"], known.get("by_heart", {})
    )  # reports until 2026-11-28 lack it


def main(arguments: list[str]) -> int:
    """Print the tables. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.report.recompute", description="A report's tables, from MLflow alone."
    )
    parser.add_argument("run_id", help="of the sweep's run tagged kind=report")
    try:
        reports = recompute(parser.parse_args(arguments).run_id)
    except IgpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for report in reports:
        if report.cell:
            print(f"\n{report.cell}")
        print(terminal_table(report.rows, report.columns))
        for title, rows in report.tables.items():
            print(f"\n{title}\n{aligned(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
