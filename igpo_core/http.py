"""Calls of paid or fragile services by HTTP: concurrent, spaced, repeated where that may help, and counted.

What comes from outside is untrusted: no redirects, bodies up to a limit, packed at most once. A call that fails for good
raises CallFailed, which its user turns into data; where the key or the budget is at fault the run stops with ServiceError.
"""

import asyncio
import json
import os
import re
import threading
import zlib
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from igpo_core.errors import ConfigError, ServiceError
from igpo_core.http_settings import HttpSettings
from igpo_core.pinned import Pinned
from igpo_core.text import one_form

LONGEST_WAIT = 60.0  # seconds; of what a server's Retry-After asks for
REFUSALS = (400, 413, 414, 422)  # of what was asked; another try meets them again
TOLD, REASON_BYTES = 200, 20_000  # characters of a service's own reason, and the bytes that it is looked for in
REASON_SECONDS = 5.0  # that it is waited for: what the status says must not be lost with it
REASONS = ("error", "errors", "message", "detail", "msg", "title")  # where services write it, the likeliest first
T = TypeVar("T")


class CallFailed(Exception):
    """A call that failed for good, with the reason."""


class Refused(CallFailed):
    """A call whose content the service does not take: the fault of what was asked, not of the service."""


class Transient(CallFailed):
    """A call that may succeed when it is repeated. after: seconds that the server asked for."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class Caller:
    """Calls one service from a thread of its own, at most settings.concurrency at a time.

    store: the file with the shared meters; meter: their name there; budget: the variable that may allow more calls.
    """

    def __init__(self, settings: HttpSettings, store: Pinned, meter: str, budget: str) -> None:
        self.settings, self.store, self.meter, self.budget = settings, store, meter, budget
        self.calls = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beginning = threading.Lock()
        self._client: httpx.AsyncClient | None = None
        self._slots: asyncio.Semaphore | None = None

    def begin(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Begin some work that calls; whoever has other things to do need not wait for it. Threads may begin at the same time."""
        with self._beginning:
            if self._loop is None:  # not before the first call: a forked process has no threads of its parent's
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="calls", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def call(self, request: dict[str, Any], parse: Callable[[bytes], T]) -> T:
        """What parse makes of the answer's body; a ValueError and its like there is an answer in another form, worth another
        try. request: httpx's arguments. Raises CallFailed and ServiceError (see module)."""
        if self._slots is None:
            self._slots = asyncio.Semaphore(self.settings.concurrency)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Transient),
            stop=stop_after_attempt(self.settings.attempts),
            wait=growing_wait,
            reraise=True,
        )
        async with self._slots:
            async for attempt in retrying:
                with attempt:
                    body = await self._once(request)
                    try:
                        return parse(body)
                    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
                        why = _without_secrets(_why(error), request)
                        raise Transient(f"an answer in another form ({why})") from error
        raise AssertionError("tenacity ended without a result")

    async def _once(self, request: dict[str, Any]) -> bytes:
        settings, url = self.settings, request["url"]
        if settings.rate is not None:
            # the file's locks are waited for in another thread: calls under way go on
            await asyncio.sleep(await asyncio.to_thread(self.store.turn, self.meter, 1 / settings.rate))
        most = int(os.environ.get(self.budget) or settings.max_calls)
        if not await asyncio.to_thread(self.store.spend, self.meter, most):
            raise ServiceError(
                f"{most} calls to {url} are spent, all that max_calls allows. Allow more with {self.budget}=<calls> and start "
                "again: the run goes on from its last checkpoint, and what was answered is kept"
            )
        self.calls += 1
        if self._client is None:
            limits = httpx.Limits(max_connections=settings.concurrency)
            self._client = httpx.AsyncClient(
                timeout=settings.timeout,
                limits=limits,
                follow_redirects=False,
                headers={"Accept-Encoding": "identity"},
                cookies=no_cookies(),
                # a proxy of the environment would get what is meant for this machine, the key in clear with it
                trust_env=not settings.within_machine,
            )
        try:
            async with asyncio.timeout(settings.timeout):  # httpx's own is for each chunk: a trickle would never end
                async with self._client.stream(**request) as response:
                    if response.status_code != 200:
                        told = await _told(response, request)
                        _check_status(response, settings, told)
                        kind = Refused if response.status_code in REFUSALS else CallFailed
                        raise kind(f"status {response.status_code}{told}")
                    return await _body(response, settings.max_bytes)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise Transient(f"no answer within {settings.timeout:g} s") from error
        except httpx.InvalidURL as error:  # httpx reads where an answer redirects to, though no redirect is followed
            raise CallFailed("redirects to what is no address") from error
        except httpx.TransportError as error:
            raise Transient(f"the connection failed ({type(error).__name__})") from error


def read_key(settings: HttpSettings, what: str) -> str:
    """A service's key from its environment variable. Raises ConfigError, before any work, where it is missing."""
    key = os.environ.get(settings.key_variable, "").strip()
    if not key:
        raise ConfigError(
            f"{what} needs a key: set the environment variable {settings.key_variable}, or make a Prefect Secret block of that "
            f"name in lower case with dashes ({settings.key_variable.lower().replace('_', '-')})"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the key in {settings.key_variable} has characters that no HTTP header takes (a typographic quote, a line break?): "
            "copy it again"
        )
    return key


def clean_text(value: Any) -> str:
    """Text in one_form without what no tokenizer or database takes: NUL, unpaired surrogates.

    None: empty; no text raises TypeError.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError("not a text")
    return one_form(value.replace("\x00", " ").encode("utf-8", "replace").decode("utf-8"))


def no_cookies() -> CookieJar:
    """Return a jar that takes no cookie: a call does not depend on what an earlier answer set, which may be no header at all."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


def growing_wait(state: RetryCallState) -> float:
    """Doubling with jitter, or what the server asked for."""
    outcome = state.outcome.exception() if state.outcome is not None else None
    asked = outcome.after if isinstance(outcome, Transient) else 0.0
    return max(min(asked, LONGEST_WAIT), wait_exponential_jitter(multiplier=0.5, max=20.0)(state))


def raise_if_passing(response: httpx.Response, told: str = "") -> None:
    """Raise Transient for a status that another try may not meet. told: the service's own reason, as ": .."."""
    if response.status_code == 429 or response.status_code >= 500:
        after = response.headers.get("Retry-After", "")
        raise Transient(f"status {response.status_code}{told}", float(after) if after.isdecimal() else 0.0)


def _check_status(response: httpx.Response, settings: HttpSettings, told: str) -> None:
    status = response.status_code
    if status in (401, 402, 403):
        raise ServiceError(
            f"{response.url.copy_with(query=None)} refuses the key in {settings.key_variable} or has no credit left (status "
            f"{status}{told}): see to it and start again; the run goes on from its last checkpoint"
        )
    raise_if_passing(response, told)


async def _told(response: httpx.Response, request: Mapping[str, Any]) -> str:
    """Return the service's own reason, as ": .."; empty where it gives none that can be read. Some services repeat the key that
    they were sent: nothing of the request's headers stays in it."""
    if response.has_redirect_location:
        place = _without_secrets(response.headers["Location"].partition("?")[0], request)
        return f": redirects to {place[:TOLD]!a}, and no redirect is followed: set the url that answers itself"
    try:
        async with asyncio.timeout(REASON_SECONDS):
            body = await _body(response, REASON_BYTES)
    except (CallFailed, httpx.TransportError, TimeoutError):  # the status says already what became of the call
        return ""
    try:
        reason = reason_in(json.loads(body))
    except (ValueError, RecursionError):  # plain text, or a page of a proxy
        text = body.decode("utf-8", "replace").strip()
        title = re.search(r"<title[^>]*>([^<]+)", text, re.IGNORECASE)
        reason = title[1].strip() if title else "" if text.startswith("<") else text
    return f": {_without_secrets(reason, request)[:TOLD]!a}" if reason else ""


def reason_in(content: Any, depth: int = 4) -> str:
    """The first text that an answer gives as its error, however it is wrapped: {"error": {"message": ..}}, {"detail": [{"msg":
    ..}]}, [{"error": ..}]; "" where there is none."""
    if isinstance(content, str) or not depth:
        return content.strip() if isinstance(content, str) else ""
    inner = content if isinstance(content, list) else []
    if isinstance(content, dict):
        inner = [content[name] for name in REASONS if content.get(name)]
    return next(filter(None, (reason_in(item, depth - 1) for item in inner[:8])), "")


def _without_secrets(text: str, request: Mapping[str, Any]) -> str:
    """A text from outside without the words of the request's headers."""
    for secret in {word for value in request.get("headers", {}).values() for word in str(value).split()}:
        text = text.replace(secret, "..")
    return text


def _why(error: Exception) -> str:
    """What was wrong with an answer: a ValueError says it, of others the kind does. What is no JSON is shown."""
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON, {f'it begins with {error.doc[:60]!a}' if error.doc.strip() else 'it is empty'}: {error}"[
            :TOLD
        ]
    return str(error)[:TOLD] if isinstance(error, ValueError) else type(error).__name__


class Body:
    """An answer's body as it comes: at most `most` bytes, never unpacked beyond them. A small body may unpack to gigabytes, and
    one packed twice to more; httpx unpacks what it is sent before it can be counted, so it is not left to it.
    """

    def __init__(self, response: httpx.Response, most: int) -> None:
        """Raises CallFailed for a packing other than one gzip."""
        encoding = response.headers.get("Content-Encoding", "").strip().lower() or "identity"
        if encoding not in ("identity", "gzip", "x-gzip"):
            raise CallFailed(
                f"a body in Content-Encoding {encoding[:60]!a}: identity was asked for, and one gzip is read"
            )
        self._unpacking = zlib.decompressobj(zlib.MAX_WBITS | 16) if encoding.endswith("gzip") else None
        self._most = most
        self._held = bytearray()

    def add(self, chunk: bytes) -> None:
        """One of httpx's raw chunks. Raises CallFailed beyond the limit, Transient for a packing that is none."""
        unpacking, room = self._unpacking, self._most + 1 - len(self._held)
        try:
            self._held += chunk if unpacking is None else unpacking.decompress(chunk, room)
        except zlib.error as error:
            raise Transient(f"a body that is no gzip ({error})") from error
        if len(self._held) > self._most:
            raise CallFailed(f"a body of more than {self._most} bytes")

    def whole(self) -> bytes:
        """All of it, after the last chunk. Raises Transient where the packing has no end."""
        if self._unpacking is not None and not self._unpacking.eof:
            raise Transient("a gzip body without its end")
        return bytes(self._held)


async def _body(response: httpx.Response, most: int) -> bytes:
    body = Body(response, most)
    async for chunk in response.aiter_raw():
        body.add(chunk)
    return body.whole()
