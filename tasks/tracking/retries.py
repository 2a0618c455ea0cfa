"""How a task that needs MLflow is tried again while MLflow is away."""

from typing import Any

from prefect.cache_policies import NO_CACHE

from tasks.tracking.server import MlflowAway


def mlflow_is_away(task: Any, task_run: Any, state: Any) -> bool:
    """Return whether a task failed because MLflow does not answer now."""
    return isinstance(state.result(raise_on_failure=False), MlflowAway)


# of a task that needs MLflow: tried for ten minutes while it is away
OUTLASTS_MLFLOW: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": 30,
    "retry_delay_seconds": 20,
    "retry_condition_fn": mlflow_is_away,
}
