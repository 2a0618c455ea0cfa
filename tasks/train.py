"""Prefect tasks of a training run: on to its next checkpoint, or with several processes to its result."""

from collections.abc import Iterator
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.deployments import run_deployment

from tasks.lab.prefect_runs import RunPage, Say
from tasks.runs.planned import Run
from tasks.runs.together import Meeting, train_together

if TYPE_CHECKING:
    from igpo_core.run import Event
    from tasks.runs.training import Recorder


# retried, it would find no events behind those that failed
@task(cache_policy=NO_CACHE, persist_result=False, retries=0)
def train_part(events: "Iterator[Event]", recorder: "Recorder") -> None:
    """Go on to the run's next checkpoint, or to its result. Each event is written down before the next one is asked for."""
    from igpo_core.run import Checkpointed, Finished  # torch takes seconds

    for event in events:
        recorder.write(event)
        if isinstance(event, Checkpointed | Finished):
            return
    raise RuntimeError(
        "the run's events ended before its next checkpoint: they were asked for after one of them had failed"
    )


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="train together")
def train_in_processes(run: Run, lock: IO[str], say: Say, page: RunPage) -> dict[str, Any]:
    """Train a run of several processes, on several machines where it asks for them. Returns its result."""
    return train_together(run, lock, say, page.report, partial(_call_others, run))


def _call_others(run: Run, meeting: Meeting) -> None:
    """The other machines' workers take these runs; they fail with this one, whose processes they wait for."""
    for node in range(1, run.spec.experiment.training.nodes):
        told = {"run_key": run.spec.run_key, "node": node, "address": meeting.address, "port": meeting.port}
        run_deployment("join/nodes", parameters=told, timeout=0)
