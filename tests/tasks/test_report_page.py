"""The content policy of a report's page, which many open from a file or in MLflow."""

import base64
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path

from tasks.report.reporting import write_report
from tasks.tracking.outbox import About, Outbox, write_status
from tasks.tracking.sending import Sender
from tasks.tracking.server import client
from tasks.tracking.traces import TraceRecord, TurnRecord
from tests.tasks.test_reporting import PLACES, SPECIFICATION, five


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
    identity = {"kind": "train", "sweep": "study-1", "arm": item.arm, "seed": "0"}
    outbox = Outbox(tmp_path / item.run_id, About("guarded", item.run_id, item.run_id, identity, {}))
    outbox.log(4, {name: history[4.0] for name, history in item.histories.items()})
    outbox.keep([told])
    outbox.set_traces([told])
    write_status(outbox.folder, "FINISHED")
    Sender(outbox.folder).send()
    specification = {**SPECIFICATION, "name": "guarded", "description": hostile}
    report = write_report(specification, "study-1", {"": "v1"}, PLACES, [""])
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
