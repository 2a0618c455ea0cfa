"""What was measured of models, as a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from tasks.report import compared_shown as shown
from tasks.report.compared import Asked, Draw, Question, Score, compare
from tasks.report.statistics import Verdict
from tasks.runs.evaluations import Measured, Unit
from tasks.runs.processors import mixed

Results = Sequence[tuple[Unit, Measured]]


@dataclass(frozen=True)
class Compared:
    """A comparison, as it is shown."""

    scores: Sequence[Score]
    unseen: frozenset[str]
    """Sources without a question in training, by the names of tables."""
    title: str
    """Of the score."""
    words: str
    """What was compared, and each verdict."""

    @property
    def rows(self) -> list[dict[str, str]]:
        """Return the table, a row a model."""
        return shown.main_rows(self.scores, self.unseen, self.title)


def compared_of(results: Results, trained_on: frozenset[str], margin: float) -> Compared:
    """Compare models on the headline score with the first decoding. trained_on: sources with questions in training. There is no
    verdict on a model whose warm start is learnt by heart, or of which nobody knows, nor where the first model is such a one."""
    sets = {unit.data.version: unit.data for unit, _ in results}
    settings = results[0][0].data.experiment.data
    holding: dict[str, set[str]] = {}  # source -> data sets
    for unit, measured in results:
        for record in measured.records:
            holding.setdefault(record["source"], set()).add(unit.data.version)
    named = {
        (version, source): source if len(versions) == 1 else f"{sets[version].name}: {source}"
        for source, versions in holding.items()
        for version in versions
    }
    asked: dict[Question, Asked] = {}
    draws: dict[tuple[str, int | None, int], dict[Question, float]] = {}
    for unit, measured in results:
        if unit.decoding != unit.data.experiment.evaluation.decoding[0]:
            continue
        own = draws.setdefault((unit.model.name, unit.model.seed, unit.draw), {})
        for record in measured.records:
            question = (unit.data.version, record["id"])
            asked[question] = Asked(named[unit.data.version, record["source"]], record["hops"])
            own[question] = record[settings.headline]
    scores = compare([Draw(*key, found) for key, found in draws.items()], asked, margin)
    without: dict[str, dict[str, Verdict]] = {
        unit.model.name: {} for unit, _ in results
    }  # model -> why, in place of what
    for unit, _ in results:
        taught = unit.model.taught
        without[unit.model.name] |= dict.fromkeys(taught.by_heart, "learnt by heart")
        if taught.unknown:
            line = f"NOBODY KNOWS WHETHER ITS WARM START IS LEARNT BY HEART, so there is no verdict: {taught.unknown}"
            without[unit.model.name][line] = "start not known"
    first = results[0][0].model.name

    def without_verdict(row: Score) -> Score:
        told = {*without[row.model].values(), *without[first].values()}
        if not told:
            return row
        verdict: Verdict = "learnt by heart" if "learnt by heart" in told else "start not known"
        return replace(row, verdict=row.verdict and verdict, p=None)

    scores = [without_verdict(row) for row in scores]
    unseen = frozenset(name for (_, source), name in named.items() if source not in trained_on)
    sampled = len({draw for _, _, draw in draws})
    split = next(iter(sets.values())).split
    computed = mixed((unit.model.title, measured.processor) for unit, measured in results)
    reasons = dict.fromkeys(line for lines in without.values() for line in lines)
    told = [f"{', '.join(name for name, lines in without.items() if line in lines)}: {line}" for line in reasons]
    words = "\n".join([shown.told(scores, split, settings.headline_title, sampled), *told, *computed])
    return Compared(scores, unseen, settings.headline_title, words)


def mean_metrics(results: Results) -> dict[str, float]:
    """Return the metrics of models as means over all measurements: "<split>/..." of the first decoding,
    "<split>_<decoding>/..." of others. Where there are several data sets, the set's name stands before them."""
    several = len({unit.data.version for unit, _ in results}) > 1
    values: dict[str, list[float]] = {}
    for unit, measured in results:
        data = unit.data
        other = "" if unit.decoding == data.experiment.evaluation.decoding[0] else f"_{unit.decoding}"
        start = f"{data.name}/" if several else ""
        for name, value in measured.metrics.items():
            values.setdefault(f"{start}{data.split}{other}/{name}", []).append(value)
    return {name: fmean(found) for name, found in values.items()}


def metrics_of(results: Results) -> dict[str, float]:
    """Return mean_metrics of every model; where there are several, its name stands before them."""
    by_model: dict[str, list[tuple[Unit, Measured]]] = {}
    for unit, measured in results:
        by_model.setdefault(unit.model.name, []).append((unit, measured))
    return {
        f"{model}/{name}" if len(by_model) > 1 else name: value
        for model, own in by_model.items()
        for name, value in mean_metrics(own).items()
    }


def by_weights(results: Results) -> list[Results]:
    """Return the measurements of each set of weights."""
    found: dict[tuple[str, int | None], list[tuple[Unit, Measured]]] = {}
    for unit, measured in results:
        found.setdefault((unit.model.name, unit.model.seed), []).append((unit, measured))
    return list(found.values())
