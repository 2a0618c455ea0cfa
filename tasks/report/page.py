"""The report as one page that needs nothing else: the answer, what was compared, tables, figures, terms, trajectories."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from igpo_core.config.changes import of_cell
from igpo_core.config.reward import OF_ALL_ARMS, Reward, TurnGains, reward_of, settled
from igpo_core.config.specification import spell_changes
from igpo_core.settings import Settings
from tasks.report.figures import belief_by_turn, effect_by_cell, efficiency, overview, svg, turn_by_turn
from tasks.report.terms import TERMS
from tasks.report.wording import budget, part_of, penalty
from tasks.tracking.server import flatten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.report.summaries import CellReport

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Made:
    """How the report came to be."""

    when: str
    commit: str
    code: str
    """code_version of igpo_core."""
    data: tuple[str, ...]
    """Data versions."""
    processors: tuple[str, ...]
    """What the runs were computed on."""
    again: str
    """The command that makes the comparison once more."""
    links: tuple[tuple[str, str], ...]
    """Text and address of pages beside this one."""


@dataclass(frozen=True)
class Drawn:
    """A figure of the page."""

    title: str
    svg: Markup
    alt: str
    """What it shows, for who cannot see it."""
    caption: str


def write_page(
    path: Path,
    sweep: str,
    answer: str,
    specification: Mapping[str, Any],
    reports: "Sequence[CellReport]",
    made: Made,
    trajectories: Sequence[Mapping[str, Any]],
) -> None:
    """Write one HTML file. Text from outside (questions, passages, what the policy wrote) is escaped; no script of it runs."""
    baseline, rewards = specification["baseline"], rewards_of(specification, reports[0].cell)
    units = {arm: reward.gain.unit for arm, reward in rewards.items() if isinstance(reward, TurnGains)}
    script = (TEMPLATES / "viewer.js").read_text(encoding="utf-8")
    effect = None
    if len(reports) > 1:
        title = reports[0].data.title
        drawn = effect_by_cell([(report.cell, report.pairs) for report in reports], baseline, title)
        effect = _drawn(
            "The effect by cell", drawn, f"Difference in test {title} to {baseline} in each cell, with 95% intervals."
        )
    template = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template("report.html.j2")
    text = template.render(
        sweep=sweep,
        title=f"{specification['name']}: {', '.join(specification['arms'])}",
        answer=answer.splitlines(),
        policy=_policy(script),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        facts=_facts(sweep, specification, reports, made),
        arms=_arms(specification, rewards),
        effect=effect,
        cells=[_cell(report, units) for report in reports],
        trajectories=_json({"rows": list(trajectories), "units": units}) if trajectories else None,
        terms=TERMS,
        links=made.links,
        script=Markup(script),
    )
    path.write_text(text, encoding="utf-8")


def rewards_of(specification: Mapping[str, Any], cell: str) -> dict[str, Reward]:
    """Return the reward of every arm, as it stands over the base in a cell."""
    base = of_cell(specification["base"], specification["factors"], cell).get("reward", {})
    found = {}
    for arm, changes in specification["arms"].items():
        own = {name: value for name, value in changes.items() if name not in ("optimizer", "replicate")}
        found[arm] = reward_of(settled({**base, **own}, own))
    return found


def _policy(script: str) -> str:
    """The page loads nothing, and runs its own script alone."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"


def _facts(
    sweep: str, specification: Mapping[str, Any], reports: "Sequence[CellReport]", made: Made
) -> list[tuple[str, str]]:
    """What was compared, when, on what, and how to do it again: name and text of each."""
    factors = specification["factors"]
    bases = {report.cell: of_cell(specification["base"], factors, report.cell) for report in reports}
    runs = {run.run_id: run for report in reports for run in report.data.finished()}  # cells may share a run
    seconds = sum(run.last("progress/seconds") or 0.0 for run in runs.values())

    def told(words: Callable[[Mapping[str, Any]], str]) -> str:
        """A fact of the base, by cell where cells differ in it."""
        by_text: dict[str, list[str]] = {}
        for cell, base in bases.items():
            by_text.setdefault(words(base), []).append(cell)
        if len(by_text) == 1:
            return next(iter(by_text))
        return "; ".join(f"{' and '.join(cells)}: {text}" for text, cells in by_text.items())

    return [
        ("question", specification["description"] or f"Do these arms differ from {specification['baseline']}?"),
        *([("varied", _levels(factors))] if factors else []),
        ("data", f"{told(lambda base: _short(base['data']))}; version {', '.join(made.data)}"),
        ("policy", told(lambda base: _short(base["policy"]))),
        ("start", told(_start)),
        ("budget", f"{told(budget)}, the same for every arm"),
        ("format penalty", told(lambda base: penalty(base["reward"]))),
        ("set besides", spell_changes(specification["changes"]) or "nothing"),
        ("seeds", ", ".join(map(str, specification["seeds"]))),
        ("runs", f"{len(runs)} finished, {seconds / 60:.0f} minutes of training in all"),
        ("computed on", ", ".join(made.processors) or "not recorded"),
        ("code", f"commit {made.commit}; igpo_core {made.code}"),
        ("made", f"{made.when}, sweep {sweep}"),
        ("again", made.again),
    ]


def _levels(factors: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    return "; ".join(
        f"{factor}: {', '.join(f'{level} ({spell_changes(settings)})' for level, settings in levels.items())}"
        for factor, levels in factors.items()
    )


def _short(section: Mapping[str, Any]) -> str:
    """A section's kind, and what is set in it, without long lists."""
    rest = {name: value for name, value in flatten(section).items() if name != "kind" and len(str(value)) < 80}
    return ", ".join([str(section["kind"]), *(f"{name} {value}" for name, value in rest.items())])


def _start(base: Mapping[str, Any]) -> str:
    if base["warm_start"] is None:
        return "no warm start"
    stages = base["warm_start"]["stages"]
    return (
        f"a warm start for every seed: {len(stages)} stages, {sum(stage['steps'] for stage in stages)} supervised steps"
    )


def _arms(specification: Mapping[str, Any], rewards: Mapping[str, Reward]) -> list[dict[str, str]]:
    roles = {specification["baseline"]: "baseline", specification["primary"]: "answers the question"}
    return [
        {
            "name": arm,
            "role": roles.get(arm, ""),
            "words": in_words(rewards[arm]),
            "settings": ", ".join(
                f"{name}: {value}" for name, value in flatten(changes).items() if name != "gain.source"
            ),
        }
        for arm, changes in specification["arms"].items()
    ]


def in_words(reward: Reward) -> str:
    """Return what the turns of an arm earn: the first sentences of the classes that it is made of."""
    parts = [_first_sentence(reward)]
    if isinstance(reward, TurnGains):
        parts += [_first_sentence(reward.gain), _first_sentence(reward.normalization)]
        if reward.shuffle != "none":
            parts.append(f"A control: gains are shuffled within the {reward.shuffle}.")
    shown = {"reward", "gain", "normalization", "shuffle", *OF_ALL_ARMS}
    other = [name for name in type(reward).model_fields if name not in shown and name in reward.model_fields_set]
    defaults = {name: type(reward).model_fields[name].get_default(call_default_factory=True) for name in other}
    changed = [f"{name} {_plain(getattr(reward, name))}" for name in other if getattr(reward, name) != defaults[name]]
    return " ".join([*parts, *([f"With {', '.join(changed)}."] if changed else [])])


def _plain(value: Any) -> str:
    """Return a choice by its name, with those of its parameters that are not the default ones."""
    if not isinstance(value, Settings):
        return str(value)
    fields = type(value).model_fields
    own = {name: getattr(value, name) for name in fields if name != "kind"}
    changed = [f"{name}={found}" for name, found in own.items() if found != fields[name].get_default()]
    return " ".join([str(getattr(value, "kind", "")), *([f"({', '.join(changed)})"] if changed else [])]).strip()


def _first_sentence(thing: object) -> str:
    text = " ".join((type(thing).__doc__ or "").split())
    return re.split(r"(?<=\.) (?=[A-Z])", text)[0]  # "Eq. 4" ends none


def _cell(report: "CellReport", units: Mapping[str, str]) -> dict[str, Any]:
    data, baseline = report.data, report.baseline
    return {
        "name": report.cell,
        "warnings": report.words.warnings,
        "scores": part_of(report.rows, report.columns, "verdict", "test"),
        "behaviour": part_of(report.rows, report.columns, "behaviour"),
        "shown": report.words.shown,
        "limits": report.words.limits,
        "tables": list(report.tables.items()),
        "figures": [
            _drawn(
                "Overview",
                overview(data, report.pairs, baseline),
                f"Four panels: {data.title} on dev by step, paired differences to {baseline} on test, dead groups, turns.",
                "Thin lines and dots are single seeds, bold lines means.",
            ),
            _drawn(
                "Efficiency",
                efficiency(data, baseline),
                f"{data.title} on dev by sampled tokens, a line a run or an arm.",
            ),
            _drawn(
                "Belief by turn",
                belief_by_turn(data, baseline),
                "The belief in the gold answer after each turn, in all, solved and unsolved trajectories.",
                "At the last evaluation, of the trajectories that got so far. Bands, where arms are few: one standard deviation "
                "over trajectories, cut at 0 and 1.",
            ),
            _drawn(
                "Turn by turn",
                turn_by_turn(data, baseline, units),
                "Gains by turn and by what a call found, spread of advantages and evidence by turn, where runs have them.",
                "Gains and advantages are means over training, evidence is of the last evaluation; then means over seeds.",
            ),
        ],
    }


def _drawn(title: str, figure: "Figure", alt: str, caption: str = "") -> Drawn:
    return Drawn(title, Markup(svg(figure)), alt, caption)


def _json(content: Any) -> Markup:
    """JSON that no text in it can end the script of."""
    return Markup(json.dumps(content, ensure_ascii=False).replace("<", "\\u003c"))
