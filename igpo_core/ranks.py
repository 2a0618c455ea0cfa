"""The processes that train one policy together: who does what, and how they tell one another.

Each takes whole questions of a step, rolls them out and rewards them; then all know all trajectories, so that advantages see
the whole batch, and each takes its share of the update's micro-batches. Engines and launchers are torch's and accelerate's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")

# Processes meet only after work that each does alone: its share of the test, and what the first one does for all (judge,
# diagnostics, checksums of a checkpoint). After NCCL's default of 10 minutes those who wait would end the run. One that has
# died needs no limit: the launcher ends the others within seconds.
PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class Ranks:
    """number: of this process, from 0; count: of all."""

    number: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.number == 0

    def share(self, items: Sequence[T]) -> list[tuple[int, T]]:
        """Every count-th item with its place, from this process's number on: none is lost when counts are uneven."""
        return list(enumerate(items))[self.number :: self.count]

    def gathered(self, own: Sequence[tuple[int, T]]) -> list[T]:
        """The items of all processes in the order of their places, the same list everywhere."""
        if self.count == 1:
            return [item for _, item in own]
        from accelerate.utils import gather_object

        return [item for _, item in sorted(gather_object(list(own)), key=lambda pair: pair[0])]

    def agreed(self, value: T) -> T:
        """What the first process has, everywhere."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        told = [value]
        broadcast_object_list(told)
        return told[0]

    def each(self, value: T) -> list[T]:
        """What every process has of a value, in the order of their numbers."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        found: list[Any] = gather_object([value])
        return found


ALONE = Ranks()
