"""Prefect tasks of data: read, check and publish them, and show them in MLflow."""

from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from igpo_core.config import DataConfig
from tasks.lab.home import home
from tasks.lab.prefect_runs import run_log
from tasks.tracking.mlflow_runs import log_data
from tasks.tracking.server import MlflowAway, answering

if TYPE_CHECKING:
    from tasks.data.publishing import PublishedData


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="validate and publish")
def validate_and_publish(data: DataConfig) -> "PublishedData":
    """Read, check and publish the data, or find them published."""
    from tasks.data.publishing import prepare

    return prepare(data, home())


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="log to MLflow")
def log_to_mlflow(study: str, published: Any) -> str | None:
    """One run tagged kind=data for each version and suites, with Data Docs, quarantine and summary. None: MLflow is away, which
    is said; a sweep's report or the next call makes it."""
    try:
        with answering():
            return log_data(study, published.version, published.folder, published.checked)
    except MlflowAway as error:
        run_log()(f"warning: {error}. The data are published")
        return None
