"""Whether an effect moved: a sweep's differences against the intervals of the sweep before of the same specification.

The same specification on unchanged data, code and libraries reuses its runs and cannot move. What can is a new version of
any of them, or another kind of processor under another home.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from igpo_core.config import ExperimentConfig, fingerprint
from tasks.tracking.server import artifact_url, client, tag_filter

if TYPE_CHECKING:
    from mlflow.entities import Run

    from tasks.report.summaries import ArmSummary

EVENT = "igpo-lab.effect-left-interval"


@dataclass(frozen=True)
class Moved:
    """An arm's difference in the test score that lies outside the 95% interval [low, high] of an earlier sweep, `before`."""

    arm: str
    difference: float
    low: float
    high: float
    before: str
    before_url: str

    def sentence(self) -> str:
        """Return the warning of it."""
        return (
            f"EFFECT MOVED: {self.arm} differs from the baseline by {self.difference:+.3f}, outside [{self.low:+.3f}, "
            f"{self.high:+.3f}] of the sweep before of the same specification, {self.before} ({self.before_url}). Data, code, "
            "a library or the processor changed between them: versions.json of both reports says which."
        )


def comparison_of(specification: Mapping[str, Any]) -> str:
    """Return a fingerprint that is the same for sweeps that compare the same. Settings of `base` that change no number (where it
    is computed, what is expected of it) make no other comparison."""
    kept = ("name", "arms", "baseline", "primary", "margin", "factors", "seeds")
    base = ExperimentConfig.model_validate(specification["base"]).identity()
    return fingerprint(_shortest({name: specification[name] for name in kept}), _shortest(base))


def _shortest(value: Any) -> Any:
    """Return settings without those that are None, and choices without parameters by their names alone: a new setting that is
    None unless it is set, or a parameter that a choice gets, makes no other comparison of an older one."""
    if isinstance(value, Mapping):
        left = {name: _shortest(item) for name, item in value.items() if item is not None}
        return left["kind"] if left.keys() == {"kind"} else left
    return [_shortest(item) for item in value] if isinstance(value, list | tuple) else value


def prefix(cell: str) -> str:
    """What metrics of a report run start with."""
    return f"report/{cell.replace(',', '/').replace('=', ' ')}/" if cell else "report/"  # MLflow takes no "="


def report_before(experiment: str, specification: str, sweep: str) -> "Run | None":
    """The newest report of another sweep that compares the same.

    experiment: MLflow's id. specification: fingerprint that reports of the same comparison share in their tag.
    """
    same = f"{tag_filter(kind='report', specification=specification)} and attributes.status = 'FINISHED'"
    reports = client().search_runs([experiment], same, order_by=["attributes.end_time DESC"])
    return next((run for run in reports if run.data.tags["sweep"] != sweep), None)


def moved(before: "Run | None", cell: str, summaries: "Sequence[ArmSummary]") -> list[Moved]:
    """Arms whose difference left the interval of the report before. An arm without a difference or an earlier interval (a
    single seed) is not compared."""
    if before is None:
        return []
    found = []
    for row in summaries:
        low, high = (before.data.metrics.get(f"{prefix(cell)}{row.arm}/{end}") for end in ("low", "high"))
        if row.difference is not None and low is not None and high is not None and not low <= row.difference <= high:
            url = artifact_url(before.info.experiment_id, before.info.run_id, "report.html")
            name = f"{row.arm} ({cell})" if cell else row.arm
            found.append(Moved(name, row.difference, low, high, before.data.tags["sweep"], url))
    return found
