"""A real MLflow server over SQLite, once for all tests here."""

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from deployments import processes
from deployments.place import Place
from deployments.servers import mlflow_server as described
from deployments.servers import start, wait_until_it_answers


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address, which MLFLOW_TRACKING_URI names meanwhile. It is started as `make up` starts it."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        place = Place(tmp_path_factory.mktemp("mlflow"), one.getsockname()[1], other.getsockname()[1])
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("MLFLOW_", "IGPO_MLFLOW_"))]:
            patch.delenv(name)
        server = described(place)
        start(place, server)
        try:
            wait_until_it_answers(place, server)
            for name in ("MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
                patch.setenv(name, place.environment()[name])
            yield place.mlflow_url
        finally:
            if record := place.state.read().get(server.name):  # none where it did not start
                processes.end(record)


@pytest.fixture
def signals() -> Any:
    """Puts back what a test, or what it calls, does with the signals to end. SIGINT raises: a suite in the background of a shell
    is started with it ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
