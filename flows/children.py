"""The child runs of a sweep: in processes of this machine, or on a work pool that workers of any machine serve.

Either way a child is a flow run of its own with the sweep as parent. Its one parameter is the key of a planned run: run.json in
that run's folder says all else. What it computes does not depend on where it runs (tests/e2e compares them to the bit). A child
whose process dies is started again and goes on from its checkpoint; one that fails with an error would fail again, and is not.
"""

import itertools
import multiprocessing
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing import forkserver
from typing import Any, Literal
from uuid import UUID

import psutil

from flows.train import FLOWS
from igpo_core.errors import ConfigError
from tasks.lab.ending import end, end_when
from tasks.lab.prefect_runs import Ended, crash_without_worker, ended, patiently, settle_child
from tasks.lab.terminal import follow_parent
from tasks.runs.children import Children, Name
from tasks.runs.devices import require_accelerators
from tasks.runs.planned import Run

Where = Literal["processes", "pool"]
END_SECONDS = 28.0  # of the 30 s that most senders of SIGTERM grant
POLL_SECONDS = 3.0
ARMS_POOL = "igpo-arms"  # not the sweeps' pool: a sweep that waits for arms must not hold a slot that they need
FLOW_NAMES: dict[Name, str] = {"warm_start": "warm-start", "train": "train-run"}
DEPLOYMENTS: dict[Name, str] = {name: f"{flow}/arms" for name, flow in FLOW_NAMES.items()}

FORKED = multiprocessing.get_context("forkserver")
PRELOADED = [
    "flows.train",
    "igpo_core.evaluation",
    "igpo_core.training",
    "igpo_core.warmstart",
    "mlflow",
    "mlflow.tracing",
    "tasks.data.publishing",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
]


NOT_STARTED = Ended("not started: the sweep was told to end")
TOLD_TO_END = Ended("the sweep was told to end; it goes on from its checkpoint when that is started again")


def begin_imports(where: Where) -> None:
    """Start the fork server that children come from, or leave it as it runs. Its imports take ten seconds, in which a sweep has
    other work."""
    if where == "processes":
        FORKED.set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()


class Processes:
    """Forked from a server that has imported the heavy modules once.

    A fresh interpreter spends about ten seconds of processor time on imports, which a sweep of twenty short runs would pay
    twenty times. The fork server imports, runs nothing (so no thread or random state is inherited), and forks.
    """

    def __init__(self, flow_run_id: str) -> None:
        self._flow_run_id = flow_run_id
        self._running: list[psutil.Process] = []
        self._ending = False

    def run(self, name: Name, run_key: str) -> Ended:
        """Run a child flow in a process of its own, and wait for its end."""
        import cloudpickle
        from prefect.context import serialize_context

        if self._ending:
            return NOT_STARTED
        begin_imports("processes")
        # without this task's context: the child would log under this task instead of under its own run
        context = {**serialize_context(), "task_run_context": {}}
        parameters = {"run_key": run_key}
        message = cloudpickle.dumps((name, parameters, context))
        child = FORKED.Process(target=_run, args=(message,), name=name)
        child.start()  # takes seconds the first time
        try:
            process = psutil.Process(child.pid)
        except psutil.NoSuchProcess:
            return settle_child(self._flow_run_id, FLOW_NAMES[name], parameters, child.exitcode)
        self._running.append(process)
        if self._ending:  # told while it was being started
            process.terminate()
        child.join()
        process.wait()  # a fork server that was killed says that its children are gone, which are not
        self._running.remove(process)
        return (
            TOLD_TO_END
            if self._ending
            else settle_child(self._flow_run_id, FLOW_NAMES[name], parameters, child.exitcode)
        )

    def end(self) -> None:
        """End all children; those that do not leave are killed."""
        self._ending = True
        asked = list(self._running)
        end(asked, lambda: asked, END_SECONDS)


def _run(message: bytes) -> None:
    import cloudpickle
    from prefect.context import hydrated_context
    from prefect.flow_engine import run_flow

    follow_parent()
    end_with_parent()
    name, parameters, context = cloudpickle.loads(message)
    with hydrated_context(context):
        run_flow(FLOWS[name], parameters=parameters, return_type="state")


def end_with_parent() -> None:
    """In a child of a sweep: end, with a checkpoint, when the sweep is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    end_when(parent.join)


class Pool:
    """Flow runs of the deployments train-run/arms and warm-start/arms on work pool `igpo-arms`.

    A sweep that was started again (the same flow run, after a crash) finds the runs that it started before and that are
    still going.
    """

    def __init__(self, flow_run_id: str) -> None:
        self._flow_run_id = flow_run_id
        self._running: set[Any] = set()
        self._ending = False

    def run(self, name: Name, run_key: str) -> Ended:
        """Run a child flow on the work pool, and wait for its end; a crashed one is started again."""
        for number in itertools.count():
            if self._ending:
                return NOT_STARTED
            key = f"{self._flow_run_id} {name} {run_key} {number}"
            run, fresh = patiently(partial(_start_on_pool, name, run_key, key))
            self._running.add(run.id)
            if self._ending:  # told while it was being started
                self._cancel(run.id)
            outcome = self._wait(run.id)
            self._running.discard(run.id)
            if self._ending:
                return TOLD_TO_END
            if fresh or not outcome.reason:
                return outcome
        raise AssertionError("unreachable")

    def _wait(self, run_id: Any) -> Ended:
        from prefect.client.orchestration import get_client

        def look() -> Ended | None:
            with get_client(sync_client=True) as client:
                run = client.read_flow_run(run_id)
                return ended(run) or crash_without_worker(client, run, ARMS_POOL)

        while (outcome := patiently(look)) is None and not self._ending:
            time.sleep(POLL_SECONDS)
        return outcome or TOLD_TO_END

    def end(self) -> None:
        """Cancel all children."""
        self._ending = True
        for run_id in list(self._running):
            self._cancel(run_id)

    def _cancel(self, run_id: Any) -> None:
        from prefect.client.orchestration import get_client
        from prefect.states import Cancelling

        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run_id, Cancelling(message="the sweep was told to end"))


def _start_on_pool(name: Name, run_key: str, key: str) -> tuple[Any, bool]:
    """(the flow run of this key, whether it is new or still going)."""
    from prefect.deployments import run_deployment

    given = {"run_key": run_key}
    run: Any = run_deployment(DEPLOYMENTS[name], parameters=given, timeout=0, idempotency_key=key)
    outcome = ended(run)
    return run, outcome is None


def children_of(flow_run_id: str, where: Where, runs: Sequence[Run]) -> Children:
    """runs: that they make. Raises ConfigError, before any is made, where arms would wait for a slot that their own sweep holds,
    and where processes of this machine lack the accelerators that a run wants."""
    if where == "processes":
        for run in runs:
            if not run.finished:
                require_accelerators(run.spec.experiment.training)
        return Processes(flow_run_id)
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        if client.read_flow_run(UUID(flow_run_id)).work_pool_name == ARMS_POOL:
            raise ConfigError(
                f"this sweep runs on work pool {ARMS_POOL} and its arms would wait there for the slot that it holds: start "
                "sweeps on another pool"
            )
    return Pool(flow_run_id)
