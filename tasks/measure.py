"""Prefect tasks of an evaluation: measure each set of weights, and log what was measured to MLflow."""

from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.lab.home import home
from tasks.tracking.retries import OUTLASTS_MLFLOW

if TYPE_CHECKING:
    from tasks.report.evaluated import Compared


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{title}")
def measure_model(title: str, told: Any) -> None:
    """Measure one set of weights on every data set with every seed, as far as that is not there."""
    from tasks.runs.evaluations import measure

    units, environments, say = told
    measure(units, environments, home(), say)


@task(**OUTLASTS_MLFLOW, task_run_name="log to MLflow")
def log_to_mlflow(study: str, compared: "Compared", results: Any) -> str:
    """Log a run for each set of weights, and one that compares them. Returns its link."""
    from tasks.report.evaluated import by_weights
    from tasks.tracking.evaluations import log_comparison, log_model
    from tasks.tracking.server import answering

    with answering():
        return log_comparison(study, compared, results, [log_model(study, own, home()) for own in by_weights(results)])
