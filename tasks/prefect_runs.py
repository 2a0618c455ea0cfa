"""What Prefect's server knows about child runs."""

from typing import Any
from uuid import UUID


def settle_child(parent_flow_run: str, parameters: dict[str, Any], exit_code: int | None) -> str:
    """Why the newest child of a flow run that has these parameters did not complete, after its process has ended; ""
    when it completed.

    A child without a final state died (killed, out of memory): it is set to Crashed with the exit code, so that nothing
    stays Running for ever.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.states import Crashed

    # Prefect parents a child to a task run of its own making, so a child is found by its flow run and parameters
    children = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[UUID(parent_flow_run)]))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=children, sort=FlowRunSort.EXPECTED_START_TIME_DESC)
        run = next((run for run in runs if run.parameters == parameters), None)
        if run is None or run.state is None:
            return f"its process ended with exit code {exit_code} before the run began"
        if run.state.is_completed():
            return ""
        if run.state.is_final():
            return (run.state.message or str(run.state.name)).removeprefix("Flow run encountered an exception: ")
        message = f"the process of this run ended with exit code {exit_code}"
        client.set_flow_run_state(run.id, Crashed(message=message), force=True)
        return message


def flow_run_url(run_id: UUID | str) -> str:
    """Where the run's page is in the Prefect UI."""
    from prefect.settings import get_current_settings

    api = str(get_current_settings().api.url or "")
    return f"{api.removesuffix('/api')}/runs/flow-run/{run_id}"
