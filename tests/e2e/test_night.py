"""Nights of a tiny study by a clock set forward, before and after edits to igpo_core: what each makes and says.

The clock is the scheduled start of the flow run: each night is scheduled in the future and then told to run at once, as the
button "Run now" of Prefect's page does.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from mlflow import MlflowClient

from tests.e2e.conftest import ROOT, Servers, free_ports

pytestmark = [pytest.mark.night, pytest.mark.timeout(1800)]

STUDY = {"preset": "tiny", "seeds": 6, "seeds_a_night": 3, "check_seeds": 6, "free_gb": 0}
FIRST, LAST = ["2", "3", "4"], ["5", "6", "7"]  # seeds of the two nights: the preset's own are 0 and 1
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


def run_night(servers: Servers, when: datetime, **parameters: Any) -> dict[str, Any]:
    """A night of the deployment, scheduled for `when` and told to run at once. Returns its flow run."""
    deployment = servers.ask("GET", "/deployments/name/night/nightly")["id"]
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": when.isoformat()}}
    asked = {"parameters": {**STUDY, **parameters}, "state": state}
    run = servers.ask("POST", f"/deployments/{deployment}/create_flow_run", asked)["id"]
    now = {"type": "SCHEDULED", "state_details": {"scheduled_time": datetime.now(UTC).isoformat()}}
    servers.ask("POST", f"/flow_runs/{run}/set_state", {"state": now})
    servers.run("prefect", "flow-run", "watch", run, timeout=900)
    found: dict[str, Any] = servers.ask("GET", f"/flow_runs/{run}")
    return found


def logged(servers: Servers, run: str) -> str:
    """What the flow run and its tasks logged."""
    asked = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200, "sort": "TIMESTAMP_ASC"}
    return "\n".join(line["message"] for line in servers.ask("POST", "/logs/filter", asked))


def message_of(servers: Servers, run: str) -> str:
    """The message as the page of the artifact shows it: without the backslashes before what would be markup."""
    asked = {"artifacts": {"flow_run_id": {"any_": [run]}, "key": {"any_": ["night-tiny"]}}}
    (artifact,) = servers.ask("POST", "/artifacts/filter", asked)
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", str(artifact["data"]))


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


def clone(folder: Path, edit: str) -> Path:
    """A clone of the project whose igpo_core has these lines more."""
    for name in ("igpo_core", "tasks", "flows", "deployments"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    with (folder / "igpo_core" / "errors.py").open("a") as file:
        file.write(edit)
    return folder


def night_of(folder: Path, servers: Servers, **parameters: Any) -> str:
    """A night of a clone, in a process of its own, with the servers and the folder of the others. Returns what it said."""
    code = f"from flows.night import night; print('SAID', night(**{STUDY | parameters})['body'])"
    done = Servers(servers.home, {**servers.environment, "PYTHONPATH": str(folder)}, "").run(
        sys.executable, "-c", f"import os; os.chdir({str(folder)!r}); {code}", timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.partition("SAID ")[2]  # MLflow prints the links of runs before it
    print(f"\n=== a night of {folder.name}; in MLflow: {made(servers)}\n{said}\n")
    return said


def test_a_study_whose_warm_start_is_learnt_by_heart_is_refused_in_its_first_night(servers: Servers) -> None:
    code = f"from flows.night import night; night(**{STUDY | {'preset': 'examples/own-data.yaml'}})"
    done = servers.run(sys.executable, "-c", code)
    told = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and "a standing study ends with a verdict. THE WARM START IS LEARNT BY HEART" in told


def test_nights(
    servers: Servers, posted: tuple[int, list[dict[str, str]]], mailed: tuple[int, list[Any]], tmp_path: Path
) -> None:
    (http_port, texts), (smtp_port, letters) = posted, mailed
    keyed = Servers(servers.home, {**servers.environment, "TOKEN": SECRET}, "")
    done = keyed.run(sys.executable, "-c", BLOCKS % (http_port, smtp_port))
    assert done.returncode == 0, done.stderr
    first = datetime.now(UTC).replace(hour=2, minute=0, second=0, microsecond=0) + timedelta(days=1)
    hook = {"notify": "custom-webhook/ours"}
    commented = clone(tmp_path / "commented", "# edited\n")
    edited = clone(tmp_path / "edited", "EDITED = True\n")

    def night(number: int, **parameters: Any) -> tuple[dict[str, Any], str]:
        run = run_night(servers, first + timedelta(days=number), **parameters)
        said, page = message_of(servers, run["id"]), run["state"]["name"]
        print(
            f"\n=== night {number + 1}: {page} after {run['total_run_time']:.0f} s; in MLflow: {made(servers)}\n{said}\n"
        )
        log = logged(servers, run["id"])
        assert SECRET not in log and SECRET not in said
        assert re.search(r"igpo seed \d · \d of \d runs", log) or number > 1
        assert not re.search(r"test F1 \S+ · ", log)  # the lines of single runs: nobody looks before the end
        assert f"Night of {first + timedelta(days=number):%d %B %Y}" in said
        return run, said

    _, said = night(0, **hook)
    assert "tiny: 3 of 6 seeds" in said and "1 more night" in said and "better" not in said and "+0." not in said
    assert made(servers) == {"train": sorted(FIRST * 2), "report": [], "check": []} and "ANEW" not in said
    assert [text["title"] for text in texts] == ["igpo-lab, tiny: 3 of 6 seeds"] and texts[0]["text"] in said

    # an edit in mid-study: it begins anew, and its message says why; the code of before goes on where it was
    said = night_of(edited, servers, **hook)
    assert "The study BEGINS ANEW: the 3 of 6 seeds of tiny-" in said and "these changed: igpo_core " in said
    assert "3 of 6 seeds of tiny-" in said and made(servers)["train"] == sorted(FIRST * 4)

    post = {"notify": "email-server-credentials/lab", "mail_to": "me@example.org"}
    _, said = night(1, **post)
    assert "tiny: the verdict of 6 seeds" in said and "none of them the preset's own" in said and "ANEW" not in said
    both = {"train": sorted(FIRST * 4 + LAST * 2), "report": ["2,3,4,5,6,7"], "check": []}
    assert made(servers) == both
    (letter,) = letters
    assert letter["Subject"] == "igpo-lab, tiny: the verdict of 6 seeds"
    verdict = letter.get_content().splitlines()[0]
    assert "igpo" in verdict and "outcome_only" in verdict and verdict in said

    # a message that cannot be sent: the night is good, its log says why, the artifact has the message
    run, said = night(2, notify="email-server-credentials/nobody", mail_to="me@example.org")
    assert run["state"]["type"] == "COMPLETED" and run["total_run_time"] < 60
    assert "was not sent: Connection refused. It is in artifact night-tiny" in logged(servers, run["id"])
    assert "tiny: nothing to do" in said and verdict in said and made(servers) == both

    # a block that is not there: the work is done, the artifact has the message, and the flow run fails at its end
    run, said = night(3, notify="slack-webhook/nobody")
    assert "tiny: nothing to do" in said and verdict in said
    assert "WARNING: it was sent to nobody. notify=slack-webhook/nobody: the Prefect server has no such block" in said
    assert run["state"]["type"] == "FAILED" and "prefect block create slack-webhook" in run["state"]["message"]
    assert "its message is artifact night-tiny" in run["state"]["message"]

    # a comment makes nothing new, a statement does: the seeds are checked, once
    said = night_of(commented, servers, **hook)
    assert "nothing was run" in said and made(servers) == both
    for start in ("Since the verdict of ", "Nothing changed since the last check"):
        said = night_of(edited, servers, **hook)
        assert said.startswith(start) and "to the last digit" in said and "The verdict stands." in said
        assert "igpo_core " in said and verdict in said
        assert made(servers) == {**both, "check": ["2,3,4,5,6,7"], "train": sorted((FIRST + LAST) * 4)}

    # had the check said that the verdict moved, the study is made anew: its seeds are there, and the verdict is what is missing
    client = MlflowClient(servers.environment["MLFLOW_TRACKING_URI"])
    study = client.get_experiment_by_name("tiny")
    assert study is not None
    (check,) = client.search_runs([study.experiment_id], "tags.kind = 'check'")
    client.set_tag(check.info.run_id, "moved", "yes")
    said = night_of(edited, servers, **hook)
    assert "The study is made anew, for its verdict of " in said and "is complete: 6 seeds" in said
    assert made(servers)["report"] == ["2,3,4,5,6,7"] * 2
    assert night_of(edited, servers, **hook).startswith("Nothing changed since the verdict")
    assert night_of(commented, servers, **hook).startswith("Nothing changed since the verdict")  # with its own verdict
    assert [text["title"] for text in texts[1:]] == [
        "igpo-lab, tiny: 3 of 6 seeds",
        "igpo-lab, tiny: nothing to do",
        "igpo-lab, tiny: the verdict stands",
        "igpo-lab, tiny: nothing to do",
        "igpo-lab, tiny: the verdict of 6 seeds",
        "igpo-lab, tiny: nothing to do",
        "igpo-lab, tiny: nothing to do",
    ]
