"""Search by HTTP: Serper- and Bing-like JSON APIs with a key, and any retriever in the form of Search-R1's server.

What comes from outside is untrusted: no redirects, bodies up to a limit, every field checked. A query whose back end fails
leaves a SearchFailure and is counted; where too many fail, or the key or budget is at fault, the run stops with ServiceError.
"""

import asyncio
import json
import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from igpo_core.config import WebSearch, fingerprint
from igpo_core.errors import ConfigError, ServiceError
from igpo_core.retrieval import Found, Passage, SearchFailure
from igpo_core.retrieval.cache import SearchCache

RECENT, LEAST = 200, 20  # searches over which the share of failures is taken, and from how many on
LONGEST_WAIT = 60.0  # seconds; of what a server's Retry-After asks for
CALLS = (
    "IGPO_SEARCH_CALLS"  # paid calls allowed in all, in place of the configuration's number: raising it is no new run
)


class _Transient(Exception):
    """A call that may succeed when it is repeated. after: seconds that the server asked for."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class _Final(Exception):
    """A call that will not succeed for this query."""


@dataclass
class SearchCounts:
    """Since the retriever was made: searches asked for, served by the cache, failed; calls sent (repeated ones too)."""

    asked: int = 0
    cached: int = 0
    failed: int = 0
    calls: int = 0


class WebRetriever:
    """A retriever whose searches run concurrently in a thread of their own, at most config.concurrency at a time."""

    def __init__(self, config: WebSearch, cache: Path) -> None:
        """cache: the file of the pinned results. Raises ConfigError where the key's variable is not set."""
        self.config, self.key = config, read_key(config)
        self.cache = SearchCache(cache)
        self.counts = SearchCounts()
        self._recent: deque[bool] = deque(maxlen=RECENT)
        self._same = fingerprint(config.api, config.url, config.parameters)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: httpx.AsyncClient | None = None
        self._slots: asyncio.Semaphore | None = None

    def search(self, queries: Sequence[str], k: int) -> list[Found]:
        """All queries at once. Raises ServiceError when the run cannot go on (see module)."""
        distinct = list(dict.fromkeys(queries))  # the trajectories of a group often ask the same
        pending = [self.submit(query, k) for query in distinct]
        found = dict(zip(distinct, (future.result() for future in pending), strict=True))
        return [found[query] for query in queries]

    def submit(self, query: str, k: int) -> "Future[Found]":
        """One search, begun at once; a caller with other things to do need not wait for it."""
        return asyncio.run_coroutine_threadsafe(self._find(query, k), self._running())

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:  # not before the first search: a forked process has no threads of its parent's
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="search", daemon=True).start()
        return self._loop

    async def _find(self, query: str, k: int) -> Found:
        self.counts.asked += 1
        key = fingerprint(self._same, k, query)
        found = self.cache.get(key)
        if found is not None:
            self.counts.cached += 1
            return found
        if self.config.mode == "replay":
            return self._failed("not in the cache, and search.mode=replay asks nobody")
        if self._slots is None:
            self._slots = asyncio.Semaphore(self.config.concurrency)
        async with self._slots:
            try:
                passages = await self._asked(query, k)
            except (_Transient, _Final) as error:
                return self._failed(str(error))
        self._recent.append(False)
        return self.cache.pin(key, query, passages)

    def _failed(self, reason: str) -> SearchFailure:
        self.counts.failed += 1
        self._recent.append(True)
        share = sum(self._recent) / len(self._recent)
        if len(self._recent) >= LEAST and share > self.config.max_failure_share:
            raise ServiceError(
                f"{sum(self._recent)} of the last {len(self._recent)} searches at {self.config.url} failed (the last one: "
                f"{reason}), more than search.max_failure_share={self.config.max_failure_share}. See to the back end and start "
                "again: the run goes on from its last checkpoint, and what was found is kept"
            )
        return SearchFailure(reason)

    async def _asked(self, query: str, k: int) -> list[Passage]:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Transient),
            stop=stop_after_attempt(self.config.attempts),
            wait=_wait,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                return await self._call(query, k)
        raise AssertionError("tenacity ended without a result")

    async def _call(self, query: str, k: int) -> list[Passage]:
        if self.config.rate is not None:
            await asyncio.sleep(self.cache.turn(self._same, 1 / self.config.rate))
        most = int(os.environ.get(CALLS) or self.config.max_calls)
        if not self.cache.spend(self._same, most):
            raise ServiceError(
                f"{most} calls to {self.config.url} are spent, all that search.max_calls allows. Allow more with {CALLS}=<calls> "
                "and start again: the run goes on from its last checkpoint, and what was found is kept"
            )
        self.counts.calls += 1
        if self._client is None:
            limits = httpx.Limits(max_connections=self.config.concurrency)
            self._client = httpx.AsyncClient(timeout=self.config.timeout, limits=limits, follow_redirects=False)
        try:
            async with asyncio.timeout(self.config.timeout):  # httpx's own is for each chunk: a trickle would never end
                async with self._client.stream(**_request(self.config, self.key, query, k)) as response:
                    _check_status(response, self.config)
                    body = await _body(response, self.config.max_bytes)
        except TimeoutError as error:
            raise _Transient(f"no answer within {self.config.timeout:g} s") from error
        except httpx.TimeoutException as error:
            raise _Transient(f"no answer within {self.config.timeout:g} s ({type(error).__name__})") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Transient(f"the connection failed ({type(error).__name__})") from error
        return _parse(body, self.config)[:k]


def read_key(config: WebSearch) -> str | None:
    """The API's key from its environment variable; None for a retriever, which needs none.

    Raises ConfigError, before any work, where it is missing. In replay nobody is asked, and no key is needed.
    """
    if config.api == "retriever" or config.mode == "replay":
        return None
    key = os.environ.get(config.key_variable, "").strip()
    if not key:
        raise ConfigError(
            f"search.api={config.api} needs a key: set the environment variable {config.key_variable}, or make a Prefect Secret "
            f"block of that name in lower case with dashes ({config.key_variable.lower().replace('_', '-')})"
        )
    return key


def _wait(state: RetryCallState) -> float:
    """Doubling with jitter, or what the server asked for."""
    outcome = state.outcome.exception() if state.outcome is not None else None
    asked = outcome.after if isinstance(outcome, _Transient) else 0.0
    return max(min(asked, LONGEST_WAIT), wait_exponential_jitter(multiplier=0.5, max=20.0)(state))


def _request(config: WebSearch, key: str | None, query: str, k: int) -> dict[str, Any]:
    if config.api == "serper":
        content: dict[str, Any] = {"q": query, "num": k, **config.parameters}
        return {"method": "POST", "url": config.url, "json": content, "headers": {"X-API-KEY": key}}
    if config.api == "bing":
        asked: dict[str, Any] = {"q": query, "count": k, **config.parameters}
        return {"method": "GET", "url": config.url, "params": asked, "headers": {"Ocp-Apim-Subscription-Key": key}}
    content = {"queries": [query], "topk": k, "return_scores": True, **config.parameters}
    return {"method": "POST", "url": config.url, "json": content}


def _check_status(response: httpx.Response, config: WebSearch) -> None:
    status = response.status_code
    if status in (401, 402, 403):
        raise ServiceError(
            f"{config.url} refuses the key in {config.key_variable} or has no credit left (status {status}): see to it and start "
            "again; the run goes on from its last checkpoint"
        )
    if status == 429 or status >= 500:
        after = response.headers.get("Retry-After", "")
        raise _Transient(f"status {status}", float(after) if after.isdecimal() else 0.0)
    if status != 200:
        raise _Final(f"status {status}")


async def _body(response: httpx.Response, most: int) -> bytes:
    """At most `most` bytes, unpacked ones counted: a small body may unpack to gigabytes."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > most:
            raise _Final(f"a body of more than {most} bytes")
    return bytes(body)


def _parse(body: bytes, config: WebSearch) -> list[Passage]:
    """Passages in the API's order; an entry without text is left out. Raises _Transient for what is not the API's form."""
    try:
        content = json.loads(body)
        if config.api == "retriever":
            return [passage for entry in _list(_list(content["result"])[0]) if (passage := _document(entry))]
        entries = content.get("organic", []) if config.api == "serper" else content.get("webPages", {}).get("value", [])
        address = "link" if config.api == "serper" else "url"
        title = "title" if config.api == "serper" else "name"
        found = (Passage(_text(e.get(address)), _text(e.get(title)), _text(e.get("snippet"))) for e in _list(entries))
        return [passage for passage in found if passage.text]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise _Transient(f"an answer that is not in the form of {config.api} ({type(error).__name__})") from error


def _document(entry: Any) -> Passage | None:
    """Search-R1's server: {"document": {"id", "contents": "\\"Title\\"\\ntext"}, "score"}, or the document itself."""
    document = entry.get("document", entry)
    contents = _text(document["contents"])
    first, _, rest = contents.partition("\n")
    passage = Passage(str(document.get("id", "")), first.strip().strip('"'), rest.strip())
    return passage if passage.text else None


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def _text(value: Any) -> str:
    """Text without what no tokenizer or database takes: NUL, unpaired surrogates. Missing: empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value.replace("\x00", " ").encode("utf-8", "replace").decode("utf-8").strip()
