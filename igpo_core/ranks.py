"""The processes that train one policy together: who does what, and how they tell one another.

Each takes whole questions of a step, rolls them out and rewards them; then all know all trajectories, so that advantages see
the whole batch, and each takes its share of the update's micro-batches. Engines are torch's and accelerate's;
tasks/runs/together.py launches the processes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")

# Processes meet only after work that each does alone: its share of the test, and what the first one does for all (judge,
# diagnostics, checksums of a checkpoint). After NCCL's default of 10 minutes those who wait would end the run. One that has
# died needs no limit: the launcher ends the others within seconds.
PATIENCE = timedelta(hours=6)
MEETING_PATIENCE = timedelta(minutes=30)  # until all machines have come; one that no worker serves never does
MEETING_FILE = "IGPO_MEETING_FILE"  # names the file by which the processes of one machine find one another


def join_group(device: str) -> None:
    """Join the process group of this process's launcher, on `device` ("cpu", "cuda"). Return at once where it is alone, or in a
    group already.

    The launcher sets RANK and WORLD_SIZE, and for one machine MEETING_FILE, a new file in a folder that nobody else can enter.
    Several machines meet at MASTER_ADDR and MASTER_PORT, which listens to whoever reaches it.
    """
    from torch import distributed
    from torch._C._distributed_c10d import FileStore, Store
    from torch.distributed.rendezvous import rendezvous

    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or distributed.is_initialized():
        return
    if MEETING_FILE in os.environ:
        store: Store = FileStore(os.environ[MEETING_FILE], count)
    else:
        store, _, _ = next(rendezvous("env://", timeout=MEETING_PATIENCE))
    number = int(os.environ["RANK"])
    backend = distributed.get_default_backend_for_device(device)
    distributed.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)


@dataclass(frozen=True)
class Ranks:
    """number: of this process, from 0; count: of all."""

    number: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Return whether this is the main process, which writes what is written once."""
        return self.number == 0

    def share(self, items: Sequence[T]) -> list[tuple[int, T]]:
        """Return every count-th item with its place, from this process's number on: none is lost when counts are uneven."""
        return list(enumerate(items))[self.number :: self.count]

    def all_gather(self, own: Sequence[tuple[int, T]]) -> list[T]:
        """Return the items of all processes in the order of their places, the same list in each."""
        if self.count == 1:
            return [item for _, item in own]
        from accelerate.utils import gather_object

        return [item for _, item in sorted(gather_object(list(own)), key=lambda pair: pair[0])]

    def broadcast(self, value: T) -> T:
        """Return what the first process has, in every process."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        told = [value]
        broadcast_object_list(told)
        return told[0]

    def all_values(self, value: T) -> list[T]:
        """Return what every process has of a value, in the order of their numbers."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        found: list[Any] = gather_object([value])
        return found


ALONE = Ranks()
