"""Requests to vLLM servers: repeated where that may help, and cut off when the run is told to end."""

import contextlib
import json
import socket
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception_type, sleep_using_event, stop_after_attempt

from igpo_core.config import VllmEngine
from igpo_core.errors import ConfigError, ServiceError
from igpo_core.http import Transient, growing_wait, raise_if_passing

COLD, HOT = 0.1, 2.0  # temperatures as far apart as vLLM takes them
ROUNDING = 0.1  # more than a server's batches move a log-probability, less than from COLD to HOT
DEV_MODE = "Weights are taken only by a server that was started with VLLM_SERVER_DEV_MODE=1"


class Connection:
    """To the servers of one process, from many threads."""

    def __init__(self, settings: VllmEngine) -> None:
        self._attempts = settings.attempts
        self._client = httpx.Client(
            timeout=settings.timeout,
            limits=httpx.Limits(max_connections=settings.concurrency),
            trust_env=False,
        )
        self._ended = threading.Event()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._sockets_lock = threading.Lock()

    def ask(self, method: str, url: str, content: Any = None) -> Any:
        """The answer's JSON, {} for an empty one. Raises ServiceError when it does not come after all attempts, or is refused."""
        retrying = Retrying(
            retry=retry_if_exception_type(Transient),
            stop=stop_after_attempt(self._attempts),
            wait=growing_wait,
            sleep=sleep_using_event(self._ended),
            reraise=True,
        )
        try:
            response: httpx.Response = retrying(self._once, method, url, content)
        except Transient as error:
            raise ServiceError(
                f"the rollout server does not answer: {url} ({error}). See that `vllm serve` runs there (docs/scale.md); the run "
                "goes on from its last checkpoint"
            ) from error
        if not response.is_success:
            raise ServiceError(f"{url} refuses (status {response.status_code}): {response.text[:300]}. {DEV_MODE}")
        return json.loads(response.text) if response.text.strip() else {}

    def served_model(self, url: str) -> str:
        """The name of the model that the server has."""
        name: str = self.ask("GET", f"{url}/v1/models")["data"][0]["id"]
        return name

    def require_dev_mode(self, url: str) -> None:
        """Raise ServiceError where the server takes no weights. A request that does nothing: the route, where there is one, is
        of another method."""
        if self._once("GET", f"{url}/collective_rpc", None).status_code == 404:
            raise ServiceError(f"{url}/collective_rpc is not there (status 404): {DEV_MODE}")

    def require_processed_logprobs(self, url: str, model: str, prompt: Sequence[int]) -> None:
        """Raise ConfigError where the server's log-probabilities do not change with the temperature.

        vLLM gives by default those before the temperature (raw_logprobs), and importance weights made of them are wrong. It is
        asked for one token at two temperatures, behind the prompt and behind two of its beginnings (a model may be certain at one
        of them). The likeliest token's log-probability falls from COLD to HOT if it is of the distribution that is sampled from;
        else it stays, up to rounding.
        """
        cuts = sorted({max(1, len(prompt) * part // 3) for part in (1, 2, 3)})
        found = [[self._likeliest(url, model, prompt[:cut], at) for at in (COLD, HOT)] for cut in cuts]
        cold, hot = max(found, key=lambda pair: pair[0] - pair[1])
        if cold - hot < ROUNDING:
            raise ConfigError(
                f"{url} gives log-probabilities that do not follow the temperature (the likeliest token has {cold:.4f} at "
                f"{COLD:g} and {hot:.4f} at {HOT:g}), and rollout.temperature is not 1: start the server with --logprobs-mode "
                "processed_logprobs, or set rollout.temperature to 1"
            )

    def _likeliest(self, url: str, model: str, prompt: Sequence[int], temperature: float) -> float:
        """The log-probability of the likeliest next token."""
        asked = {
            "model": model, "prompt": list(prompt), "max_tokens": 1, "temperature": temperature, "seed": 0, "logprobs": 1,
            "add_special_tokens": False, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
        }  # fmt: skip
        answer = self.ask("POST", f"{url}/v1/completions", asked)
        try:
            return max(map(float, answer["choices"][0]["logprobs"]["top_logprobs"][0].values()))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ServiceError(
                f"{url} answers without the log-probabilities of the likeliest tokens ({error!r}): it must be a vLLM that takes "
                "logprobs=1"
            ) from error

    def end(self) -> None:
        """No request is made any more, and those under way come to nothing: without this, threads that wait for them would
        keep the process from ending. The servers drop a turn whose connection is gone."""
        with self._sockets_lock:
            self._ended.set()
            for connection in self._sockets:
                _cut(connection)

    def _once(self, method: str, url: str, content: Any) -> httpx.Response:
        if self._ended.is_set():
            raise ServiceError(f"{url} is not asked any more: this run's rollouts were ended")
        try:
            response = self._client.request(method, url, json=content, extensions={"trace": self._note_socket})
        except httpx.TransportError as error:
            raise Transient(type(error).__name__) from error
        raise_if_passing(response)
        return response

    def _note_socket(self, event: str, info: Mapping[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            connection = info["return_value"].get_extra_info("socket")
            with self._sockets_lock:
                self._sockets.add(connection)
                if self._ended.is_set():  # opened while the others were cut
                    _cut(connection)


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed already
        connection.shutdown(socket.SHUT_RDWR)  # closing alone would not wake the thread that reads
