"""A standing study: which seeds a night makes, and whether its verdict moved. Pure functions.

The number of seeds is fixed before the first night, and nothing is compared before the last of them is there: whoever looks
at every interim result and stops at a good one finds too many differences.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from igpo_core.errors import ConfigError
from tasks.report.statistics import ALPHA, seeds_for_verdict

Scores = Mapping[str, Mapping[str, Mapping[int, float]]]  # [cell][arm][seed]
ENUMERATED = 20_000  # pairs of groups that are all counted; of more, as many are drawn


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
    """The sweep of the newest report on all seeds; empty while there is none."""
    checked: bool
    """Whether the check seeds of this code and data were compared with the study."""


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
    name: str, preset_seeds: Sequence[int], compared: int, seeds: int, a_night: int, checks: int
) -> Study:
    """Return the study of so many seeds: the preset's own first, then the numbers after the largest of them.

    compared: arms besides the baseline. Raises ConfigError where the seeds cannot carry a verdict, or where no change could
    be told from chance.
    """
    fewest = seeds_for_verdict(compared)
    if seeds < fewest:
        raise ConfigError(f"seeds={seeds} carry no verdict on {compared} compared arms: set seeds to {fewest} or more")
    if 2 * checks > seeds:
        raise ConfigError(
            f"check_seeds={checks}: whether they moved is measured by what two groups of {checks} of the study's seeds differ "
            f"by, which takes {2 * checks} seeds and not {seeds}. Lower check_seeds or raise seeds"
        )
    further = itertools.count(max(preset_seeds) + 1)
    chosen = tuple(itertools.islice(itertools.chain(preset_seeds, further), seeds))
    return Study(name, chosen, a_night, chosen[:checks])


def tonight(study: Study, sweep: str, state: State) -> Tonight:
    """Return what the night does. sweep: the name that runs of the code and data of now share."""
    if not state.verdict:
        missing = [seed for seed in study.seeds if seed not in state.finished]
        return Tonight("study", tuple(missing[: study.a_night]), last=len(missing) <= study.a_night)
    if state.verdict == sweep or state.checked:
        return Tonight("nothing", ())
    return Tonight("check", study.checks)


@dataclass(frozen=True)
class Change:
    """What became of an arm's difference to the baseline on the check seeds."""

    arm: str
    cell: str
    before: float
    """The mean difference in the test score on the check seeds in the study."""
    now: float
    """The same of the runs of now."""
    limit: float
    """What two groups of as many seeds of the study differ by at most, but for a share ALPHA of all such pairs. The share is
    divided by the differences that are looked at."""
    identical: bool
    """Whether every score of the arm and of the baseline is the one of the study, to the last digit."""

    @property
    def moved(self) -> bool:
        """Return whether the difference left the one of before by more than its limit."""
        return abs(self.now - self.before) > self.limit


def changes(before: Scores, now: Scores, baseline: str, seeds: Sequence[int]) -> list[Change]:
    """Return what became of each arm in each cell. before: the scores of the whole study; now: those of the check seeds."""
    looked_at = [(cell, arm) for cell, arms in before.items() for arm in arms if arm != baseline]
    found = []
    for cell, arm in looked_at:
        old, reference = before[cell][arm], before[cell][baseline]
        new, new_reference = now[cell][arm], now[cell][baseline]
        study = [old[seed] - reference[seed] for seed in old if seed in reference]
        found.append(
            Change(
                arm,
                cell,
                before=math.fsum(old[seed] - reference[seed] for seed in seeds) / len(seeds),
                now=math.fsum(new[seed] - new_reference[seed] for seed in seeds) / len(seeds),
                limit=spread_of_groups(study, len(seeds), 1 - ALPHA / len(looked_at)),
                identical=all((old[seed], reference[seed]) == (new[seed], new_reference[seed]) for seed in seeds),
            )
        )
    return found


def spread_of_groups(differences: Sequence[float], size: int, level: float) -> float:
    """Return what the means of two groups of `size` seeds, none in both, differ by at most in a share `level` of such pairs.

    All pairs are counted while there are few; of more, ENUMERATED are drawn with a fixed seed.
    """
    import numpy as np

    n = len(differences)
    values = np.asarray(differences, dtype=float)
    if math.comb(n, size) * math.comb(n - size, size) <= ENUMERATED:
        pairs = [
            [*group, *other]
            for group in itertools.combinations(range(n), size)
            for other in itertools.combinations([place for place in range(n) if place not in group], size)
        ]
    else:
        draw = np.random.default_rng(0)
        pairs = [draw.permutation(n)[: 2 * size].tolist() for _ in range(ENUMERATED)]
    drawn = values[np.asarray(pairs)]
    apart = np.abs(drawn[:, :size].mean(axis=1) - drawn[:, size:].mean(axis=1))
    return float(np.quantile(apart, level, method="inverted_cdf"))


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
