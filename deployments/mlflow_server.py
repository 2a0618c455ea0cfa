"""MLflow's server, less what gives the rights of its user to whoever reaches it.

Of itself it reads and writes any folder that an experiment, a trace or a model names as the place of its files, and runs
commands that a language model asks for, a model that the caller names (its assistant). Both would hand the account of the Prefect
server to every user of this machine. Here files lie below --artifacts-destination alone, and there is no assistant.

python -m deployments.mlflow_server [options of `mlflow server`]
"""

import os
import sys
from pathlib import Path
from typing import Any

APPS = {  # MLflow's own application, as its command tells uvicorn -> the one that is served in its place
    "mlflow.server.fastapi_app:app": "deployments.mlflow_server:without_accounts",
    "mlflow.server.auth:create_app": "deployments.mlflow_server:with_accounts",
}


def without_accounts() -> Any:
    """Return the application for uvicorn."""
    _close()
    from mlflow.server.fastapi_app import app

    return app


def with_accounts() -> Any:
    """Return the application with MLflow's accounts, for uvicorn."""
    _close()
    from mlflow.server.auth import create_app

    return create_app()


def _close() -> None:
    """Take the assistant and all folders but one out of this process, before MLflow makes its application."""
    from mlflow.server.assistant.api import assistant_router
    from mlflow.store.artifact import artifact_repository_registry
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    assistant_router.routes.clear()
    repositories: Any = artifact_repository_registry._artifact_repository_registry
    for scheme in ("", "file"):
        repositories.register(scheme, _below_destination)
    tracking: Any = SqlAlchemyStore
    made = tracking.create_experiment

    # the clients of an experiment would write to the place that it names, too, be it a folder of theirs or another host
    def create_experiment(store: Any, name: str, artifact_location: str | None = None, tags: Any = None) -> Any:
        if artifact_location:
            raise _refusal(f"artifact_location={artifact_location!r}")
        return made(store, name, artifact_location, tags)

    tracking.create_experiment = create_experiment


def _below_destination(artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
    """The repository of a folder of this machine. Raises MlflowException for one that is not below the destination."""
    from mlflow.server.constants import ARTIFACTS_DESTINATION_ENV_VAR
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    repository = LocalArtifactRepository(artifact_uri, tracking_uri, registry_uri)
    allowed = LocalArtifactRepository(os.environ[ARTIFACTS_DESTINATION_ENV_VAR]).artifact_dir
    folder, own = Path(repository.artifact_dir).resolve(), Path(allowed).resolve()
    if own != folder and own not in folder.parents:
        raise _refusal(artifact_uri)
    return repository


def _refusal(what: str) -> Exception:
    from mlflow.exceptions import MlflowException

    refusal: Exception = MlflowException.invalid_parameter_value(
        f"{what}: this server keeps files below its --artifacts-destination alone: leave the location out"
    )
    return refusal


def _refuse_gunicorn(*settings: Any) -> list[str]:
    """MLflow would start its own application, which nobody has closed."""
    raise SystemExit("MLFLOW_GUNICORN_OPTS: this server is run by uvicorn alone: unset it, or set MLFLOW_UVICORN_OPTS")


def main(arguments: list[str]) -> None:
    """`mlflow server` with the applications of this module."""
    from mlflow import server
    from mlflow.cli import cli

    command: Any = server._build_uvicorn_command

    def build(*settings: Any) -> list[str]:
        *options, app = command(*settings)
        return [*(option for option in options if option != "--factory"), "--factory", APPS[app]]

    server._build_uvicorn_command = build
    server._build_gunicorn_command = _refuse_gunicorn
    cli(["server", *arguments], prog_name="mlflow")


if __name__ == "__main__":
    main(sys.argv[1:])
