"""Search by HTTP: Serper- and Bing-like JSON APIs with a key, and any retriever in the form of Search-R1's server.

A query whose back end fails leaves a SearchFailure and is counted; where too many fail the run stops with ServiceError. A
query that the back end refuses is the policy's fault: a SearchFailure too, but no sign that the back end fails.
"""

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from igpo_core.config import WebSearch, fingerprint
from igpo_core.errors import ServiceError
from igpo_core.http import Caller, CallFailed, Refused, clean_text, read_key
from igpo_core.pinned import Pinned
from igpo_core.retrieval import Found, Passage, SearchFailure

RECENT, LEAST = 200, 20  # searches over which the share of failures is taken, and from how many on
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

    def search(self, queries: Sequence[str], k: int) -> list[Found]:
        """All queries at once. Raises ServiceError when the run cannot go on."""
        distinct = list(dict.fromkeys(queries))  # the trajectories of a group often ask the same
        pending = [self.submit(query, k) for query in distinct]
        found = dict(zip(distinct, (future.result() for future in pending), strict=True))
        return [found[query] for query in queries]

    def submit(self, query: str, k: int) -> "Future[Found]":
        """One search, begun at once."""
        return self.caller.begin(self._find(query, k))

    async def _find(self, query: str, k: int) -> Found:
        self.counts.asked += 1
        query = query[:LONGEST_QUERY]
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
    """Passages in the API's order; an entry without text is left out. Raises ValueError and its like on another form."""
    content = json.loads(body)
    if config.api == "retriever":
        return [passage for entry in _list(_list(content["result"])[0]) if (passage := _document(entry))]
    entries = content.get("organic", []) if config.api == "serper" else content.get("webPages", {}).get("value", [])
    address = "link" if config.api == "serper" else "url"
    title = "title" if config.api == "serper" else "name"
    found = [Passage(*(clean_text(e.get(name)) for name in (address, title, "snippet"))) for e in _list(entries)]
    return [passage for passage in found if passage.text]


def _document(entry: Any) -> Passage | None:
    """Search-R1's server: {"document": {"id", "contents": "\\"Title\\"\\ntext"}, "score"}, or the document itself."""
    document = entry.get("document", entry)
    first, _, rest = clean_text(document["contents"]).partition("\n")
    passage = Passage(clean_text(str(document.get("id", ""))), first.strip().strip('"'), rest.strip())
    return passage if passage.text else None


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value
