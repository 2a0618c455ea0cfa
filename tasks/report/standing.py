"""A standing study: which seeds a night makes, and whether its verdict moved. Pure functions.

The number of seeds is fixed before the first night, and nothing is compared before the last of them is there: whoever looks
at every interim result and stops at a good one finds too many differences.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from igpo_core.errors import ConfigError
from tasks.report.statistics import ALPHA, interval, seeds_for_verdict
from tasks.report.wording import counted

Scores = Mapping[str, Mapping[str, Mapping[int, float]]]  # [cell][arm][seed]


@dataclass(frozen=True)
class Study:
    """A comparison whose number of seeds was fixed before its first night."""

    name: str
    """Of the specification, and of MLflow's experiment."""
    seeds: tuple[int, ...]
    """All of them, in the order in which nights make them."""
    a_night: int
    """How many of them one night makes."""
    checks: tuple[int, ...]
    """Those that are run again after a change of code, data or a package that computes."""


@dataclass(frozen=True)
class State:
    """What is there of a study, as disk and MLflow have it."""

    finished: frozenset[int]
    """Seeds whose every run of this code and data is finished."""
    verdict: str
    """The sweep of the report on all seeds that counts (tasks.report.nights.find_verdict); empty while there is none."""
    check: Literal["none", "moved", "not moved"] = "none"
    """What came of comparing the check seeds of this code and data with the study; none before that."""


@dataclass(frozen=True)
class Tonight:
    """What a night does."""

    task: Literal["study", "check", "nothing"]
    """Go on with the study, run its check seeds again, or nothing."""
    seeds: tuple[int, ...]
    """The seeds to make."""
    last: bool = False
    """Whether the study is complete after them: then comes the verdict."""


def standing_study(
    name: str, preset_seeds: Sequence[int], compared: int, cells: int, seeds: int, a_night: int, checks: int
) -> Study:
    """Return the study of so many seeds: the numbers after the preset's largest one.

    The preset's own seeds are not among them: their scores may have been seen before the study was begun.

    compared: arms besides the baseline; cells: combinations of the factors' levels. Raises ConfigError where the seeds cannot
    carry a verdict, or the check seeds could show no change.
    """
    fewest = seeds_for_verdict(compared)
    if seeds < fewest:
        raise ConfigError(f"seeds={seeds} carry no verdict on {compared} compared arms: set seeds to {fewest} or more")
    differences = compared * cells
    fewest = seeds_for_verdict(differences)
    if checks < fewest:
        raise ConfigError(
            f"check_seeds={checks} could show no change of {counted(differences, 'difference')}, however large: set "
            f"check_seeds to {fewest} or more"
        )
    if checks > seeds:
        raise ConfigError(
            f"check_seeds={checks} are more than the {seeds} seeds of the study: lower check_seeds or raise seeds"
        )
    first = max(preset_seeds) + 1
    chosen = tuple(range(first, first + seeds))
    return Study(name, chosen, a_night, chosen[:checks])


def tonight(study: Study, sweep: str, state: State) -> Tonight:
    """Return what the night does. sweep: the name that runs of the code and data of now share."""
    if state.verdict == sweep or (state.verdict and state.check == "not moved"):
        return Tonight("nothing", ())
    if state.verdict and state.check == "none":
        return Tonight("check", study.checks)
    # there is no verdict yet, or it moved and the study is made anew
    missing = [seed for seed in study.seeds if seed not in state.finished]
    return Tonight("study", tuple(missing[: study.a_night]), last=len(missing) <= study.a_night)


@dataclass(frozen=True)
class Change:
    """What became of an arm's difference to the baseline on the check seeds.

    The same seeds are compared before and after, for runs of one seed have their warm start and questions in common. Had nothing
    changed, either could have come first, so that the changes seed by seed are symmetric about zero: what the test of a report
    asks for (tasks.report.statistics). Groups of other seeds would add what seeds differ by.
    """

    arm: str
    cell: str
    effect: float
    """The mean difference in the test score on all seeds of the study."""
    before: float
    """The same on the check seeds alone."""
    now: float
    """The same of the runs of now, on the check seeds."""
    low: float
    """The interval of now - before, at level 1 - ALPHA divided by the differences that are looked at: its low end."""
    high: float
    """Its high end."""
    identical: bool
    """Whether every score of the arm and of the baseline is the one of the study, to the last digit."""

    @property
    def by(self) -> float:
        """Return the mean change, seed by seed."""
        return self.now - self.before

    @property
    def moved(self) -> bool:
        """Return whether a change was shown: whether zero is outside of the interval."""
        return not self.low <= 0 <= self.high

    @property
    def unseen(self) -> float:
        """Return the size below which a change would not have been shown with changes that spread like these."""
        return max(self.by - self.low, self.high - self.by)

    @property
    def stands(self) -> bool:
        """Return whether the effect of the study is still there: nothing changed, or no change was shown and one that would
        take all of the effect is ruled out. No change shown is not enough: few seeds show none, whatever happened."""
        gone = self.effect + self.low <= 0 <= self.effect + self.high
        return self.identical or not (self.moved or gone)


def changes(before: Scores, now: Scores, baseline: str, seeds: Sequence[int]) -> list[Change]:
    """Return what became of each arm in each cell. before: the scores of the whole study; now: those of the check seeds."""
    looked_at = [(cell, arm) for cell, arms in before.items() for arm in arms if arm != baseline]
    found = []
    for cell, arm in looked_at:
        old, reference = before[cell][arm], before[cell][baseline]
        new, new_reference = now[cell][arm], now[cell][baseline]
        study = {seed: old[seed] - reference[seed] for seed in old if seed in reference}
        after = {seed: new[seed] - new_reference[seed] for seed in seeds}
        span = interval([after[seed] - study[seed] for seed in seeds], level=level_of(len(looked_at)))
        assert span is not None  # standing_study has seeds enough
        found.append(
            Change(
                arm,
                cell,
                effect=_mean(list(study.values())),
                before=_mean([study[seed] for seed in seeds]),
                now=_mean(list(after.values())),
                low=span.low,
                high=span.high,
                identical=all((old[seed], reference[seed]) == (new[seed], new_reference[seed]) for seed in seeds),
            )
        )
    return found


def level_of(differences: int) -> float:
    """Return the level of each interval where so many differences are looked at (Bonferroni)."""
    return 1 - ALPHA / differences


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def what_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return each difference between two reports' versions.json, as "numpy 2.4.5 → 2.4.6"."""
    named = {"code": "igpo_core", "data": "data", "git": "commit", "python": "Python", "platform": "platform"}
    told = [
        f"{title} {_text(before[key])} → {_text(now[key])}" for key, title in named.items() if before[key] != now[key]
    ]
    old, new = before["packages"], now["packages"]
    return told + [
        f"{name} {old.get(name, 'absent')} → {new.get(name, 'absent')}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
