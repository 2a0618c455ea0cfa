"""Flow `prepare-data`: read, validate, publish. Bad rows are quarantined with reasons, good rows go on."""

from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.runtime import flow_run

from flows.parameters import Changes, Preset
from igpo_core.config import AblationSpecification
from tasks.lab.home import home, open_home
from tasks.lab.prefect_runs import run_log
from tasks.publish import log_to_mlflow, validate_and_publish
from tasks.report.wording import literal_rows
from tasks.specification.presets import load_specification, study_name

if TYPE_CHECKING:
    from tasks.data.publishing import PublishedData


def run_name() -> str:
    """Return the study's name."""
    return study_name(flow_run.parameters["preset"])


@flow(name="prepare-data", flow_run_name=run_name, validate_parameters=True)
def prepare_data(preset: Preset, set: Changes = None) -> dict[str, Any]:
    """Publish the data of a preset under its content version, or find it published: of each cell where factors change it.

    Returns version, folder, counts and link of the last one, and the versions by cell.
    """
    open_home()
    specification = load_specification(preset, set)
    by_cell: dict[str, str] = {}
    for cells, data in specification.data_settings():
        published = validate_and_publish(data)
        url = show(specification.name, published)
        by_cell |= dict.fromkeys(cells, published.version)
    return {
        "version": published.version,
        "folder": str(published.folder),
        "counts": published.counts,
        "url": url,
        "versions": by_cell,
    }


def versions_of(specification: AblationSpecification) -> dict[str, str]:
    """Return the data version of each cell: found published and whole, or published now and shown."""
    from tasks.data.publishing import find_published  # pandas takes a second

    by_cell: dict[str, str] = {}
    for cells, data in specification.data_settings():
        published = find_published(data, home())
        if published is None:
            published = validate_and_publish(data)
            show(specification.name, published)
        by_cell |= dict.fromkeys(cells, published.version)
    return by_cell


def show(study: str, published: "PublishedData") -> str | None:
    """Tell of published data in the log, and on the page in Prefect with a link to MLflow; return the link, None without one."""
    from tasks.data.publishing import summary_rows

    say = run_log()
    counts = ", ".join(f"{count} {split}" for split, count in published.counts.items())
    reused = "reused" if published.reused else "published"
    say(f"data {published.version} {reused}: {counts}; {published.quarantined} rows quarantined")
    for warning in published.warnings:
        say(f"warning: {warning}")
    create_table_artifact(literal_rows(summary_rows(published)), description=f"Data {published.version}")
    url = log_to_mlflow(study, published)
    text = "Data Docs and quarantine in MLflow"
    if url is None:
        say(f"Data Docs and quarantine are in {published.folder}: the next prepare-data or a sweep's report logs them")
        if published.checked is not None:
            say(f"what your own expectations found is in {published.checked}: the next prepare-data logs it")
    else:
        create_link_artifact(link=url, link_text=text, description=text)
    return url
