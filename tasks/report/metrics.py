"""The metrics that a report shows, a line for each place where one is shown. A new one is a line here and a line where training
measures it (igpo_core/metrics.py for what a step does, an environment's `metrics` for what its episodes do)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from igpo_core.config import Decoding

Reducer = Literal["curve", "first to last", "over training", "at the end"]
Place = Literal["overview", "explained", "turn by turn", "read"]

GAIN = "the arm's"  # unit of gains: it differs between arms


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    key: MLflow's name of it; {score} stands for the key of a score, {decoding} for one that is not the headline's, {part} for "",
    _solved or _unsolved, {slice} for "all", a source, or a source and a number of hops, {turn} for a number, {label} for what an
    environment says of a tool call. unit: empty for shares of one and plain numbers. reducer: what becomes of a run's steps; then
    come means over seeds. place: where it is shown; of "read" tables, warnings and the figure of beliefs have their own words.
    """

    key: str
    title: str
    unit: str
    reducer: Reducer
    place: Place

    def __post_init__(self) -> None:
        if self.place == "turn by turn" and not ("{turn}" in self.key or "{label}" in self.key):
            raise ValueError(f"{self.key} is shown turn by turn: its key needs {{turn}} or {{label}}")

    def named(self, **names: object) -> str:
        """Return MLflow's name with these names in the key's places."""
        return self.key.format(**names)


def pattern(key: str, scores: Iterable[str]) -> re.Pattern[str]:
    """Return what MLflow's names of a key match. scores: keys of the rubric."""
    forms = {
        "score": "|".join(map(re.escape, scores)),
        "decoding": "|".join(get_args(Decoding)),
        "part": "|_solved|_unsolved",
        "slice": ".+",
        "turn": r"\d+",
        "label": ".+",
    }
    return re.compile(key.format(**{name: f"(?P<{name}>{form})" for name, form in forms.items()}))


def _explained(key: str, title: str, unit: str = "", reducer: Reducer = "first to last") -> Metric:
    return Metric(key, title, unit, reducer, "explained")


def _read(key: str, title: str, unit: str, reducer: Reducer = "at the end") -> Metric:
    return Metric(key, title, unit, reducer, "read")


METRICS: tuple[Metric, ...] = (
    Metric("eval/all/{score}", "{title} on dev", "share", "curve", "overview"),
    Metric("advantage/dead_groups", "Share of groups without any learning signal", "share", "curve", "overview"),
    Metric("train/turns", "Turns in a training rollout", "turns", "curve", "overview"),
    _explained("train/turns", "turns (tool calls: one less)"),
    _explained("train/turns_solved", ".. of the solved"),
    _explained("train/turns_unsolved", ".. of the unsolved"),
    _explained("train/tokens", "tokens of a rollout"),
    _explained("train/tokens_solved", ".. of the solved"),
    _explained("train/tokens_unsolved", ".. of the unsolved"),
    _explained("train/format_rate", "well-formed"),
    _explained("train/status_malformed", ".. malformed"),
    _explained("train/status_turn_truncated", ".. a turn too long"),
    _explained("train/repeated_calls", "repeated tool calls"),
    _explained("train/evidence_recall", "evidence recall"),
    _explained("advantage/dead_groups", "dead groups"),
    _explained("advantage/dead_groups_outcome", ".. of the outcome"),
    _explained("advantage/dead_groups_gain", ".. of the gain"),
    _explained("advantage/first_turn_by_turns", "first turn's advantage by turns (r)"),
    _explained("advantage/gain_to_outcome", "gain part / outcome part"),
    _explained("reward/gain_up_answer_wrong", "gain up, answer wrong"),
    _explained("reward/gain_down_answer_right", "gain down, answer right"),
    _explained("diagnostics/gain_thought", "gain from the thought, after the update", "nats"),
    _explained("diagnostics/gain_observation", "gain from the observation, after the update", "nats"),
    _explained("train/entropy", "entropy", "nats"),
    _explained("train/kl", "KL to the reference", "nats"),
    _explained("train/clip_share", "clipped"),
    _explained("train/ratio_error", "ratio error"),
    _explained("train/grad_norm", "gradient norm"),
    _explained("reward/gain_by_{score}", "total gain by {title} (r)"),
    Metric("reward/gain_turn_{turn}", "Mean gain of a turn", GAIN, "over training", "turn by turn"),
    Metric("reward/gain_at_{label}", "Gain by what a call found", GAIN, "over training", "turn by turn"),
    Metric("advantage/std_turn_{turn}", "Advantages by turn", "standard deviation", "over training", "turn by turn"),
    Metric(
        "diagnostics/evidence_recall_turn_{turn}",
        "Evidence recall after a turn",
        "recall",
        "at the end",
        "turn by turn",
    ),
    _read("test/{slice}/{score}", "{title} on test", "share"),
    _read("test_{decoding}/all/{score}", "{title} on test under another decoding", "share"),
    _read("test_best/all/{score}", "{title} on test of the checkpoint that was best on dev", "share"),
    _read("test/all/questions", "test questions asked", "questions"),
    _read("test/all/left_out", "test questions that do not fit", "questions"),
    _read("train/status_turn_limit", "ended on a tool call with the last turn", "share", "curve"),
    _read("train/status_window_full", "ended without room for what a tool call returned", "share", "curve"),
    _read("progress/rollouts", "rollouts so far", "rollouts", "curve"),
    _read("progress/questions", "questions so far", "questions", "curve"),
    _read("progress/sampled_tokens", "tokens sampled so far", "tokens", "curve"),
    _read("progress/seconds", "seconds of training so far", "s", "curve"),
    _read("diagnostics/belief{part}_turn_{turn}", "belief in the gold answer after a turn", "probability"),
    _read("diagnostics/belief_std{part}_turn_{turn}", "its standard deviation over trajectories", "probability"),
)


def shown(place: Place) -> list[Metric]:
    """Return what is shown there, in order."""
    return [metric for metric in METRICS if metric.place == place]


def explaining(rubric: Mapping[str, str]) -> list[tuple[str, str, Reducer]]:
    """Return MLflow's name, title and reducer of what the report explains arms with. rubric: title of each score by key, the
    headline first."""
    headline, title = next(iter(rubric.items()))
    return [
        (
            metric.named(score=headline),
            metric.title.format(title=title) + (f" ({metric.unit})" if metric.unit else ""),
            metric.reducer,
        )
        for metric in shown("explained")
    ]


def wanted(names: Iterable[str], rubric: Mapping[str, str]) -> list[str]:
    """Return those of MLflow's names that a report reads."""
    patterns = [pattern(key, rubric) for key in dict.fromkeys(metric.key for metric in METRICS)]
    return [name for name in names if any(one.fullmatch(name) for one in patterns)]
