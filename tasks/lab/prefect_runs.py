"""What Prefect's server knows about runs, what their pages show, and their log."""

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from tasks.lab.account import account_file, read_account
from tasks.lab.home import home
from tasks.tracking.background import Background

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

Say = Callable[[str], None]
Result = TypeVar("Result")
PATIENCE_SECONDS = 1800  # a Prefect server that is away for longer fails the call
SILENT_SECONDS = 180  # workers send a heartbeat every 30 s


TOLD = "told"  # attribute of the records that say something to people; Prefect's own lines lack it


def run_log() -> Say:
    """A function that writes a line into the log of the flow run or task run that calls this, as a warning where it starts
    with "warning:"."""
    from prefect import get_run_logger

    logger = get_run_logger()

    def say(line: str) -> None:
        level = logging.WARNING if line.startswith("warning:") else logging.INFO
        logger.log(level, line, extra={TOLD: True})

    return say


@dataclass(frozen=True)
class Ended:
    """How a child run ended. reason: "" when it completed. crashed: its process died; started again it may succeed."""

    reason: str
    crashed: bool = False


def away(error: BaseException) -> bool:
    """Whether an error of Prefect's client says that the server is away, and nothing about the call."""
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    if isinstance(error, PrefectHTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, httpx.TransportError)


def patiently(call: Callable[[], Result]) -> Result:
    """The result of a call to Prefect's server, called again while the server is away."""
    import tenacity

    again = tenacity.Retrying(
        retry=tenacity.retry_if_exception(away),
        wait=tenacity.wait_exponential_jitter(initial=1, max=20),
        stop=tenacity.stop_after_delay(PATIENCE_SECONDS),
        reraise=True,
    )
    result: Result = again(call)
    return result


def ended(run: "FlowRun") -> Ended | None:
    """None while it has not."""
    state = run.state
    if state is None or not state.is_final():
        return None
    if state.is_completed():
        return Ended("")
    reason = (state.message or str(state.name)).removeprefix("Flow run encountered an exception: ")
    return Ended(reason, crashed=state.is_crashed())


def crash_without_worker(client: "SyncPrefectClient", run: "FlowRun", pool: str) -> Ended | None:
    """Set a run Crashed whose worker has not been heard of for SILENT_SECONDS: nobody else would, when it died before its first
    heartbeat or while the server was away. None: its worker lives, or none has taken it yet."""
    from prefect.states import Crashed

    name = (run.labels or {}).get("prefect.worker.name")
    if name is None or run.state is None or not (run.state.is_pending() or run.state.is_running()):
        return None
    heard = [
        worker.last_heartbeat_time
        for worker in client.read_workers_for_work_pool(pool)
        if worker.name == name and worker.last_heartbeat_time
    ]
    if heard and (datetime.now(UTC) - max(heard)).total_seconds() < SILENT_SECONDS:
        return None
    reason = f"its worker {name} has not been heard of for {SILENT_SECONDS / 60:.0f} minutes"
    client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
    return Ended(reason, crashed=True)


def settle_child(parent_flow_run: str, flow: str, parameters: dict[str, Any], exit_code: int | None) -> Ended:
    """How the newest child of a flow run that is of this flow and has these parameters ended, after its process has ended.

    A child without a final state died (killed, out of memory): it is set to Crashed with the exit code, so that nothing
    stays Running for ever.
    """
    return patiently(lambda: _settle(parent_flow_run, flow, parameters, exit_code))


def _settle(parent_flow_run: str, flow: str, parameters: dict[str, Any], exit_code: int | None) -> Ended:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterParentFlowRunId
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.states import Crashed

    # Prefect parents a child to a task run of its own making, so a child is found by its flow run and parameters
    children = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[UUID(parent_flow_run)]))
    with get_client(sync_client=True) as client:
        named = FlowFilter(name=FlowFilterName(any_=[flow]))
        runs = client.read_flow_runs(
            flow_filter=named, flow_run_filter=children, sort=FlowRunSort.EXPECTED_START_TIME_DESC
        )
        run = next((run for run in runs if run.parameters == parameters), None)
        if run is None or run.state is None:
            return Ended(f"its process ended with exit code {exit_code} before the run began", crashed=True)
        outcome = ended(run)
        if outcome is None:
            outcome = Ended(f"the process of this run ended with exit code {exit_code}", crashed=True)
            client.set_flow_run_state(run.id, Crashed(message=outcome.reason), force=True)
        return outcome


def flow_run_url(run_id: UUID | str) -> str:
    """Where the run's page is in the Prefect UI."""
    from prefect.settings import get_current_settings

    api = str(get_current_settings().api.url or "")
    return f"{api.removesuffix('/api')}/runs/flow-run/{run_id}"


def first_visit(run_id: UUID | str) -> list[str]:
    """Return lines for a terminal: the address of the run's page, and where the account is that it asks for.

    A browser that does not know the account is led to the page by way of the login: of the page itself it shows an error until
    it is loaded again. No line holds the password.
    """
    from prefect.settings import get_current_settings

    page, account = flow_run_url(run_id), get_current_settings().api.auth_string
    if not (account and account.get_secret_value()):
        return [f"Prefect  {page}"]
    server, _, path = page.partition("/runs/")
    known = f"a browser that knows it opens {page}"  # and would ask for it again by way of the login
    if account.get_secret_value() == read_account(home()):  # not that of another server
        known = f"cat {shlex.quote(str(account_file(home())))}; {known}"
    return [f"Prefect  {server}/login?redirect=/runs/{path}", f"Account  {known}"]


class RunPage:
    """A training run's page in Prefect: a progress bar, and the link to MLflow. Training waits for neither.

    Whatever Prefect answers, the page costs the run nothing: what it cannot show is mentioned once.
    """

    def __init__(self, name: str, steps: int, say: Say) -> None:
        self._name, self._steps, self._say = name, steps, say
        self._shown = -1
        self._bar: UUID | None = None
        self._told = False
        self._background = Background()

    def report(self, step: int) -> None:
        """Every twentieth of the steps moves the bar, unless it is still being moved."""
        share = int(100 * step / self._steps)
        if share == 100 or (share // 5 > self._shown // 5 and not self._background.busy):
            self._shown = share
            self._submit(lambda: self._move(share))

    def link(self, url: str) -> None:
        """Put the link to the run in MLflow onto the page."""
        from prefect.artifacts import create_link_artifact

        text = f"MLflow run: {self._name}"
        self._submit(lambda: create_link_artifact(link=url, link_text=text, description="Curves, parameters, traces."))

    def close(self) -> None:
        """Until everything is shown; not for ever."""
        self._background.give_up(patience=20)

    def _move(self, share: int) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if self._bar is None:
            made: Any = create_progress_artifact(float(share), description=f"{self._name}: steps done of {self._steps}")
            self._bar = made
        else:
            update_progress_artifact(self._bar, float(share))

    def _submit(self, call: Callable[[], Any]) -> None:
        def careful() -> None:
            try:
                call()
            except Exception as error:  # a page is no reason to lose a run
                if not self._told:
                    self._say(
                        f"warning: this run's Prefect page cannot be brought up to date ({error!r}); the run goes on"
                    )
                self._told = True

        self._background.submit(careful)
