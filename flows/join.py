"""Flow `join`: a machine's processes of a training run that several machines make together (training.nodes)."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from pydantic import Field

from tasks.prefect_runs import run_log


@flow(name="join", flow_run_name="node {node} at {address}", validate_parameters=True)
def join(
    folder: str, node: Annotated[int, Field(ge=1)], address: str, port: Annotated[int, Field(ge=1, le=65535)]
) -> None:
    """Started by the flow `train`, on a worker of pool igpo-nodes; ends with the run.

    Args:
        folder: The run's folder, which all machines share.
        node: Number of this machine in the run; the one that started it is 0.
        address: Where the machines meet: of the one that started the run.
        port: Its port there.
    """
    from tasks.home import open_home
    from tasks.runs import together

    open_home()
    together.join(Path(folder), node, together.Meeting(address, port), run_log())
