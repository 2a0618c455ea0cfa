"""The report as one page that needs nothing else: tables, figures, diagnostics, and a viewer of trajectories."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.report.figures import belief_by_turn, effect_by_cell, efficiency, overview, svg, turn_by_turn
from tasks.report.wording import BEHAVIOUR

if TYPE_CHECKING:
    from tasks.report.summaries import CellReport
    from tasks.report.wording import Words

VIEWER = Path(__file__).with_name("viewer.js")
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1a1a1a;max-width:1240px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.2rem;border-top:1px solid #ddd;padding-top:1rem}h3{font-size:1rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;margin:.6rem 0}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #e5e5e5;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{color:#555;font-weight:600}
.warn{background:#fff4e5;border-left:4px solid #d55e00;padding:.4rem .8rem;margin:.4rem 0;font-size:13px}
.answer{font-size:17px;max-width:60rem;margin:.4rem 0}
svg{max-width:100%;height:auto}
#filters{display:flex;flex-wrap:wrap;gap:.8rem;margin:.6rem 0}#filters label{font-size:13px;color:#555}
#list{max-height:16rem;overflow-y:auto;border:1px solid #ddd;font-size:13px}
#list div{padding:.25rem .6rem;cursor:pointer;border-bottom:1px solid #f0f0f0}#list div:hover,#list .on{background:#eef4fb}
.turn{border:1px solid #ddd;border-left:4px solid #0072b2;margin:.6rem 0;padding:.4rem .8rem}
.turn.bad{border-left-color:#d55e00}.turn.answer{border-left-color:#009e73}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f7f7f7;padding:.5rem;margin:.3rem 0;font-size:12.5px}
.num{font-size:13px;color:#444}.bar{display:inline-block;height:.6em;background:#0072b2;vertical-align:baseline}
"""


def write_page(
    path: Path,
    sweep: str,
    answer: str,
    specification: Mapping[str, Any],
    reports: "Sequence[CellReport]",
    compare: str,
    trajectories: Sequence[Mapping[str, Any]],
) -> None:
    """One HTML file; text from outside (questions, passages, what the policy wrote) is escaped, and no script of it runs."""
    baseline = specification["baseline"]
    parts = [f"<h1>{_text(sweep)}</h1>", *(f'<p class="answer">{_text(line)}</p>' for line in answer.splitlines())]
    parts.append(f"<p>{_text(specification['description'])}</p>")
    if len(reports) > 1:
        cells = [(report.cell, report.pairs) for report in reports]
        parts += ["<h2>The effect by cell</h2>", svg(effect_by_cell(cells, baseline, reports[0].data.title))]
    for report in reports:
        parts += _cell(report)
    if trajectories:
        parts.append(_viewer(trajectories))
    parts.append(f'<p><a href="{_text(compare)}">Curves by arm in MLflow</a></p>')
    body = "\n".join(parts)
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{_policy()}<title>{_text(sweep)}</title>'
        f"<style>{STYLE}</style></head><body>{body}</body></html>",
        encoding="utf-8",
    )


def _policy() -> str:
    """The page loads nothing, and runs the viewer's script alone."""
    digest = base64.b64encode(hashlib.sha256(VIEWER.read_bytes()).digest()).decode()
    rules = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'


def _cell(report: "CellReport") -> list[str]:
    data, baseline = report.data, report.baseline
    cut = list(report.rows[0]).index(BEHAVIOUR)
    scores = [dict(list(row.items())[:cut]) for row in report.rows]
    behaviour = [{"arm": row["arm"], **dict(list(row.items())[cut:])} for row in report.rows]
    parts = [
        f"<h2>{_text(report.cell or 'Result')}</h2>",
        *_warnings(report.words),
        _table(scores),
        *_words(report.words),
        svg(overview(data, report.pairs, baseline)),
        _table(behaviour),
        "<h3>Efficiency</h3>",
        svg(efficiency(data, baseline)),
        "<h3>Belief by turn</h3><p>At the last evaluation, of the trajectories that got so far; bands, where arms are few: one "
        "standard deviation over trajectories.</p>",
        svg(belief_by_turn(data, baseline)),
        "<h3>Turn by turn</h3><p>Gains and advantages are means over training, evidence is of the last evaluation; then means "
        "over seeds.</p>",
        svg(turn_by_turn(data, baseline)),
    ]
    for title, rows in report.tables.items():
        parts += [f"<h3>{_text(title)}</h3>", _table(rows)]
    return parts


def _warnings(words: "Words") -> list[str]:
    """One box, so that the table below it stays on the first screen."""
    lines = "".join(f"<div>{_text(text)}</div>" for text in words.warnings)
    return [f'<div class="warn">{lines}</div>'] if lines else []


def _words(words: "Words") -> list[str]:
    lines = []
    for title, texts in (("What was shown", words.shown), ("What was not shown", words.limits)):
        items = "".join(f"<li>{_text(text)}</li>" for text in texts)
        lines.append(f"<h3>{title}</h3><ul>{items}</ul>")
    return lines


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{_text(name)}</th>" for name in rows[0])
    lines = ["<tr>" + "".join(f"<td>{_text(value)}</td>" for value in row.values()) + "</tr>" for row in rows]
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _viewer(trajectories: Sequence[Mapping[str, Any]]) -> str:
    data = json.dumps(trajectories, ensure_ascii=False).replace("<", "\\u003c")  # no text can end the script
    return (
        "<h2>Trajectories</h2><p>A sample of training rollouts at each evaluation, with the policy's belief in the gold "
        'answer after each turn.</p><div id="filters"></div><div id="list"></div><div id="one"></div>'
        f'<script type="application/json" id="data">{data}</script><script>{VIEWER.read_text()}</script>'
    )


def _text(value: object) -> str:
    return html.escape(str(value))
