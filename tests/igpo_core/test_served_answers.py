"""What a rollout server answers is from outside: odd, damaged and huge answers are refused, with the server's address."""

import contextlib
import gzip
import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from igpo_core.config import RolloutConfig, VllmEngine
from igpo_core.environments.base import Observation
from igpo_core.environments.searching import SEARCH_IN_A_WORLD
from igpo_core.errors import ServiceError
from igpo_core.policies import Policy, word_tokenizer
from igpo_core.protocol import WordProtocol
from igpo_core.rollout.served_engine import ServedEngine
from igpo_core.rollout.serving import Connection
from igpo_core.trajectory import Final, Question

MODELS = {"data": [{"id": "served"}]}


class Answers:
    """models, completions: (status, body) of the two routes that are asked. slow: seconds between bytes of a body."""

    def __init__(self) -> None:
        self.models: tuple[int, bytes] = (200, json.dumps(MODELS).encode())
        self.completions: tuple[int, bytes] = (200, b"{}")
        self.headers: dict[str, str] = {}
        self.slow = 0.0
        self.url = ""


@pytest.fixture
def server() -> Iterator[Answers]:
    state = Answers()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = state.models if self.path == "/v1/models" else state.completions
            self.send_response(status)
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if not state.slow:
                self.wfile.write(body)
                return
            with contextlib.suppress(OSError):  # the client gave up
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(state.slow)

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None: ...

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None: ...  # a client that went away is no news

    running = Quiet(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{running.server_port}"
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        running.shutdown()
        running.server_close()


def settings(server: Answers, folder: Path, **given: Any) -> VllmEngine:
    return VllmEngine.model_validate({"urls": [server.url], "weights": folder / "w", "attempts": 1, **given})


def raised(run: Callable[[], object]) -> tuple[type[BaseException] | None, str]:
    """The kind of what it raises, and its message."""
    try:
        run()
    except Exception as error:
        return type(error), str(error)
    return None, ""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>", "no JSON"),
        (b'{"data": [{"id": "served"', "no JSON"),
        (b"[" * 50_000, "no JSON"),
        (b'\xff\xfe{"data"', "no JSON"),
        (b"9" * 5000, "no JSON"),
        (b'{"data": []}', "names no model"),
        (b'{"data": {"id": "served"}}', "names no model"),
        (b'{"data": [{"id": 3}]}', "names no model"),
        (b"[]", "names no model"),
        (b"", "names no model"),
    ],
)
def test_a_list_of_models_in_another_form_is_refused(server: Answers, tmp_path: Path, body: bytes, reason: str) -> None:
    server.models = (200, body)
    kind, said = raised(lambda: Connection(settings(server, tmp_path)).served_model(server.url))
    assert kind is ServiceError and reason in said and server.url in said


@pytest.mark.parametrize("packing", ["gzip", "gzip, gzip", "deflate"])
def test_an_answer_that_unpacks_to_more_than_any_turn_is_refused(server: Answers, tmp_path: Path, packing: str) -> None:
    bomb = gzip.compress(b" " * 200_000_000, 1)
    server.models = (200, gzip.compress(bomb) if packing == "gzip, gzip" else bomb)
    server.headers = {"Content-Encoding": packing}
    tracemalloc.start()
    try:
        kind, _ = raised(lambda: Connection(settings(server, tmp_path)).served_model(server.url))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kind is ServiceError and peak < 150_000_000


def test_an_answer_that_trickles_is_given_up(server: Answers, tmp_path: Path) -> None:
    server.slow = 0.2
    started = time.monotonic()
    kind, said = raised(lambda: Connection(settings(server, tmp_path, timeout=0.5)).served_model(server.url))
    assert kind is ServiceError and "does not answer" in said and time.monotonic() - started < 4


def test_a_servers_cookie_is_not_kept(server: Answers, tmp_path: Path) -> None:
    """Sent back it is no header: httpx would raise UnicodeEncodeError at the second call."""
    server.headers = {"Set-Cookie": "a=\xff"}
    connection = Connection(settings(server, tmp_path))
    assert [connection.served_model(server.url) for _ in range(2)] == ["served", "served"]


def test_a_redirect_to_no_address_is_refused(server: Answers, tmp_path: Path) -> None:
    server.models, server.headers = (302, b""), {"Location": 'there: "http://127.0.0.1:1/'}
    kind, said = raised(lambda: Connection(settings(server, tmp_path)).served_model(server.url))
    assert kind is ServiceError and "a redirect to what is no address: it must be a vLLM" in said


def test_a_refusal_does_not_reach_the_terminal_raw(server: Answers, tmp_path: Path) -> None:
    server.completions = (400, b"\x1b]0;owned\x07 no such model")
    connection = Connection(settings(server, tmp_path))
    kind, said = raised(lambda: connection.ask("POST", f"{server.url}/v1/completions", {}))
    assert kind is ServiceError and "no such model" in said and "\x1b" not in said


class Nothing:
    def step(self, requests: Any) -> list[Observation]:
        return [Observation("no result") for _ in requests]


WORDS = WordProtocol(word_tokenizer(["who", "done", "F1", "no", "result"]), SEARCH_IN_A_WORLD)
TURN, _ = WORDS.turn("done", Final("F1"))
GOOD: dict[str, Any] = {
    "token_ids": TURN, "logprobs": {"token_logprobs": [-0.5] * len(TURN)}, "finish_reason": "stop",
}  # fmt: skip


def played(server: Answers, folder: Path, choice: object) -> tuple[type[BaseException] | None, str]:
    """What a rollout of one question makes of a server whose every turn is this one."""
    import torch

    model: Any = SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(len(WORDS.ids), 2))
    policy = Policy(model, WORDS, 100)
    server.completions = (200, json.dumps({"choices": [choice]}).encode())
    engine = ServedEngine(settings(server, folder))
    question = Question("q", "lookup", "train", "who", ("F1",))
    config = RolloutConfig.model_validate({"max_new_tokens": 12, "max_tokens": 64})
    return raised(lambda: engine(policy, Nothing(), [question], config, members=1, key=(0, "train", 0)))  # type: ignore[arg-type]


def test_a_good_turn_is_taken(server: Answers, tmp_path: Path) -> None:
    assert played(server, tmp_path, GOOD) == (None, "")


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ids": [str(token) for token in TURN]},
        {"token_ids": [float(token) for token in TURN]},
        {"token_ids": [-1, *TURN[1:]]},
        {"token_ids": [10_000, *TURN[1:]]},  # the trained model has no such token
        {"token_ids": [*TURN[:1] * 20, *TURN[1:]], "logprobs": {"token_logprobs": [-0.5] * (len(TURN) + 19)}},
        {"token_ids": [True, *TURN[1:]]},
        {"token_ids": []},
        {"token_ids": None},
        {"token_ids": "".join(map(str, TURN))},
        {"logprobs": {"token_logprobs": [float("nan")] * len(TURN)}},
        {"logprobs": {"token_logprobs": [float("-inf")] * len(TURN)}},
        {"logprobs": {"token_logprobs": [None] * len(TURN)}},
        {"logprobs": {"token_logprobs": ["-0.5"] * len(TURN)}},
        {"logprobs": {"token_logprobs": [10**400] * len(TURN)}},
        {"logprobs": None},
        {"finish_reason": {"length": 1}},
    ],
)  # fmt: skip
def test_a_turn_that_no_model_can_have_sampled_is_refused(
    server: Answers, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """A log-probability that is NaN would make the weights NaN, a token beyond the vocabulary would end the run later."""
    kind, said = played(server, tmp_path, {**GOOD, **changes})
    assert kind is ServiceError and server.url in said


@pytest.mark.parametrize("choice", [None, "x", [], {"text": "F1"}])
def test_a_choice_in_another_form_is_refused(server: Answers, tmp_path: Path, choice: object) -> None:
    kind, _ = played(server, tmp_path, choice)
    assert kind is ServiceError
