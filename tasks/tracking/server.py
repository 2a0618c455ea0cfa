"""MLflow's server: where it is, whether it answers, its experiments, links to its pages, checkpoints as logged models."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlsplit

from igpo_core.errors import ConfigError, ServiceError
from tasks.lab.account import mlflow_has_account, read_account
from tasks.lab.home import home

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run, Trace

PARAMS_A_CALL = 100  # MLflow's limit for one log_batch call
RUNS_A_PAGE, TRACES_A_PAGE = 1000, 500  # the most that a server gives of traces
UPLOADED_BYTES = 50 * 2**20


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the embedded server's address."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given and urlsplit(given).password:
        raise ConfigError(
            "MLFLOW_TRACKING_URI carries a password, which links and logs would show: leave it out and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return given or _embedded_uri()


def _embedded_uri() -> str:
    return f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT') or '5000'}"


def client() -> "MlflowClient":
    """Return a client of MLflow's server whose calls give up within seconds."""
    from mlflow import MlflowClient

    # by default a call to a server that is away blocks for four minutes, and to one that hangs for sixteen
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for each small file of a report
    uri = tracking_uri()
    account = read_account(home()) if uri == _embedded_uri() and mlflow_has_account() else None
    if account and not os.environ.get("MLFLOW_TRACKING_USERNAME"):
        name, _, password = account.partition(":")
        os.environ.update(MLFLOW_TRACKING_USERNAME=name, MLFLOW_TRACKING_PASSWORD=password)
    return MlflowClient(uri)


class MlflowAway(ServiceError):
    """MLflow does not answer now; the same call later may succeed."""


class Collided(MlflowAway):
    """Two processes gave MLflow the same new entry at once, and it kept the other's: the next try finds that."""


# what SQLite and PostgreSQL say of two inserts of one row, in any table: MLflow looks whether it is there, then inserts it
COLLISIONS = ("UNIQUE constraint failed", "duplicate key value violates unique constraint")


# MLflow's codes of what passes by itself; INTERNAL_ERROR also stands for a connection that was refused or broken
PASSING = {
    "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_CONFLICT",
    "RESOURCE_EXHAUSTED", "TEMPORARILY_UNAVAILABLE",
}  # fmt: skip


def collided(error: Exception) -> bool:
    """Whether the error of a call to MLflow says that another process made the same entry at the same moment."""
    return any(words in str(error) for words in COLLISIONS)


def away(error: Exception) -> bool:
    """Whether the same call may succeed later: the server is away or overloaded, or another's call was in its way."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import HTTPError, RequestException

    if isinstance(error, MlflowException):
        return error.error_code in PASSING or collided(error)
    if isinstance(error, HTTPError) and error.response is not None:  # of artifacts
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return isinstance(error, RequestException)


@contextmanager
def answering() -> Iterator[None]:
    """Turn errors of MLflow's client into MlflowAway where another try may succeed; others go through."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except (MlflowException, RequestException) as error:
        if isinstance(error, MlflowException) and collided(error):
            raise Collided(
                f"another process made the same entry in MLflow at {tracking_uri()} just then; the next try finds it"
            ) from error
        if away(error):
            raise MlflowAway(f"MLflow at {tracking_uri()} does not answer ({brief(error)})") from error
        raise


def brief(error: Exception) -> str:
    """Return the cause of a refused connection, which urllib3 tells in five lines; of other errors the first line, for SQL and
    its values stand in the next ones."""
    text = " ".join(str(error).split())
    cause = text.find("Caused by ")
    if cause >= 0:
        return text[cause + len("Caused by ") :].rstrip(") ")
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return first.split("[SQL:")[0].strip()[:300]


def tag_filter(**tags: str) -> str:
    """MLflow's filter for runs that carry all these tags. Raises ConfigError on a value that cannot be quoted."""
    for name, value in tags.items():
        if "'" in value or '"' in value:
            raise ConfigError(f"{name} {value!r} contains a quotation mark, which MLflow cannot search for: rename it")
    return " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())


def experiment_id(name: str) -> str:
    """The experiment of this name, made when missing. Raises MlflowAway, or ServiceError when MLflow refuses."""
    from mlflow.exceptions import MlflowException

    mlflow = client()
    try:
        with answering():
            found = mlflow.get_experiment_by_name(name)
            if found is None:
                try:
                    return str(mlflow.create_experiment(name))
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                    found = mlflow.get_experiment_by_name(name)  # another process was first
    except MlflowException as error:
        if "error code 401" in str(error):
            raise ServiceError(
                f"MLflow at {tracking_uri()} asks for an account that this process does not have: set IGPO_MLFLOW_ACCOUNT=on "
                "where the servers were started with it, else MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from error
        raise ServiceError(f"MLflow at {tracking_uri()} does not serve: {brief(error)}") from error
    if found is None or found.lifecycle_stage != "active":
        raise ServiceError(f"MLflow experiment {name!r} was deleted: restore it in MLflow, or use another name")
    return str(found.experiment_id)


# --------------------------------------------------------------------------------------------------------- links


WORKSPACE = "workflowType=machine_learning"  # without it MLflow opens its pages for agents, which have no curves


def find_runs(experiments: Sequence[str], order: str = "attributes.start_time DESC", /, **tags: str) -> "list[Run]":
    """Return every run of these experiments with these tags: a server answers in pages."""
    return _every(
        lambda token: client().search_runs(
            list(experiments), tag_filter(**tags), max_results=RUNS_A_PAGE, order_by=[order], page_token=token
        )
    )


def find_traces(experiment_id: str, run_id: str, spans: bool) -> "list[Trace]":
    """Return every trace of a run, with its spans or without."""
    return _every(
        lambda token: client().search_traces(
            locations=[experiment_id], run_id=run_id, max_results=TRACES_A_PAGE, include_spans=spans, page_token=token
        )
    )


def _every(page_after: Callable[[str | None], Any]) -> list[Any]:
    """All pages of a list that the server cuts into pages, one behind the other."""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = page_after(token)
        found += page
        token = page.token
        if not token:
            return found


def run_url(experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page."""
    return f"{_experiment(experiment_id)}/runs/{run_id}?{WORKSPACE}"


def artifact_url(experiment_id: str, run_id: str, path: str) -> str:
    """Return the address of a run's page, opened at one of its artifacts."""
    return f"{_experiment(experiment_id)}/runs/{run_id}/artifacts/{quote(path)}?{WORKSPACE}"


def view_url(experiment_id: str, sweep: str) -> str:
    """Return the address of the shared view of a sweep's training runs (tasks/tracking/views.py writes it)."""
    return f"{_experiment(experiment_id)}/runs?viewStateShareKey={quote(sweep)}&compareRunsMode=CHART&{WORKSPACE}"


def trace_url(experiment_id: str, trace_id: str) -> str:
    """Return the address of one trace."""
    return f"{_experiment(experiment_id)}/traces?selectedEvaluationId={trace_id}&{WORKSPACE}"


def _experiment(experiment_id: str) -> str:
    return f"{tracking_uri()}/#/experiments/{experiment_id}"


# --------------------------------------------------------------------------------------------------- one run's log


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted params ("warm_start.stages.0.steps"); a list of plain values is one JSON value."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            value = {str(place): item for place, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def log_params(run_id: str, settings: Mapping[str, str]) -> None:
    """As many calls as MLflow's limit asks for."""
    from mlflow.entities import Param

    entries = [Param(name, value) for name, value in settings.items()]
    for start in range(0, len(entries), PARAMS_A_CALL):
        client().log_batch(run_id, params=entries[start : start + PARAMS_A_CALL])


def log_dataset(
    run_id: str, dataset: Mapping[str, str], context: Literal["training", "evaluation"] = "training"
) -> None:
    """Show the published data as the run's input."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": dataset["uri"]})
    entry = Dataset(dataset["name"], dataset["digest"], "local", source, profile=dataset["profile"])
    client().log_inputs(run_id, datasets=[DatasetInput(entry, [InputTag("mlflow.data.context", context)])])


# ----------------------------------------------------------------------------------------------------- checkpoints


def log_model_checkpoint(run_id: str, folder: Path, step: int) -> str:
    """Log the checkpoint as a model of the run and return the model's id.

    Its path and a hash of its files are its params, the hash is also a tag, and the files are artifacts of the run while they
    are small. Moments are none of them. Logging the same checkpoint again finds the model.
    """
    import mlflow

    from igpo_core.checkpoints import SHARDS, STATE, policy_digest
    from igpo_core.folders import whole_files

    mlflow.set_tracking_uri(tracking_uri())
    api = client()
    run = api.get_run(run_id)
    experiment = run.info.experiment_id
    digest = policy_digest(folder)
    for model in api.search_logged_models([experiment], tag_filter(policy_sha256=digest)):
        if model.source_run_id == run_id:
            return str(model.model_id)
    policy = [path for path in whole_files(folder) if path.name not in (STATE, SHARDS)]
    if sum(path.stat().st_size for path in policy) < UPLOADED_BYTES:
        for path in policy:
            api.log_artifact(run_id, str(path), f"checkpoints/{folder.name}")
    made = mlflow.create_external_model(
        name=model_name(run.info.run_name, step),
        source_run_id=run_id,
        tags={"policy_sha256": digest},
        params={"path": str(folder), "step": str(step), "policy_sha256": digest},
        model_type="policy",
        experiment_id=experiment,
    )
    return str(made.model_id)


def model_name(run_name: str, step: int) -> str:
    """Return the name under which a run's checkpoint is listed: arm, seed and cell are in the run's name.

    MLflow takes no / : . % and quotation marks in it.
    """
    return f"{re.sub(r'[^A-Za-z0-9_=,-]+', '-', run_name)}-step-{step}"
