"""What Prefect's server knows about child runs."""

from typing import Any
from uuid import UUID


def crash_unfinished_children(parent_task_run: UUID, exit_code: int | None) -> str:
    """The state type of the one flow run started by this task run.

    A child whose process has ended without a final state died (killed, out of memory): it is set to Crashed with the
    exit code, so that nothing stays Running for ever. "NONE" when the process died before its flow run existed.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentTaskRunId
    from prefect.states import Crashed

    with get_client(sync_client=True) as client:
        children: list[Any] = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(parent_task_run_id=FlowRunFilterParentTaskRunId(any_=[parent_task_run]))
        )
        if not children:
            return "NONE"
        state = children[0].state
        if not state.is_final():
            message = f"the process of this run ended with exit code {exit_code}"
            client.set_flow_run_state(children[0].id, Crashed(message=message), force=True)
            return "CRASHED"
        return str(state.type.value)


def flow_run_url(run_id: UUID | str) -> str:
    """Where the run's page is in the Prefect UI."""
    from prefect.settings import get_current_settings

    api = str(get_current_settings().api.url or "")
    return f"{api.removesuffix('/api')}/runs/flow-run/{run_id}"
