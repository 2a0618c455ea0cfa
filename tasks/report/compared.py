"""Models on the same questions: scores by source and hops, differences to the first model, intervals over seeds and questions.

What repeats a model is its training seed where it has several (the arms of a sweep), else the sampling seed. Scores of sampling
seeds of one training seed are averaged. A difference is taken question by question and seed by seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from igpo_core.errors import DataError
from tasks.report.statistics import ALPHA, MIN_SEEDS, Interval, Verdict, sign_flip_p, two_way_interval

if TYPE_CHECKING:
    import numpy as np

MEAN = "mean of sources"
Question = tuple[str, str]  # data version, id


@dataclass(frozen=True)
class Draw:
    """What a model scored on every question with one sampling seed."""

    model: str
    training_seed: int | None
    sampling_seed: int
    scores: Mapping[Question, float]


@dataclass(frozen=True)
class Asked:
    """A question."""

    source: str
    """As tables call it."""
    hops: int | None


@dataclass(frozen=True)
class Score:
    """A model in a slice of the questions, and its difference to the first model there. difference and interval of it are None
    of the first model."""

    part: str
    """"<source>", "<source>/hops_<n>" or MEAN."""
    model: str
    questions: int
    seeds: int
    """Rows that were resampled."""
    trained: bool
    """Whether they are training seeds; else sampling seeds."""
    score: float
    interval: Interval | None
    difference: float | None = None
    difference_interval: Interval | None = None
    p: float | None = None
    verdict: Verdict | None = None
    """Of the whole alone: parts have intervals."""


def compare(draws: Sequence[Draw], asked: Mapping[Question, Asked], margin: float) -> list[Score]:
    """Return every model in every slice, the whole first: of several sources their mean, each counting the same.

    Questions that a model was not asked (their prompt does not fit) count for none. p is of the exact sign-flip test of the mean
    difference, adjusted for the models compared: over training seeds where a model has several, and it needs MIN_SEEDS of them,
    else over questions. A verdict asks for both, p <= ALPHA and an interval on one side of zero. Where both models have training
    seeds, however many, and one lacks a seed of the other, it is "runs missing": what is left would be the seeds that both
    survived. Raises DataError where a score is no finite number.
    """
    for draw in draws:
        odd = [name for (_, name), score in draw.scores.items() if not math.isfinite(score)]
        if odd:
            raise DataError(
                f"{draw.model}: the score of question {odd[0]} with sampling seed {draw.sampling_seed} is no finite number: see "
                "what the environment's score returns"
            )
    by_model: dict[str, list[Draw]] = {}
    for draw in draws:
        by_model.setdefault(draw.model, []).append(draw)
    common = set(asked).intersection(*(draw.scores.keys() for draw in draws))
    questions = [question for question in asked if question in common]
    found: list[Score] = []
    for part, strata in slices({question: asked[question] for question in questions}).items():
        rows = [_score(part, model, by_model, strata) for model in by_model]
        found += rows if found else _judged(rows, by_model, strata, margin)
    return found


def slices(asked: Mapping[Question, Asked]) -> dict[str, list[list[Question]]]:
    """Return the strata of each slice: the whole, each source where there are several, each number of hops of a source that has
    several."""
    by_source: dict[str, list[Question]] = {}
    by_hops: dict[str, dict[int, list[Question]]] = {}
    for question, about in asked.items():
        by_source.setdefault(about.source, []).append(question)
        if about.hops is not None:
            by_hops.setdefault(about.source, {}).setdefault(about.hops, []).append(question)
    found = {MEAN if len(by_source) > 1 else next(iter(by_source)): list(by_source.values())}
    for source, own in by_source.items():
        found[source] = [own]
        hops = by_hops.get(source, {})
        found |= {f"{source}/hops_{count}": [hops[count]] for count in sorted(hops) if len(hops) > 1}
    return found


def _score(part: str, model: str, by_model: Mapping[str, list[Draw]], strata: Sequence[Sequence[Question]]) -> Score:
    own = [_matrix(by_model[model], questions) for questions in strata]
    value, span, count = _mean(own), two_way_interval(own), sum(map(len, strata))
    row = Score(part, model, count, len(own[0]), _trained(by_model[model]), value, span)
    if model == next(iter(by_model)):
        return row
    differences = [_difference(by_model, model, questions) for questions in strata]
    return replace(row, difference=_mean(differences), difference_interval=two_way_interval(differences))


def _matrix(draws: Sequence[Draw], questions: Sequence[Question]) -> "np.ndarray":
    """[seeds, questions]."""
    import numpy as np

    return np.array([list(row.values()) for row in _rows(draws, questions).values()])


def _rows(draws: Sequence[Draw], questions: Sequence[Question]) -> dict[int, dict[Question, float]]:
    """Return the scores of each training seed, means over sampling seeds; of each sampling seed where there is one training."""
    trained = _trained(draws)
    by_seed: dict[int, list[Draw]] = {}
    for draw in draws:
        seed = draw.training_seed if trained else draw.sampling_seed
        by_seed.setdefault(seed or 0, []).append(draw)
    return {
        seed: {question: math.fsum(draw.scores[question] for draw in own) / len(own) for question in questions}
        for seed, own in sorted(by_seed.items())
    }


def _trained(draws: Sequence[Draw]) -> bool:
    """Whether training seeds repeat the model."""
    return len({draw.training_seed for draw in draws}) > 1


def _difference(by_model: Mapping[str, list[Draw]], model: str, questions: Sequence[Question]) -> "np.ndarray":
    """[seeds, questions] of the model minus the first, over the seeds that both have. A model that was trained once stands
    against every training seed of the other with its mean over sampling seeds."""
    import numpy as np

    ours, theirs = by_model[model], by_model[next(iter(by_model))]
    own, reference = (_rows(draws, questions) for draws in (ours, theirs))
    if _trained(ours) != _trained(theirs):
        own, reference = (
            rows if _trained(draws) else _repeated(rows, other)
            for rows, draws, other in ((own, ours, reference), (reference, theirs, own))
        )
    shared = [seed for seed in own if seed in reference]
    if not shared:  # greedy decoding, or arms without a seed in common: means against means
        own, reference, shared = _repeated(own, {0: {}}), _repeated(reference, {0: {}}), [0]
    return np.array([[own[seed][question] - reference[seed][question] for question in questions] for seed in shared])


def _repeated(
    rows: Mapping[int, Mapping[Question, float]], seeds: Mapping[int, Mapping[Question, float]]
) -> dict[int, dict[Question, float]]:
    """Return the mean of the rows, for each of these seeds."""
    every = list(rows.values())
    mean = {question: math.fsum(row[question] for row in every) / len(every) for question in every[0]}
    return dict.fromkeys(seeds, mean)


def _mean(strata: "Sequence[np.ndarray]") -> float:
    return math.fsum(float(scores.mean()) for scores in strata) / len(strata)


def _judged(
    rows: Sequence[Score], by_model: Mapping[str, list[Draw]], strata: Sequence[Sequence[Question]], margin: float
) -> list[Score]:
    """Return the same with p-values and verdicts."""
    from scipy.stats import false_discovery_control

    first = next(iter(by_model))
    raw = {row.model: _p(by_model, row.model, strata) for row in rows if row.model != first}
    counted = [1.0 if p is None else p for p in raw.values()]  # one that cannot be tested stays among those compared
    adjusted = map(float, false_discovery_control(counted) if counted else [])
    p = {model: p for model, p in zip(raw, adjusted, strict=True) if raw[model] is not None}
    return [
        row
        if row.model == first
        else replace(
            row, p=p.get(row.model), verdict=_verdict(row, p.get(row.model), margin, _lacking(by_model, row.model))
        )
        for row in rows
    ]


def _lacking(by_model: Mapping[str, list[Draw]], model: str) -> bool:
    """Whether the model or the first one was not trained with a seed of the other, where both have training seeds."""
    ours, theirs = ({draw.training_seed for draw in by_model[name]} - {None} for name in (model, next(iter(by_model))))
    return bool(ours and theirs) and ours != theirs


def _p(by_model: Mapping[str, list[Draw]], model: str, strata: Sequence[Sequence[Question]]) -> float | None:
    """Return the p-value of no mean difference; None where training seeds are too few, or one is missing."""
    if _lacking(by_model, model):
        return None
    differences = [_difference(by_model, model, questions) for questions in strata]
    first = next(iter(by_model))
    if not (_trained(by_model[model]) or _trained(by_model[first])):
        # sampling seeds are drawn anew for each question, so questions alone repeat; a source counts as much as another
        weighted = [scores.mean(axis=0) / scores.shape[1] for scores in differences]
        return sign_flip_p([float(value) for scores in weighted for value in scores])
    seeds = sum(scores.mean(axis=1) for scores in differences) / len(differences)
    return sign_flip_p([float(value) for value in seeds]) if len(seeds) >= MIN_SEEDS else None


def _verdict(row: Score, p: float | None, margin: float, lacking: bool) -> Verdict:
    span = row.difference_interval
    if lacking:
        return "runs missing"
    if p is None or span is None or row.difference is None:
        return "too few seeds"
    if -margin < span.low and span.high < margin:
        return "within margin"
    if p > ALPHA or span.low <= 0 <= span.high:
        return "no difference shown"
    return "better" if row.difference > 0 else "worse"
