"""MLflow's pages that links open: a shared view of a sweep's curves by arm, and the words above an experiment's runs.

A shared view is a tag of the experiment that holds a state of MLflow's page: which runs, grouped how, which columns and charts.
MLflow's own button "Share" writes the same tag.
"""

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

from tasks.tracking.server import client, flatten, view_url

BEHAVIOUR = ("train/turns", "advantage/dead_groups")
SECTION = "By arm: mean and range"


def show_view(
    experiment_id: str,
    study: str,
    sweep: str,
    arms: Mapping[str, Mapping[str, Any]],
    about: str,
    rubric: Mapping[str, str],
) -> str:
    """Write the sweep's shared view and the experiment's note. Returns the address that opens the view.

    arms: arm -> what it sets. about: the description of the study. rubric: title of each score, the headline first.
    """
    headline, title = next(iter(rubric.items()))
    mlflow = client()
    mlflow.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{sweep}", pack(view_state(sweep, headline)))
    url = view_url(experiment_id, sweep)
    mlflow.set_experiment_tag(experiment_id, "mlflow.note.content", note(study, sweep, arms, about, url, title))
    return url


def view_state(sweep: str, headline: str) -> dict[str, Any]:
    """Return the state of MLflow's runs page that shows the training runs of a sweep, grouped by arm."""
    dev, test = f"eval/all/{headline}", f"test/all/{headline}"
    charts = [
        {
            "type": "LINE",
            "uuid": f"by-arm-{place}",
            "metricSectionId": "by-arm",
            "metricKey": metric,
            "runsCountToCompare": 10,
            "deleted": False,
            "isGenerated": False,
            "lineSmoothness": 0,
            "xAxisKey": "step",
            "xAxisScaleType": "linear",
            "scaleType": "linear",
            "yAxisKey": "metric",
            "yAxisExpressions": [],
            "selectedXAxisMetricKey": "",
            "useGlobalXaxisKey": True,
            "useGlobalLineSmoothing": True,
            "range": {},
        }
        for place, metric in enumerate((dev, *BEHAVIOUR, f"train/{headline}"))
    ]
    return {
        "searchFilter": f'tags.sweep = "{sweep}" and tags.kind = "train"',
        "orderByKey": f"metrics.`{test}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "arm"}]},
        "useGroupedValuesInCharts": True,
        "runsHiddenMode": "SHOW_ALL",
        "selectedColumns": [
            *(f"metrics.`{metric}`" for metric in (test, dev, *BEHAVIOUR)),
            "tags.`arm`",
            "tags.`seed`",
        ],
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": "by-arm", "name": SECTION, "display": True, "isReordered": True, "deleted": False}
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }


def pack(state: Mapping[str, Any]) -> str:
    """Return the state as MLflow keeps it in a tag, which holds 5000 characters at most."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()


def note(study: str, sweep: str, arms: Mapping[str, Mapping[str, Any]], about: str, url: str, title: str) -> str:
    """Return what MLflow shows above the runs of an experiment, as markdown."""
    rows = [f"| `{arm}` | {_settings(changes)} |" for arm, changes in arms.items()]
    return "\n".join(
        [
            f"**[Curves of {sweep} by arm]({url})**: dev {title}, turns and dead groups, mean and band over seeds.",
            *(["", about] if about else []),
            "",
            "| arm | what it sets |",
            "|---|---|",
            *rows,
            "",
            "Runs are tagged with `kind`: `train` is one arm with one seed, `report` a comparison (open its artifact "
            "`report.html`), `data` the questions, `evaluation` a model on some questions, `comparison` several of them. `sweep` "
            f"names the runs that were compared. Every run of {study} is in this experiment. A run has the colour of its arm in "
            "the report; a group of runs has one of MLflow's choice.",
        ]
    )


def _settings(changes: Mapping[str, Any]) -> str:
    """Return `gain: prob_diff` and so on, one after another; of a function its path, not its text."""
    told = [f"`{name}: {value}`" for name, value in flatten(changes).items() if name != "gain.source"]
    return ", ".join(told) or "nothing"
