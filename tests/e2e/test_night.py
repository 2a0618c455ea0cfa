"""Three nights of a tiny study by a clock set forward, and one after an edit to igpo_core: what each makes and says.

The clock is the scheduled start of the flow run: each night is scheduled in the future and then told to run at once, as the
button "Run now" of Prefect's page does.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from aiosmtpd.controller import Controller
from mlflow import MlflowClient

from tests.e2e.conftest import ROOT, Servers, free_ports

pytestmark = [pytest.mark.night, pytest.mark.timeout(1800)]

STUDY = {"preset": "tiny", "seeds": 6, "seeds_a_night": 3, "check_seeds": 2, "free_gb": 0}
BLOCKS = """
import os
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect_email import EmailServerCredentials
CustomWebhookNotificationBlock(
    name="ours", url="http://127.0.0.1:%s/{{token}}", json_data={"title": "{{subject}}", "text": "{{body}}"},
    secrets={"token": os.environ["TOKEN"]},
).save("ours", overwrite=True)
EmailServerCredentials(smtp_server="127.0.0.1", smtp_port=%s, smtp_type="INSECURE").save("lab", overwrite=True)
EmailServerCredentials(smtp_server="127.0.0.1", smtp_port=9, smtp_type="INSECURE").save("nobody", overwrite=True)
"""
SECRET = "T0KEN-that-nobody-may-read"


@pytest.fixture
def posted() -> Iterator[tuple[int, list[dict[str, str]]]]:
    """Port of a webhook's receiver, and what it was sent."""
    received: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == f"/{SECRET}"
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], received
        server.shutdown()


@pytest.fixture
def mailed() -> Iterator[tuple[int, list[Any]]]:
    """Port of a mail server, and the letters that it took."""
    letters: list[Any] = []

    class Post:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            letters.append(message_from_bytes(envelope.content, policy=policy.default))
            return "250 taken"

    port = int(free_ports()[0])
    controller = Controller(Post(), hostname="127.0.0.1", port=port)
    controller.start()
    yield port, letters
    controller.stop()


def ask(servers: Servers, method: str, path: str, body: Any = None) -> Any:
    answer = httpx.request(
        method, servers.environment["PREFECT_API_URL"] + path, json=body, timeout=60, auth=servers.account
    )
    return answer.raise_for_status().json()


def run_night(servers: Servers, when: datetime, **parameters: Any) -> dict[str, Any]:
    """A night of the deployment, scheduled for `when` and told to run at once. Returns its flow run."""
    deployment = ask(servers, "GET", "/deployments/name/night/nightly")["id"]
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": when.isoformat()}}
    asked = {"parameters": {**STUDY, **parameters}, "state": state}
    run = ask(servers, "POST", f"/deployments/{deployment}/create_flow_run", asked)["id"]
    now = {"type": "SCHEDULED", "state_details": {"scheduled_time": datetime.now(UTC).isoformat()}}
    ask(servers, "POST", f"/flow_runs/{run}/set_state", {"state": now})
    servers.run("prefect", "flow-run", "watch", run, timeout=900)
    found: dict[str, Any] = ask(servers, "GET", f"/flow_runs/{run}")
    return found


def logged(servers: Servers, run: str) -> str:
    """What the flow run and its tasks logged."""
    asked = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200, "sort": "TIMESTAMP_ASC"}
    return "\n".join(line["message"] for line in ask(servers, "POST", "/logs/filter", asked))


def message_of(servers: Servers, run: str) -> str:
    asked = {"artifacts": {"flow_run_id": {"any_": [run]}, "key": {"any_": ["night-tiny"]}}}
    (artifact,) = ask(servers, "POST", "/artifacts/filter", asked)
    return str(artifact["data"])


def made(servers: Servers) -> dict[str, list[str]]:
    """Seeds of the training runs, reports and checks in MLflow."""
    client = MlflowClient(servers.environment["MLFLOW_TRACKING_URI"])
    study = client.get_experiment_by_name("tiny")
    runs = client.search_runs([study.experiment_id]) if study else []
    kinds: dict[str, list[str]] = {"train": [], "report": [], "check": []}
    for run in runs:
        if run.data.tags["kind"] in kinds:
            kinds[run.data.tags["kind"]].append(run.data.tags.get("seed") or run.data.tags["seeds"])
    return {kind: sorted(seeds) for kind, seeds in kinds.items()}


def test_nights(
    servers: Servers, posted: tuple[int, list[dict[str, str]]], mailed: tuple[int, list[Any]], tmp_path: Path
) -> None:
    (http_port, texts), (smtp_port, letters) = posted, mailed
    keyed = Servers(servers.home, {**servers.environment, "TOKEN": SECRET}, "")
    done = keyed.run(sys.executable, "-c", BLOCKS % (http_port, smtp_port))
    assert done.returncode == 0, done.stderr
    first = datetime.now(UTC).replace(hour=2, minute=0, second=0, microsecond=0) + timedelta(days=1)
    hook = {"notify": "custom-webhook/ours"}

    def night(number: int, **parameters: Any) -> tuple[dict[str, Any], str]:
        run = run_night(servers, first + timedelta(days=number), **parameters)
        said, page = message_of(servers, run["id"]), run["state"]["name"]
        print(
            f"\n=== night {number + 1}: {page} after {run['total_run_time']:.0f} s; in MLflow: {made(servers)}\n{said}\n"
        )
        assert SECRET not in logged(servers, run["id"]) and SECRET not in said
        assert f"Night of {first + timedelta(days=number):%d %B %Y}" in said
        return run, said

    # refused before any work: there is no such block
    refused = run_night(servers, first, notify="slack-webhook/nobody")
    assert refused["state"]["type"] == "FAILED" and made(servers)["train"] == []
    assert "prefect block create slack-webhook" in refused["state"]["message"]

    _, said = night(0, **hook)
    assert "tiny: 3 of 6 seeds" in said and "1 more night" in said and "better" not in said and "+0." not in said
    assert made(servers) == {"train": ["0", "0", "1", "1", "2", "2"], "report": [], "check": []}
    assert [text["title"] for text in texts] == ["igpo-lab, tiny: 3 of 6 seeds"] and texts[0]["text"] in said

    post = {"notify": "email-server-credentials/lab", "mail_to": "me@example.org"}
    _, said = night(1, **post)
    assert "tiny: the verdict of 6 seeds" in said
    assert made(servers) == {"train": sorted("001122334455"), "report": ["0,1,2,3,4,5"], "check": []}
    (letter,) = letters
    assert letter["Subject"] == "igpo-lab, tiny: the verdict of 6 seeds"
    verdict = letter.get_content().splitlines()[0]
    assert "igpo" in verdict and "outcome_only" in verdict and verdict in said

    # a message that cannot be sent: the night is good, its log says why, the artifact has the message
    run, said = night(2, notify="email-server-credentials/nobody", mail_to="me@example.org")
    assert run["state"]["type"] == "COMPLETED" and run["total_run_time"] < 60
    assert "was not sent: Connection refused. It is in artifact night-tiny" in logged(servers, run["id"])
    assert "tiny: nothing to do" in said and verdict in said
    assert made(servers) == {"train": sorted("001122334455"), "report": ["0,1,2,3,4,5"], "check": []}

    # an edit to igpo_core in a clone: a night of its own process, with the servers and the folder of the others
    clone = tmp_path / "clone"
    for name in ("igpo_core", "tasks", "flows", "deployments"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", clone)
    with (clone / "igpo_core" / "errors.py").open("a") as file:
        file.write("# edited\n")
    for _ in range(2):
        code = f"from flows.night import night; print(night(**{STUDY | hook})['body'])"
        done = Servers(servers.home, {**servers.environment, "PYTHONPATH": str(clone)}, "").run(
            sys.executable, "-c", f"import os; os.chdir({str(clone)!r}); {code}", timeout=900
        )
        assert done.returncode == 0, done.stdout + done.stderr
        print(f"\n=== a night after an edit to igpo_core; in MLflow: {made(servers)}\n{done.stdout}\n")
        assert made(servers)["check"] == ["0,1"] and made(servers)["train"] == sorted("001122334455" + "0011")
        assert (
            "igpo_core" in done.stdout and "to the last digit" in done.stdout and "The verdict stands." in done.stdout
        )
    assert [text["title"] for text in texts[-2:]] == [
        "igpo-lab, tiny: the verdict stands",
        "igpo-lab, tiny: nothing to do",
    ]
