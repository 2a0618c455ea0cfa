"""What a user expects of a run while it trains: bounds of its metrics, and what happens where one is not kept."""

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from igpo_core.settings import Settings

# Of a step's metrics (docs/method.md, "Metrics of a training run"), those that say whether a run goes as it should.
Watched = Literal[
    "advantage/dead_groups",
    "advantage/dead_groups_gain",
    "advantage/dead_groups_outcome",
    "engine/kl",
    "engine/mismatch",
    "engine/mismatch_max",
    "reward/gain_mean",
    "reward/gain_std",
    "reward/outcome_mean",
    "train/clip_share",
    "train/entropy",
    "train/format_rate",
    "train/grad_norm",
    "train/kl",
    "train/ratio_error",
    "train/repeated_calls",
    "train/status_malformed",
    "train/status_turn_truncated",
    "train/status_window_full",
    "train/tokens",
    "train/turns",
]


class Expectation(Settings):
    """Bounds of a metric. A value that is no finite number keeps none; without bounds that alone is looked at."""

    metric: Watched = Field(description="In its own unit (docs/method.md).")
    least: float | None = Field(None, description="In the metric's unit.")
    most: float | None = Field(None, description="In the metric's unit.")
    first_step: int = Field(1, ge=1, description="Steps before it are not looked at.")
    otherwise: Literal["warn", "stop"] = Field(
        "warn", description="stop: the run writes a checkpoint of the step, and fails."
    )

    @model_validator(mode="after")
    def _bounds_have_room(self) -> "Expectation":
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"least={self.least:g} is above most={self.most:g}: no value is between them")
        return self

    @property
    def bounds(self) -> str:
        """Return the bounds in words: "at least 1, at most 2", "finite"."""
        named = {"at least": self.least, "at most": self.most}
        return ", ".join(f"{words} {value:g}" for words, value in named.items() if value is not None) or "finite"

    @property
    def told(self) -> str:
        """Return the expectation in words: "train/turns at least 1 from step 20 on"."""
        return f"{self.metric} {self.bounds}" + (f" from step {self.first_step} on" if self.first_step > 1 else "")

    def met(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Return whether the metrics of a step are as expected. A metric that the arm does not have is."""
        value = metrics.get(self.metric)
        if step < self.first_step or value is None:
            return True
        low = self.least is None or value >= self.least
        return math.isfinite(value) and low and (self.most is None or value <= self.most)
