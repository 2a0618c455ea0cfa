"""What a sweep asks of its child runs, and when one is started again.

A child whose process dies is started again and goes on from its checkpoint; one that fails with an error would fail again, and is
not.
"""

from typing import Literal, Protocol

from tasks.lab.prefect_runs import Ended, Say
from tasks.runs.planned import Run

Name = Literal["warm_start", "train"]
RESTARTS = 3


class Children(Protocol):
    """Where children run."""

    def run(self, name: Name, run_key: str) -> Ended:
        """Start one and wait for its end. Called from threads."""
        ...

    def end(self) -> None:
        """Tell all that run to end; they leave a checkpoint."""
        ...


def run_to_end(children: Children, name: Name, run: Run, say: Say) -> str:
    """Return why the child did not complete, "" when it did. One whose process died is started again, RESTARTS times at most."""
    for attempt in range(1 + RESTARTS):
        outcome = children.run(name, run.spec.run_key)
        if not outcome.crashed or attempt == RESTARTS:
            return outcome.reason
        say(f"warning: {name} {run.spec.name}: {outcome.reason}. Started again, it goes on from its last checkpoint")
    raise AssertionError("unreachable")
