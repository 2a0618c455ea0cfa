"""The content policy of a report's page, which many open from a file or in MLflow."""

import base64
import hashlib
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tasks.report.page import Made, _facts, in_words, rewards_of
from tasks.report.reporting import write_report
from tasks.report.summaries import cell_reports
from tasks.tracking.server import client
from tasks.tracking.traces import TraceRecord, TurnRecord
from tests.tasks.test_reporting import PLACES, SPECIFICATION, five, send_kept


class Tags(HTMLParser):
    """The elements of a page with their attributes, and what stands in each script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append((self.tags[-1][1], data))

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}", {}))


def test_the_reports_policy_lets_the_viewers_script_run_alone(mlflow_server: str, tmp_path: Path) -> None:
    """Whatever a question, a passage or the policy's own text holds; nothing is loaded, nothing is sent anywhere."""
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)><a href='javascript:alert(3)'>x</a>"
    turn = TurnRecord(hostile, "answer", hostile, None, -1.0, None, None)
    told = TraceRecord(
        hostile, hostile, (hostile,), (turn,), "answered", {"f1": 1.0, "em": 1.0}, "outcome_only", 0, "test", 4
    )
    item = five().runs[0]
    send_kept("guarded", item, told, tmp_path)
    specification = {**SPECIFICATION, "name": "guarded", "description": hostile}
    report = write_report(specification, "study-1", {"": "v1"}, PLACES, [""], "make ablation")
    page = Tags((Path(client().download_artifacts(report.run_id, "report.html", str(tmp_path)))).read_text())
    (data,) = (text for attributes, text in page.scripts if attributes.get("type") == "application/json")
    (script,) = (text for attributes, text in page.scripts if not attributes)
    assert json.loads(data)["rows"][0]["question"] == hostile
    policies = [attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv")]
    rules = dict(rule.split(None, 1) for policy in policies for rule in str(policy).split("; "))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules.get("script-src") == f"'sha256-{digest}'" and rules["default-src"] == "'none'"
    assert set(rules) == {"default-src", "style-src", "img-src", "script-src"} and rules["img-src"] == "data:"
    names = [tag for tag, _ in page.tags]
    assert names.index("meta") < min(
        names.index("style"), names.index("script")
    )  # a policy holds for what is behind it
    assert not {"iframe", "object", "embed", "base", "form", "link"} & set(names) and "img" not in names
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert not str(attributes.get("href") or "").startswith("javascript:") and "src" not in attributes


def crossed(**base: Any) -> dict[str, Any]:
    """A comparison whose factor sets the penalty, and something without which an arm cannot be."""
    levels = {
        "off": {"reward.format_penalty": 0.0, "reward.outcome_credit": "broadcast"},
        "on": {"reward.format_penalty": -1.0, "reward.outcome_credit": "broadcast"},
    }
    arms = {"outcome_only": {"reward": "outcome_only"}, "igpo": {"accumulation": {"kind": "root"}}}
    return {**SPECIFICATION, "arms": arms, "factors": {"penalty": levels}, "base": {**SPECIFICATION["base"], **base}}


def test_an_arm_is_told_as_it_is_in_a_cell() -> None:
    """Over the bare base this arm cannot be: the report came to nothing once every run was there."""
    rewards = rewards_of(crossed(), "penalty=on")
    assert in_words(rewards["outcome_only"]) == "GRPO: the outcome alone, to every turn."
    words = in_words(rewards["igpo"])
    assert "(paper Eq. 4, camera-ready)." in words and "accumulation root" in words and not words.endswith("Eq.")


def test_what_a_factor_sets_is_told_by_cell() -> None:
    data = five()
    report = cell_reports({**SPECIFICATION, "arms": crossed()["arms"]}, {"": data}, [""])[0]
    made = Made("now", "c", "v", ("d",), (), "make ablation", ())
    facts = dict(_facts("s", crossed(), [replace(report, cell=f"penalty={level}") for level in ("off", "on")], made))
    told = "penalty=off: no format penalty; penalty=on: a format penalty of -1 on the malformed turn"
    assert facts["format penalty"] == told
    assert facts["runs"].startswith("10 finished, ")  # one run serves both cells, and is counted once
    assert facts["varied"].startswith("penalty: off (reward.format_penalty=0.0, ")
