"""Flow `prepare-data`: read, validate, publish. Bad rows are quarantined with reasons, good rows go on."""

from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.parameters import Changes, Preset
from flows.presets import load_specification, study_name
from igpo_core.config import AblationSpecification, DataConfig
from tasks.home import home, open_home
from tasks.prefect_runs import run_log

if TYPE_CHECKING:
    from tasks.data.publishing import PublishedData


def run_name() -> str:
    """Return the study's name."""
    return study_name(flow_run.parameters["preset"])


@flow(name="prepare-data", flow_run_name=run_name, validate_parameters=True)
def prepare_data(preset: Preset, set: Changes | None = None) -> dict[str, Any]:
    """Publish the data of a preset under its content version, or find it published: of each cell where factors change it.

    Returns version, folder, counts and link of the last one, and the versions by cell.

    Args:
        set: Other settings in the preset's base.
    """
    from tasks.data.publishing import summary_rows
    from tasks.report.wording import literal_rows

    open_home()
    say = run_log()
    specification = load_specification(preset, set)
    by_cell: dict[str, Any] = {}
    for cells, data in specification.data_settings():
        published = validate_and_publish(data)
        by_cell |= dict.fromkeys(cells, published.version)
        counts = ", ".join(f"{count} {split}" for split, count in published.counts.items())
        reused = "reused" if published.reused else "published"
        say(f"data {published.version} {reused}: {counts}; {published.quarantined} rows quarantined")
        for warning in published.warnings:
            say(f"warning: {warning}")
        create_table_artifact(literal_rows(summary_rows(published)), description=f"Data {published.version}")
        url = log_to_mlflow(specification.name, published)
        if url is None:
            say(
                f"warning: MLflow does not answer: Data Docs and quarantine are in {published.folder}, and go there later"
            )
        else:
            create_link_artifact(
                link=url,
                link_text="Data Docs and quarantine in MLflow",
                description="Data Docs and quarantine in MLflow",
            )
    return {
        "version": published.version,
        "folder": str(published.folder),
        "counts": published.counts,
        "url": url,
        "versions": by_cell,
    }


def versions_of(specification: AblationSpecification) -> dict[str, str]:
    """The data version of each cell, published before or now."""
    from tasks.data.publishing import prepare

    return {
        cell: version
        for cells, data in specification.data_settings()
        for version in [prepare(data, home()).version]
        for cell in cells
    }


def published_versions(specification: AblationSpecification) -> dict[str, str] | None:
    """The data version of each cell where all were published before and are whole; nothing is made."""
    from tasks.data.publishing import find_published

    found: dict[str, str] = {}
    for cells, data in specification.data_settings():
        published = find_published(data, home())
        if published is None:
            return None
        found |= dict.fromkeys(cells, published.version)
    return found


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="validate and publish")
def validate_and_publish(data: DataConfig) -> "PublishedData":
    """Read, check and publish the data, or find them published."""
    from tasks.data.publishing import prepare

    return prepare(data, home())


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="log to MLflow")
def log_to_mlflow(study: str, published: Any) -> str | None:
    """One run tagged kind=data for each version, with Data Docs, quarantine and summary. None: MLflow is away, which is said;
    a sweep's report or the next call makes it."""
    from tasks.tracking.mlflow_runs import log_data
    from tasks.tracking.server import MlflowAway, answering

    try:
        with answering():
            return log_data(study, published.version, published.folder)
    except MlflowAway as error:
        run_log()(f"warning: {error}. The data are published; a sweep's report or the next call logs them")
        return None
