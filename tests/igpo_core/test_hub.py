"""Files of the hub by name: fetched once from a server that answers as the hub does, then without one."""

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

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = b'{"question_id": "q0"}\n'
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
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", code, name]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_file_is_fetched_once_and_then_found_without_the_hub(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = hub
    first = fetch(NAME, tmp_path, address)
    assert first.returncode == 0 and first.stdout.encode() == CONTENT, first.stderr
    assert asked
    again = fetch(NAME, tmp_path, "http://127.0.0.1:9")  # nobody is there
    assert again.returncode == 0 and again.stdout.encode() == CONTENT, again.stderr


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
