"""A report's tables again, from MLflow alone: python -m tasks.recompute REPORT_RUN_ID, with MLFLOW_TRACKING_URI where it is
not the embedded server. What it prints must be what the report says."""

import json
import sys
import tempfile
from pathlib import Path

from tasks.summaries import CellReport, cell_reports
from tasks.sweeps import collect
from tasks.tracking import client
from tasks.wording import aligned, terminal_table


def recompute(run_id: str) -> list[CellReport]:
    """The tables of a report run, computed again from the training runs in MLflow: its specification and which run stands
    for what are read from its artifacts, no number is."""
    import yaml

    mlflow = client()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(mlflow.download_artifacts(run_id, "", name))
        specification = yaml.safe_load((folder / "specification.yaml").read_text())
        known = json.loads((folder / "places.json").read_text())
    places = {key: [tuple(place) for place in places] for key, places in known["places"].items()}
    sweep = mlflow.get_run(run_id).data.tags["sweep"]
    return cell_reports(specification, collect(specification["name"], sweep, places), known["cells"])


def main(arguments: list[str]) -> int:
    for report in recompute(arguments[0]):
        if report.cell:
            print(f"\n{report.cell}")
        print(terminal_table(report.rows))
        for title, rows in report.tables.items():
            print(f"\n{title}\n{aligned(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
