"""The pull step of prefect.yaml, run by a worker before each flow run."""

import os

from tasks.home import PROJECT


def enter_project() -> dict[str, str]:
    """Go to the project folder of the machine that runs the flow.

    Without a pull step Prefect stores the folder of the machine that deployed, which other workers need not have.
    """
    os.chdir(PROJECT)
    return {"directory": str(PROJECT)}
