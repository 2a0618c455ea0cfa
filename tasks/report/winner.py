"""Which arm a verdict names, if it names one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.report.summaries import CellReport
from tasks.report.wording import smaller


@dataclass(frozen=True)
class Winner:
    """An arm that a cell's verdict says is better."""

    cell: str
    arm: str
    against: str
    """The arm that it is better than: the baseline, or where that wins the arm that comes nearest to it."""
    difference: float
    """On test, over the seeds that both have."""
    low: float
    high: float
    p: float
    seeds: int
    margin: float
    """Below which a difference does not matter."""

    @property
    def verdict(self) -> str:
        """Return the verdict in words."""
        small = f"; the difference is {smaller(self.margin)}" if abs(self.difference) < self.margin else ""
        return (
            f"better than {self.against}: {self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}], p {self.p:.3f}, "
            f"{self.seeds} seeds{small}"
        )


def winners(specification: Mapping[str, Any], reports: Sequence[CellReport], answering: Sequence[str]) -> list[Winner]:
    """Return the winner of each cell that has one: of the arms that answer, those that are better than the baseline, the one
    that is most; where each of them is worse, the baseline. No difference shown, equal arms, too few seeds or a missing run name
    none."""
    found, margin = [], specification["margin"]
    for report in reports:
        pairs = {arm: report.pairs[arm] for arm in answering if arm in report.pairs}
        better = {arm: pair for arm, pair in pairs.items() if pair.verdict == "better"}
        lost = bool(pairs) and all(pair.verdict == "worse" for pair in pairs.values())
        if not better and not lost:
            continue
        against, sign = specification["baseline"], 1
        arm = max(better or pairs, key=lambda name: pairs[name].mean or 0.0)
        pair = pairs[arm]
        if lost:
            arm, against, sign = against, arm, -1
        assert pair.mean is not None and pair.interval is not None and pair.p is not None  # or there were no verdict
        ends = sorted((sign * pair.interval.low, sign * pair.interval.high))
        found.append(Winner(report.cell, arm, against, sign * pair.mean, ends[0], ends[1], pair.p, pair.n, margin))
    return found
