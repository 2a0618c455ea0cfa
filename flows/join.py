"""Flow `join`: a machine's processes of a training run that several machines make together (training.nodes)."""

from typing import Annotated

from prefect import flow
from pydantic import Field

from tasks.lab.home import open_home
from tasks.lab.prefect_runs import run_log
from tasks.runs import together
from tasks.runs.planned import open_run


@flow(name="join", flow_run_name="node {node} at {address}", validate_parameters=True)
def join(
    run_key: str, node: Annotated[int, Field(ge=1)], address: str, port: Annotated[int, Field(ge=1, le=65535)]
) -> None:
    """Started by the flow `train`, on a worker of pool igpo-nodes; ends with the run.

    Args:
        run_key: Of the run, whose folder all machines share: they have one IGPO_HOME.
        node: Number of this machine in the run; the one that started it is 0.
        address: Where the machines meet: of the one that started the run.
        port: Its port there.
    """
    run = open_run(open_home(), run_key)
    together.join(run, node, together.Meeting(address, port), run_log())
