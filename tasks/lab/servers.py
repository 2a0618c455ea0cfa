"""Whether the servers that a flow needs answer: asked before it starts, for their clients retry for minutes."""

from igpo_core.errors import ServiceError
from tasks.tracking.server import tracking_uri


def require_servers() -> None:
    """Raise ServiceError, naming the address and the remedy, unless Prefect and MLflow answer."""
    import httpx
    from prefect.settings import get_current_settings

    settings = get_current_settings().api
    prefect = settings.url
    if prefect is None:
        raise ServiceError("PREFECT_API_URL is not set: call this in the project folder, or set it as `make up` shows")
    account = settings.auth_string.get_secret_value() if settings.auth_string else ""
    auth = httpx.BasicAuth(*account.split(":", 1)) if ":" in account else None
    for title, variable, address, login in (
        ("Prefect", "PREFECT_API_URL", f"{prefect}/health", None),
        ("MLflow", "MLFLOW_TRACKING_URI", f"{tracking_uri()}/health", None),
        ("Prefect", "PREFECT_API_URL", f"{prefect}/admin/version", auth),
    ):
        try:
            answer = httpx.get(address, timeout=10, auth=login)
            if answer.status_code == httpx.codes.UNAUTHORIZED and title == "Prefect":
                raise ServiceError(
                    f"Prefect at {prefect} refuses {'the account of' if account else 'a call without'} "
                    "PREFECT_API_AUTH_STRING: call this in the project folder, or set it as `make up` shows"
                )
            answer.raise_for_status()
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            raise ServiceError(
                f"{title} does not answer at {address} ({error}): start it with `make up`, or set {variable} to a server "
                "that runs"
            ) from error
