"""Collapses that a curve shows before its last value does: the ones seen at laptop scale, and where they happened."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.report.sweeps import Curve, RunData, SweepData

EARLY_TURNS = 0.6  # of the turns at the start: answers come before the evidence
LOW_SCORE = 0.5  # on dev at the end: fewer turns than at the start are a gain where the answers are right
ENDLESS = 0.5  # of the rollouts spend all turns on tool calls
MALFORMED = 0.5  # of the rollouts end in a malformed turn, half as many again as at the start
NEARLY_ALL = 0.95  # where the start was as bad already


@dataclass(frozen=True)
class Alarm:
    """What to look for in a run: the first step at which it holds, or None."""

    name: str
    advice: str
    first: Callable[[RunData, str], float | None]
    """Of a run and the key of its headline score."""


def _first(curve: Curve, holds: Callable[[float], bool]) -> float | None:
    return next((step for step in sorted(curve) if holds(curve[step])), None)


def _early(run: RunData, headline: str) -> float | None:
    turns, score = run.histories.get("train/turns", {}), run.histories.get(f"eval/all/{headline}", {})
    if not turns or not score or score[max(score)] >= LOW_SCORE:
        return None
    start = turns[min(turns)]
    return _first(turns, lambda value: value < EARLY_TURNS * start)


def _called_out(run: RunData) -> Curve:
    """The share of rollouts that ended on a tool call too many: the last turn allowed, or no room for what it returned."""
    ends = [run.histories.get(f"train/status_{status}", {}) for status in ("turn_limit", "window_full")]
    return {step: sum(end.get(step, 0.0) for end in ends) for end in ends for step in end}


def _endless(run: RunData, headline: str) -> float | None:
    return _first(_called_out(run), lambda share: share > ENDLESS)


def _malformed(run: RunData, headline: str) -> float | None:
    rate, called = run.histories.get("train/format_rate", {}), _called_out(run)
    if not rate:
        return None
    broken = {step: 1 - value - called.get(step, 0.0) for step, value in rate.items()}
    start = broken[min(broken)]
    return _first(broken, lambda share: share > max(MALFORMED, min(NEARLY_ALL, 1.5 * start)))


def _earned_nothing(run: RunData, headline: str) -> float | None:
    dead = run.histories.get("advantage/dead_groups_gain", {})
    return min(dead) if dead and min(dead.values()) == 1.0 else None


ALARMS = (
    Alarm("EARLY ANSWERS", "turns fell below 60% of the start, and the score on dev ended low", _early),
    Alarm(
        "ENDLESS CALLING",
        "more than half of the rollouts spent all their turns, or all their room, on tool calls",
        _endless,
    ),
    Alarm("MALFORMED TURNS", "more than half of the rollouts ended in a malformed turn or one too long", _malformed),
    Alarm(
        "NO GAIN",
        "the gains of every group came to nothing in the whole run (none, zero or alike): it trained on the outcome alone",
        _earned_nothing,
    ),
)


def alarms(data: SweepData) -> list[str]:
    """A line for each collapse that some run of an arm shows: which seeds, from which step on."""
    lines = []
    for alarm in ALARMS:
        for arm in data.arms:
            seen = [
                (run.seed, step) for run in data.finished(arm) if (step := alarm.first(run, data.headline)) is not None
            ]
            if seen:
                lines.append(f"{alarm.name} in {arm}: {alarm.advice}; {_where(seen)}.")
    return lines


def unexpected(data: SweepData) -> list[str]:
    """A line for each run of which something was not as the specification expects (`expect`), finished or stopped by it."""
    return [
        f"NOT AS EXPECTED in {run.arm} seed {run.seed}{'' if run.finished else f' ({run.status})'}: {run.unexpected}."
        for run in data.runs
        if run.unexpected
    ]


def _where(seen: Sequence[tuple[int, float]]) -> str:
    return ", ".join(f"seed {seed} from step {step:g}" for seed, step in seen)
