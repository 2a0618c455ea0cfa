"""Search by HTTP: Serper- and Bing-like JSON APIs with a key, and any retriever in the form of Search-R1's server.

A query whose back end fails leaves a SearchFailure and is counted; where too many fail the run stops with ServiceError. A
query that the back end refuses is the policy's fault: a SearchFailure too, but no sign that the back end fails.
"""

import asyncio
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from igpo_core.config import WebSearch, fingerprint
from igpo_core.errors import ServiceError
from igpo_core.http import Caller, CallFailed, Refused, clean_text, read_key, reason_in
from igpo_core.pinned import Pinned
from igpo_core.retrieval import Found, Passage, SearchFailure
from igpo_core.text import one_form

RECENT, LEAST = 200, 20  # searches over which the share of failures is taken, and from how many on
REASON = 200  # characters of what a server says in place of results
LONGEST_QUERY = 2000  # characters that are sent: Google takes 2,048, and a turn can hold more
CALLS = (
    "IGPO_SEARCH_CALLS"  # paid calls allowed in all, in place of the configuration's number: raising it is no new run
)


@dataclass
class SearchCounts:
    """Since the retriever was made: searches asked for, served by the cache, failed."""

    asked: int = 0
    cached: int = 0
    failed: int = 0


class WebRetriever:
    """A retriever whose searches run concurrently (igpo_core/http.py) and stay in a file."""

    def __init__(self, config: WebSearch, cache: Path) -> None:
        """cache: the file of the pinned results. Raises ConfigError where the key's variable is not set."""
        self.config, self._key = config, search_key(config)
        self._same = fingerprint(config.api, config.url, config.parameters)
        self.cache = Pinned(cache)
        self.caller = Caller(config, self.cache, self._same, CALLS)
        self.counts = SearchCounts()
        self._answered = False
        self._recent: deque[bool] = deque(maxlen=RECENT)
        self._pending: dict[tuple[str, int], Future[Found]] = {}
        self._submitting = threading.Lock()

    def search(self, queries: Sequence[str], k: int) -> list[Found]:
        """All queries at once. Raises ServiceError when the run cannot go on."""
        distinct = list(dict.fromkeys(queries))  # the trajectories of a group often ask the same
        pending = [self.submit(query, k) for query in distinct]
        found = dict(zip(distinct, (future.result() for future in pending), strict=True))
        return [found[query] for query in queries]

    def submit(self, query: str, k: int) -> "Future[Found]":
        """One search, begun at once. What another thread waits for is not asked a second time."""
        query = one_form(query)[:LONGEST_QUERY]
        with self._submitting:
            pending = self._pending.get((query, k))
            if pending is None or pending.done():  # done: the file has it, or it failed and may be asked again
                pending = self._pending[query, k] = self.caller.begin(self._find(query, k))
                self._pending = {key: kept for key, kept in self._pending.items() if not kept.done() or kept is pending}
            return pending

    async def _find(self, query: str, k: int) -> Found:
        """query: in the form that is sent."""
        self.counts.asked += 1
        key = fingerprint(self._same, k, query)
        known = await asyncio.to_thread(self.cache.get, key)
        if known is not None:
            self.counts.cached += 1
            return _passages(known)
        if self.config.mode == "replay":
            return self._failed("not in the cache, and search.mode=replay asks nobody")
        try:
            found = await self.caller.call(
                _request(self.config, self._key, query, k), lambda body: _parse(body, self.config)
            )
        except Refused as error:
            if not self._answered:  # it may refuse whatever is asked: the settings' fault, which must stop the run
                return self._failed(str(error))
            self.counts.failed += 1
            return SearchFailure(str(error))
        except CallFailed as error:
            return self._failed(str(error))
        self._answered = True
        self._recent.append(False)
        rows = [astuple(passage) for passage in found[:k]]
        return _passages(await asyncio.to_thread(self.cache.pin, key, query, rows))

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


def search_key(config: WebSearch) -> str | None:
    """The API's key; None where none is needed: a retriever has none, and replay asks nobody. Raises ConfigError."""
    if config.api == "retriever" or config.mode == "replay":
        return None
    return read_key(config, f"search.api={config.api}")


def _request(config: WebSearch, key: str | None, query: str, k: int) -> dict[str, Any]:
    if config.api == "serper":
        content: dict[str, Any] = {"q": query, "num": k, **config.parameters}
        return {"method": "POST", "url": config.url, "json": content, "headers": {"X-API-KEY": key}}
    if config.api == "bing":
        asked: dict[str, Any] = {"q": query, "count": k, **config.parameters}
        return {"method": "GET", "url": config.url, "params": asked, "headers": {"Ocp-Apim-Subscription-Key": key}}
    content = {"queries": [query], "topk": k, "return_scores": True, **config.parameters}
    return {"method": "POST", "url": config.url, "json": content}


def _passages(rows: Sequence[Sequence[str]]) -> list[Passage]:
    return [Passage(*row) for row in rows]


def _parse(body: bytes, config: WebSearch) -> list[Passage]:
    """Passages in the API's order. An entry without text is left out, and so is one in another form, unless all are: one odd
    entry spoils itself alone. Raises ValueError, with the field, on an answer in another form."""
    content = _object(json.loads(body), "the answer")
    where = {"serper": "organic", "bing": "webPages", "retriever": "result"}[config.api]
    reason = ""
    if content.get(where) is None:  # gateways answer 200 with an error, which is not "nothing found"
        reason = reason_in(content) or next(
            (str(content[name]) for name in ("error", "errors") if content.get(name)), ""
        )
    if reason:
        raise ValueError(f"no {where}, but {reason[:REASON]!a}")
    read: Callable[[Any, str], Passage]
    if config.api == "retriever":
        (entries, name), read = (_only(content), "result[0]"), _document
    elif config.api == "serper":
        (entries, name), read = (content.get("organic"), "organic"), _snippet("link", "title")
    else:
        pages = content.get("webPages")
        pages = {} if pages is None else _object(pages, "webPages")
        (entries, name), read = (pages.get("value"), "webPages.value"), _snippet("url", "name")
    found: list[Passage] = []
    odd: list[ValueError] = []
    for place, entry in enumerate(_list([] if entries is None else entries, name)):
        try:
            passage = read(entry, f"{name}[{place}]")
        except ValueError as error:
            odd.append(error)
            continue
        found += [passage] if passage.text else []
    if odd and not found:
        raise odd[0]
    return found


def _only(content: Mapping[str, Any]) -> Any:
    """The entries for the one query that was sent."""
    results = _list(content.get("result"), "result")
    if len(results) != 1:
        raise ValueError(f"result has {len(results)} lists for one query")
    return results[0]


def _snippet(address: str, title: str) -> Callable[[Any, str], Passage]:
    """What reads an entry of a search engine's answer. address, title: what its fields are called."""

    def read(entry: Any, name: str) -> Passage:
        fields = _object(entry, name)
        return Passage(*(_text(fields.get(field), f"{name}.{field}") for field in (address, title, "snippet")))

    return read


def _document(entry: Any, name: str) -> Passage:
    """Search-R1's server: {"document": {"id", "contents": "\\"Title\\"\\ntext"}, "score"}, or the document itself; FlashRAG's
    corpora have {"title", "text"} in place of contents, or a title beside them. Contents of one line are a text without a title,
    unless the line is a title in quotation marks."""
    fields = _object(entry, name)
    if "document" in fields:
        name, fields = f"{name}.document", _object(fields["document"], f"{name}.document")
    mark = clean_text(str(fields["id"])) if fields.get("id") is not None else ""
    contents = fields.get("contents", fields.get("content"))
    if contents is not None:
        whole, title = _text(contents, f"{name}.contents"), _text(fields.get("title"), f"{name}.title")
        first, _, rest = (part.strip() for part in whole.partition("\n"))
        named = first.strip('"')
        if title and title != named:
            return Passage(mark, title, whole)
        alone = not rest and not title and not re.fullmatch('"[^"]*"', first)
        return Passage(mark, "", first) if alone else Passage(mark, named, rest)
    if fields.get("text") is None:
        named = ", ".join(ascii(field)[1:-1] for field in fields) or "nothing"
        raise ValueError(f"{name} has neither contents nor text, but {named}"[:200])
    return Passage(mark, _text(fields.get("title"), f"{name}.title"), _text(fields["text"], f"{name}.text"))


def _text(value: Any, name: str) -> str:
    """Text as it may stand in an observation; empty where the field is missing or null."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text")
    return clean_text(value)


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    return value
