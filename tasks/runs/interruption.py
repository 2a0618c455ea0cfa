"""What a run does when it is told to end: no step is lost to a signal."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from igpo_core.checkpoints import checkpoint_folder
from igpo_core.run import TrainingRun
from igpo_core.training import Trainer
from tasks.runs.planned import Say
from tasks.tracking.outbox import Writing


@contextmanager
def whole_steps(trainer: Trainer) -> Iterator[None]:
    """A signal to end waits from the beginning of a step's update until the line of its metrics is written; before, during
    rollouts, it ends the step at once. Elsewhere than in the main thread nothing is changed: signals are not seen there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, waiting = trainer.step, []
    own = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def told(number: int, frame: Any) -> None:
        handler = own[signal.Signals(number)]
        if handler == signal.SIG_IGN:
            return
        if trainer.step == before and trainer.whole and callable(handler):
            handler(number, frame)
        else:
            waiting.append(number)

    for number in own:
        signal.signal(number, told)
    try:
        yield
    finally:
        for number, handler in own.items():
            signal.signal(number, handler)
    if waiting:
        signal.raise_signal(waiting[0])


def leave_checkpoint(training: TrainingRun, outbox: Writing, say: Say) -> None:
    """What a run does when it is told to end (SIGTERM, Ctrl-C), within the 30 s that most senders of SIGTERM grant.

    The step under way is given up. Nothing is written between its update and the line of its metrics, which would be lost.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # a second one must not interrupt this
        signal.signal(number, signal.SIG_IGN)
    trainer = training.trainer
    if checkpoint_folder(training.folder, trainer.step).exists() or trainer.step == 0:
        say("told to end; started again, the run goes on from its last checkpoint")
    elif trainer.config.training.sharding != "none":  # no process has all weights, and the others may be gone
        say("told to end: started again, the run goes on from its last checkpoint")
    elif trainer.whole and outbox.has("progress/seconds", trainer.step):
        outbox.sync()
        training.save(alone=True)
        say(f"told to end: checkpoint of step {trainer.step} written; started again, the run goes on from there")
    else:
        say("told to end while a step was being applied: started again, the run goes on from its last checkpoint")
