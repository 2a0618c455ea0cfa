"""The pull step of prefect.yaml, run by a worker before each flow run."""

import os

from tasks.lab.home import PROJECT, open_home


def enter_project() -> dict[str, str]:
    """Go to the project folder of the machine that runs the flow.

    What the flow writes is the user's alone (tasks.lab.home).
    Without a pull step Prefect stores the folder of the machine that deployed, which other workers need not have.
    """
    os.chdir(PROJECT)
    open_home()
    return {"directory": str(PROJECT)}
