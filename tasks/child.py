"""Prefect task of a sweep: make one warm start or one run in a child flow run."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.runs.children import Name, run_to_end


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{title}")
def isolated(title: str, name: Name, failed_before: str, told: Any) -> str:
    """A child flow run in a process of its own: own torch threads and random state, and a crash takes nothing along.

    "" when it completed, else the reason. failed_before: why the warm start that it needs failed; then it is not started.
    """
    run, children, progress, say, scores = told
    begun = progress.begin(name)
    not_started = f"not started, its warm start failed: {failed_before}" if failed_before else ""
    reason = not_started or run_to_end(children, name, run, say)
    far = progress.done(name, begun, failed=bool(reason))
    if reason:
        say(f"warning: {title} FAILED: {reason} · {far}")
    elif name == "train" and scores:
        data = run.spec.experiment.data
        score = run.result()["metrics"][f"test/all/{data.headline}"]
        say(f"{run.spec.name}: test {data.headline_title} {score:.2f} · {far}")
    else:
        say(f"{title} · {far}")
    return reason
