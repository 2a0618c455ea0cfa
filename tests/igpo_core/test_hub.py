"""Files of the hub by name: fetched once from a server that answers as the hub does, then without one."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from igpo_core.errors import ConfigError
from igpo_core.hub import fetched, is_hub_name, require_pinned
from tests.waiting import HANGS

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [{"id": f"q{n}", "question": f"Who ruled {n}?", "answers": ["Ann"], "split": split}
        for n, split in enumerate(("train", "train", "dev", "test"))]  # fmt: skip
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
NAME = f"hf://datasets/owner/some-data@{COMMIT}/data/train.jsonl"


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """(address, paths that were asked for)."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            there = self.path == f"/datasets/owner/some-data/resolve/{COMMIT}/data/train.jsonl"
            self.send_response(200 if there else 404)
            if there:
                self.send_header("ETag", '"abc"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", str(len(CONTENT)))
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(CONTENT)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def fetch(name: str, home: Path, endpoint: str) -> "subprocess.CompletedProcess[str]":
    code = (
        "import sys; from pathlib import Path; from igpo_core.hub import fetched\n"
        "from igpo_core.errors import DataError\n"
        "try: print(fetched(Path(sys.argv[1])).read_text(), end='')\n"
        "except DataError as error: sys.exit(f'DataError: {error}')"
    )
    return run(code, home, endpoint, name)


def run(code: str, home: Path, endpoint: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "no_proxy": "*",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS, check=False)


def test_a_file_is_fetched_once_and_then_found_without_the_hub(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = hub
    first = fetch(NAME, tmp_path, address)
    assert first.returncode == 0 and first.stdout.encode() == CONTENT, first.stderr
    assert asked
    again = fetch(NAME, tmp_path, "http://127.0.0.1:9")  # nobody is there
    assert again.returncode == 0 and again.stdout.encode() == CONTENT, again.stderr


def test_data_are_prepared_from_a_file_of_the_hub(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    """By name through tasks.data.publishing.prepare; the same data by path have the same version, and again without the hub."""
    code = (
        "import sys; from pathlib import Path; from igpo_core.config import QuestionFiles\n"
        "from tasks.data.publishing import prepare\n"
        "search = {'kind': 'web', 'api': 'retriever', 'url': 'http://127.0.0.1:9'}\n"
        "data = {'kind': 'files', 'questions': [{'path': sys.argv[1]}], 'search': search}\n"
        "found = prepare(QuestionFiles.model_validate(data), Path(sys.argv[2]))\n"
        "print(found.version, found.counts)"
    )
    (tmp_path / "q.jsonl").write_bytes(CONTENT)
    said = []
    for name, home, endpoint in (
        (NAME, "a", hub[0]),
        (NAME, "b", "http://127.0.0.1:9"),
        (str(tmp_path / "q.jsonl"), "c", ""),
    ):
        done = run(code, tmp_path / "hub", endpoint, name, str(tmp_path / home))
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.splitlines()[-1])
    assert len(set(said)) == 1 and "{'train': 2, 'dev': 1, 'test': 1}" in said[0]
    assert any(path.startswith("/datasets/owner/some-data/resolve/") for path in hub[1])


def test_what_the_hub_lacks_is_an_error_that_names_it(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    failed = fetch(NAME.replace("train", "tarin"), tmp_path, hub[0])
    assert (
        failed.returncode == 1
        and "DataError: hf:/datasets" in failed.stderr
        and "Check name and commit" in failed.stderr
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hf://datasets/owner/data@main/train.jsonl", "@main may name other bytes tomorrow: give the commit"),
        ("hf://datasets/owner/data/train.jsonl", "is named hf://datasets/<owner>/<name>@<commit>/"),
        ("hf://owner/data@main/train.jsonl", "is named hf://datasets/<owner>/<name>@<commit>/"),
    ],
)
def test_a_name_without_its_commit_is_refused(name: str, reason: str) -> None:
    assert is_hub_name(Path(name))
    with pytest.raises(ConfigError, match=reason):
        require_pinned(Path(name))


def test_other_paths_stay_as_they_are() -> None:
    assert not is_hub_name(Path("data/hf.jsonl")) and fetched(Path("data/hf.jsonl")) == Path("data/hf.jsonl")


UNKNOWN = "http://hub.invalid"  # a name that never resolves (RFC 2606)


def test_a_name_that_does_not_resolve_is_told_at_once(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    """Six requests were tried in a minute, and the error did not say what was the matter."""
    failed = fetch(NAME, tmp_path, UNKNOWN)
    assert failed.returncode == 1 and "Retrying" not in failed.stderr and "requesting" not in failed.stderr
    assert "DataError: no network: hub.invalid does not resolve" in failed.stderr
    assert f"{NAME} is a file of it" in failed.stderr and "HF_HOME" in failed.stderr
    assert fetch(NAME, tmp_path, hub[0]).returncode == 0
    assert fetch(NAME, tmp_path, UNKNOWN).stdout.encode() == CONTENT  # found in the cache


def test_a_model_of_a_hub_whose_name_does_not_resolve_is_told_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from igpo_core.config import ExperimentConfig; from igpo_core.policies import load_policy\n"
        "from igpo_core.errors import NoNetwork\n"
        "try: load_policy(sys.argv[1], ExperimentConfig())\n"
        "except NoNetwork as error: sys.exit(f'NoNetwork: {error}')"
    )
    failed = run(code, tmp_path, UNKNOWN, "owner/model")
    assert failed.returncode == 1 and "Retrying" not in failed.stderr, failed.stderr
    assert "NoNetwork: no network: hub.invalid" in failed.stderr and "set policy.name to a folder" in failed.stderr


def test_a_server_that_is_busy_is_still_asked_again(tmp_path: Path) -> None:
    """What may pass is left to the library: 503 twice, then the file."""
    left = [503, 503]

    class Busy(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(left.pop() if left else 200)
            self.send_header("ETag", '"abc"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(CONTENT)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = fetch(NAME, tmp_path, f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
    assert found.stdout.encode() == CONTENT and not left, found.stderr
