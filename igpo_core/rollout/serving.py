"""Requests to vLLM servers: repeated where that may help, and cut off when the run is told to end."""

import contextlib
import json
import socket
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception_type, sleep_using_event, stop_after_attempt

from igpo_core.config import VllmEngine
from igpo_core.errors import ConfigError, ServiceError
from igpo_core.http import Body, CallFailed, Transient, growing_wait, no_cookies, raise_if_passing

COLD, HOT = 0.1, 2.0  # temperatures as far apart as vLLM takes them
ROUNDING = 0.1  # more than a server's batches move a log-probability, less than from COLD to HOT
MAX_BYTES = 2**26  # of an answer: more than the longest turn takes, with the tokens of its prompt
TOLD = 300  # characters of a server's own reason
DEV_MODE = "Weights are taken only by a server that was started with VLLM_SERVER_DEV_MODE=1"


class Connection:
    """To the servers of one process, from many threads."""

    def __init__(self, settings: VllmEngine) -> None:
        self._attempts = settings.attempts
        self._client = httpx.Client(
            timeout=settings.timeout,
            limits=httpx.Limits(max_connections=settings.concurrency),
            headers={"Accept-Encoding": "identity"},
            cookies=no_cookies(),
            trust_env=False,
        )
        self._timeout = settings.timeout
        self._ended = threading.Event()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._sockets_lock = threading.Lock()

    def ask(self, method: str, url: str, content: Any = None) -> Any:
        """The answer's JSON, {} for an empty one. Raises ServiceError when it does not come after all attempts, is refused, is
        larger than MAX_BYTES, or is no JSON."""
        retrying = Retrying(
            retry=retry_if_exception_type(Transient),
            stop=stop_after_attempt(self._attempts),
            wait=growing_wait,
            sleep=sleep_using_event(self._ended),
            reraise=True,
        )
        try:
            status, body = retrying(self._once, method, url, content)
        except Transient as error:
            raise ServiceError(
                f"the rollout server does not answer: {url} ({error}). See that `vllm serve` runs there (docs/scale.md); the run "
                "goes on from its last checkpoint"
            ) from error
        except CallFailed as error:
            raise ServiceError(f"{url} answers with {error}: it must be a vLLM") from error
        if not httpx.codes.is_success(status):
            reason = ascii(body.decode("utf-8", "replace")[:TOLD])
            raise ServiceError(f"{url} refuses (status {status}): {reason}. {DEV_MODE}")
        try:
            return json.loads(body) if body.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ServiceError(
                f"{url} answers with what is no JSON ({type(error).__name__}): it must be a vLLM"
            ) from error

    def served_model(self, url: str) -> str:
        """The name of the model that the server has."""
        match self.ask("GET", f"{url}/v1/models"):
            case {"data": [{"id": str(name)}, *_]}:
                return name
        raise ServiceError(f"{url}/v1/models names no model: it must be a vLLM")

    def require_dev_mode(self, url: str) -> None:
        """Raise ServiceError where the server takes no weights. A request that does nothing: the route, where there is one, is
        of another method."""
        try:
            status, _ = self._once("GET", f"{url}/collective_rpc", None)
        except CallFailed as error:
            raise ServiceError(f"the rollout server does not answer: {url}/collective_rpc ({error})") from error
        if status == 404:
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
        match answer:
            case {"choices": [{"logprobs": {"top_logprobs": [{**found}, *_]}}, *_]}:
                values: list[Any] = list(found.values())
                if values and all(map(is_logprob, values)):
                    return float(max(values))
        raise ServiceError(
            f"{url} answers without the log-probabilities of the likeliest tokens: it must be a vLLM that takes logprobs=1"
        )

    def end(self) -> None:
        """No request is made any more, and those under way come to nothing: without this, threads that wait for them would
        keep the process from ending. The servers drop a turn whose connection is gone."""
        with self._sockets_lock:
            self._ended.set()
            for connection in self._sockets:
                _cut(connection)

    def _once(self, method: str, url: str, content: Any) -> tuple[int, bytes]:
        """Status and body. Raises Transient for what another try may not meet, CallFailed for a body that is not read."""
        if self._ended.is_set():
            raise ServiceError(f"{url} is not asked any more: this run's rollouts were ended")
        until = time.monotonic() + self._timeout  # httpx's own is for each chunk: a trickle would never end
        try:
            with self._client.stream(method, url, json=content, extensions={"trace": self._note_socket}) as response:
                raise_if_passing(response)
                body = Body(response, MAX_BYTES)
                for chunk in response.iter_raw():
                    body.add(chunk)
                    if time.monotonic() > until:
                        raise Transient(f"no whole answer within {self._timeout:g} s")
                return response.status_code, body.whole()
        except httpx.InvalidURL as error:  # httpx reads where an answer redirects to, though no redirect is followed
            raise CallFailed("a redirect to what is no address") from error
        except httpx.TransportError as error:
            raise Transient(type(error).__name__) from error

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


def is_logprob(value: Any) -> bool:
    """Whether it is a number that a log-probability can be, and no NaN, infinity or text, which an answer may hold too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
