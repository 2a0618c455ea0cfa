"""Child flow runs in processes of their own, forked from a server that has imported the heavy modules once.

A fresh interpreter spends about ten seconds of processor time on imports, which a sweep of twenty short runs would pay
twenty times. The fork server imports, runs nothing (so no thread or random state is inherited), and forks.
"""

import multiprocessing
from multiprocessing.process import BaseProcess
from typing import Any

from igpo_core.config import code_version
from igpo_core.errors import ConfigError

FORKED = multiprocessing.get_context("forkserver")
PRELOADED = [
    "flows.train",
    "igpo_core.evaluation",
    "igpo_core.training",
    "igpo_core.warmstart",
    "mlflow",
    "mlflow.tracing",
    "tasks.data",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
]


def start_child(name: str, parameters: dict[str, Any], context: dict[str, Any]) -> BaseProcess:
    """Start flow `warm_start` or `train` as a child of the flow run that `context` (prefect's) describes."""
    import cloudpickle

    FORKED.set_forkserver_preload(PRELOADED)
    message = cloudpickle.dumps((name, parameters, context, code_version()))
    child = FORKED.Process(target=_run, args=(message,), name=name)
    child.start()
    return child


def _run(message: bytes) -> None:
    import cloudpickle
    from prefect import Flow
    from prefect.context import hydrated_context
    from prefect.flow_engine import run_flow

    from flows.train import train, warm_start

    name, parameters, context, version = cloudpickle.loads(message)
    if code_version() != version:
        raise ConfigError(f"igpo_core is {code_version()} in this process and {version} in its parent: start again")
    with hydrated_context(context):
        flows: dict[str, Flow[Any, Any]] = {"warm_start": warm_start, "train": train}
        run_flow(flows[name], parameters=parameters, return_type="state")
