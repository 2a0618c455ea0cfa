"""Web search against a real local server that times out, throttles, breaks off, and sends malformed, huge and hostile
bodies."""

import asyncio
import json
import multiprocessing
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from igpo_core.config import JudgeSettings, WebSearch
from igpo_core.errors import ConfigError, ServiceError
from igpo_core.http import Caller
from igpo_core.pinned import Pinned
from igpo_core.retrieval import Passage, SearchFailure
from igpo_core.retrieval.web import LONGEST_QUERY, WebRetriever, _parse
from tests.igpo_core.hostile import Hostile, hostile_server
from tests.waiting import HANGS


@pytest.fixture
def server() -> Iterator[Hostile]:
    with hostile_server() as running:
        yield running


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_API_KEY", "hush")
    monkeypatch.delenv("IGPO_SEARCH_CALLS", raising=False)


def settings(server: Hostile, api: str = "serper", **changes: Any) -> WebSearch:
    # longer than a busy machine holds an answer up; tests of slow ones give their own
    given = {"timeout": 30.0, "attempts": 2, "max_failure_share": 1.0, "max_bytes": 100_000, **changes}
    return WebSearch.model_validate({"api": api, "url": f"{server.address}/{api}", **given})


def retriever(server: Hostile, folder: Path, api: str = "serper", **changes: Any) -> WebRetriever:
    return WebRetriever(settings(server, api, **changes), folder / "search.sqlite")


def test_a_servers_cookie_is_not_kept(server: Hostile, tmp_path: Path) -> None:
    """Sent back it is no header: httpx would raise UnicodeEncodeError at the next call."""
    web = retriever(server, tmp_path)
    assert [
        len(found) for query in ("cookie", "cats") if not isinstance(found := web.search([query], 2)[0], SearchFailure)
    ] == [2, 2]


@pytest.mark.parametrize("api", ["serper", "bing", "retriever"])
def test_each_api_gives_its_passages_in_order(server: Hostile, tmp_path: Path, api: str) -> None:
    found = retriever(server, tmp_path, api).search(["cats", "nothing", "cats"], 2)
    cats = [Passage(f"http://page/{n}", f"Page {n} of cats", f"text {n} about cats") for n in (1, 2)]
    assert found == [cats, [], cats] and server.asked == {"cats": 1, "nothing": 1}
    assert server.keys == (set() if api == "retriever" else {"hush"})


@pytest.mark.parametrize("api", ["serper", "bing", "retriever"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_what_goes_to_this_machine_goes_through_no_proxy(
    server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api: str, host: str
) -> None:
    """Its key is in clear: an http address is allowed on this machine alone."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with hostile_server() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.address)
        (found,) = retriever(server, tmp_path, api, url=f"{server.address}/{api}".replace("127.0.0.1", host)).search(
            ["cats"], 2
        )
        assert (proxy.keys, proxy.asked) == (set(), {})
    assert not isinstance(found, SearchFailure) and [one.title for one in found] == ["Page 1 of cats", "Page 2 of cats"]


@pytest.mark.parametrize("api", ["serper", "bing", "retriever"])
def test_nothing_found_and_one_odd_entry(server: Hostile, tmp_path: Path, api: str) -> None:
    found = retriever(server, tmp_path, api).search(["nulls", "one odd entry"], 2)
    assert found == [[], [Passage("l", "T", "x")]] and server.asked == {"nulls": 1, "one odd entry": 1}


def test_documents_without_a_text_are_told_by_their_field(server: Hostile, tmp_path: Path) -> None:
    (failure,) = retriever(server, tmp_path, "retriever").search(["no text"], 2)
    assert isinstance(failure, SearchFailure)
    assert "result[0][0].document has neither contents nor text, but id, body" in failure.reason


DOCUMENT = {"id": "7", "contents": '"Brenn"\nA market town.'}
FOUND = [("Brenn", "A market town.")]


@pytest.mark.parametrize(
    ("api", "content", "passages"),
    [
        ("serper", {"searchParameters": {"q": "x"}, "credits": 1}, []),
        ("serper", {"answerBox": {"title": "Brenn", "snippet": "A town."}, "peopleAlsoAsk": []}, []),
        ("serper", {"organic": None}, []),
        ("serper", {"organic": [{"title": "a", "link": "l"}, {"title": "Brenn", "snippet": "A market town."}]}, FOUND),
        ("bing", {"_type": "SearchResponse"}, []),
        ("bing", {"webPages": {"value": None}}, []),
        ("bing", {"webPages": {"value": [None, {"name": "Brenn", "snippet": "A market town."}]}}, FOUND),
        ("retriever", {"result": [[{"document": DOCUMENT, "score": 0.7}]]}, FOUND),
        ("retriever", {"result": [[DOCUMENT]]}, FOUND),
        ("retriever", {"result": [[]]}, []),
        ("retriever", {"result": [[{"document": {"id": 7, "title": "Brenn", "text": "A market town."}}]]}, FOUND),
        ("retriever", {"result": [[{"document": {"id": 7, "content": DOCUMENT["contents"]}}]]}, FOUND),
        ("retriever", {"result": [[{"document": None, "score": 0.1}, {"document": DOCUMENT, "score": 0.7}]]}, FOUND),
        # a title beside contents, with and without it in their first line
        ("retriever", {"result": [[{"document": {"title": "Brenn", "contents": "A market town."}}]]}, FOUND),
        ("retriever", {"result": [[{"document": {"title": "Brenn", "contents": DOCUMENT["contents"]}}]]}, FOUND),
        ("retriever", {"result": [[{"title": "Brenn", "content": "A town.\nSmall."}]]}, [("Brenn", "A town.\nSmall.")]),
        # no title at all; a title alone
        ("retriever", {"result": [[{"contents": "A market town."}]]}, [("", "A market town.")]),
        ("retriever", {"result": [[{"contents": '"Brenn"\n'}]]}, []),
        # a text of one line that begins, ends, or both, with words of somebody
        ("retriever", {"result": [[{"contents": '"Brenn" is a town.'}]]}, [("", '"Brenn" is a town.')]),
        ("retriever", {"result": [[{"contents": 'It is "old"'}]]}, [("", 'It is "old"')]),
        ("retriever", {"result": [[{"contents": '"Old" and "new"'}]]}, [("", '"Old" and "new"')]),
    ],
)
def test_answers_in_other_forms_are_read_with_one_call(
    server: Hostile, tmp_path: Path, api: str, content: Any, passages: list[tuple[str, str]]
) -> None:
    server.told["x"] = content
    (found,) = retriever(server, tmp_path, api).search(["x"], 3)
    assert not isinstance(found, SearchFailure) and [(one.title, one.text) for one in found] == passages
    assert server.asked["x"] == 1


@pytest.mark.parametrize(
    ("api", "content", "reason"),
    [
        ("serper", {"message": "Not enough credits", "statusCode": 400}, "no organic, but 'Not enough credits'"),
        ("bing", {"error": {"code": "401", "message": "the key hush is old"}}, "no webPages, but 'the key .. is old'"),
        ("retriever", {"detail": [{"loc": ["body"], "msg": "no index"}]}, "no result, but 'no index'"),
        ("bing", {"error": {"code": 429}}, "no webPages, but \"{'code': 429}\""),
        ("retriever", {"result": None, "errors": ["index is loading"]}, "no result, but 'index is loading'"),
    ],
)
def test_an_error_with_status_200_is_no_empty_result(
    server: Hostile, tmp_path: Path, api: str, content: Any, reason: str
) -> None:
    server.told["x"] = content
    web = retriever(server, tmp_path, api)
    (found,) = web.search(["x"], 3)
    assert isinstance(found, SearchFailure) and reason in found.reason and "hush" not in found.reason
    server.told["x"] = server.answer(api, "x")
    (found,) = web.search(["x"], 3)  # it was not pinned
    assert not isinstance(found, SearchFailure) and len(found) == 3


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("garbage", "no JSON, it begins with '<html>not json'"),
        ("redirect", "redirects to 'http://127.0.0.1:1/elsewhere', and no redirect is followed"),
        ("redirect to nowhere", "status 300"),
        ("redirect to no address", "redirects to what is no address"),
        ("server error", "status 503: 'oops'"),
        ("list of faults", "status 422: 'topk is too large'"),
        ("page of a proxy", "status 404: 'Not here'"),
        ("no reason", "status 400"),
    ],
)
def test_the_servers_own_reason_is_told(server: Hostile, tmp_path: Path, query: str, reason: str) -> None:
    (found,) = retriever(server, tmp_path, "retriever").search([query], 3)
    assert isinstance(found, SearchFailure) and reason in found.reason
    assert query != "no reason" or found.reason == reason


@pytest.mark.parametrize("name", ["\x1b[2J", "\ud800", "a\nb"])
def test_names_of_fields_do_not_reach_a_terminal_raw(tmp_path: Path, name: str) -> None:
    body = json.dumps({"result": [[{"document": {name: 1}}]]}).encode()
    config = WebSearch.model_validate({"api": "retriever", "url": "http://127.0.0.1:1/"})
    try:
        _parse(body, config)
    except Exception as error:
        assert str(error).isprintable()


@pytest.mark.parametrize(
    ("query", "reason", "calls"),
    [
        ("slow", "no answer within 0.5 s", 2),
        ("trickle", "no answer within 0.5 s", 2),
        ("reset", "connection failed", 2),
        ("half", "connection failed", 2),
        ("server error", "status 503", 2),
        ("garbage", "an answer in another form", 2),
        ("deep", "an answer in another form", 2),
        ("wrong types", "an answer in another form", 2),
        ("huge", "more than 100000 bytes", 1),
        ("bomb", "more than 100000 bytes", 1),
        ("bomb in a bomb", "Content-Encoding 'gzip, gzip'", 1),
        ("bomb of two headers", "Content-Encoding 'gzip, gzip'", 1),
        ("another packing", "Content-Encoding 'deflate'", 1),
        ("half a packing", "a gzip body without its end", 2),
        ("no packing", "a body that is no gzip", 2),
        ("redirect", "status 302", 1),
        ("bad request", "status 400", 1),
    ],
)
def test_a_failing_back_end_is_data(server: Hostile, tmp_path: Path, query: str, reason: str, calls: int) -> None:
    web = retriever(server, tmp_path, **({"timeout": 0.5} if "0.5 s" in reason else {}))
    failure, good = web.search([query, "cats"], 2)
    assert isinstance(failure, SearchFailure) and reason in failure.reason
    assert not isinstance(good, SearchFailure) and len(good) == 2  # beside it, others go on
    assert server.asked[query] == calls
    assert (web.counts.asked, web.counts.failed, web.caller.calls) == (2, 1, calls + 1)
    web.search([query], 2)
    assert server.asked[query] == 2 * calls  # a failure is not pinned


@pytest.mark.parametrize("query", ["bomb", "bomb in a bomb", "bomb of two headers"])
def test_a_bomb_is_not_unpacked(server: Hostile, tmp_path: Path, query: str) -> None:
    """50 MB that come as 50 kB or less: memory holds no more than max_bytes and what the network gave at once."""
    web = retriever(server, tmp_path)
    web.search(["cats"], 2)
    tracemalloc.start()
    try:
        (failure,) = web.search([query], 2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(failure, SearchFailure) and peak < 5_000_000


def test_an_answer_that_is_packed_once_is_read(server: Hostile, tmp_path: Path) -> None:
    (found,) = retriever(server, tmp_path).search(["packed"], 2)
    assert not isinstance(found, SearchFailure) and len(found) == 2


def test_what_passes_is_tried_again(server: Hostile, tmp_path: Path) -> None:
    web = retriever(server, tmp_path)
    started = time.monotonic()
    assert [len(found) for found in web.search(["reset once", "throttled once"], 3)] == [3, 3]  # type: ignore[arg-type]
    assert time.monotonic() - started >= 1  # the server asked for a second
    assert server.asked == {"reset once": 2, "throttled once": 2} and web.counts.failed == 0


def test_a_truth_value_is_no_parameter() -> None:
    """0 would be sent for no."""
    with pytest.raises(ValueError, match=r"parameters is .*'autocorrect': False.*, a truth value"):
        WebSearch.model_validate({"api": "serper", "url": "https://a.example/", "parameters": {"autocorrect": False}})


@pytest.mark.parametrize("query", ["refused", "refused, and a trickle"])
def test_a_refused_key_stops_the_run_without_naming_it(
    server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    monkeypatch.setattr("igpo_core.http.REASON_SECONDS", 0.3)
    with pytest.raises(ServiceError, match="refuses the key in SEARCH_API_KEY") as caught:
        retriever(server, tmp_path, timeout=8.0).search([query], 2)
    assert "hush" not in str(caught.value)


def test_a_missing_key_is_an_error_before_any_search(server: Hostile, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SEARCH_API_KEY", " ")
    with pytest.raises(ConfigError, match=r"SEARCH_API_KEY.*search-api-key"):
        retriever(server, tmp_path)
    retriever(server, tmp_path, "retriever")
    retriever(server, tmp_path, mode="replay")


def test_too_many_failures_stop_the_run(server: Hostile, tmp_path: Path) -> None:
    web = retriever(server, tmp_path, max_failure_share=0.5, attempts=1, concurrency=1)
    queries = [f"good {n}" for n in range(20)]
    web.search(queries, 1)
    for _ in range(20):
        web.search(["server error"], 1)  # half of the last forty
    with pytest.raises(ServiceError, match=r"21 of the last 41 searches .*503.*max_failure_share=0.5"):
        web.search(["server error"], 1)


def test_queries_that_are_refused_are_the_policys_fault(server: Hostile, tmp_path: Path) -> None:
    web = retriever(server, tmp_path, max_failure_share=0.1, attempts=1)
    web.search(["cats"], 1)
    for _ in range(30):
        (failure,) = web.search(["bad request"], 1)
        assert isinstance(failure, SearchFailure) and "status 400" in failure.reason
    assert web.counts.failed == 30
    refusing = retriever(server, tmp_path / "b", max_failure_share=0.1, attempts=1)
    with pytest.raises(ServiceError, match=r"20 of the last 20 searches .*status 400"):
        for _ in range(30):  # whatever is asked is refused: the settings are at fault
            refusing.search(["bad request"], 1)


def test_a_long_query_is_cut(server: Hostile, tmp_path: Path) -> None:
    found = retriever(server, tmp_path).search(["x" * 9000, "x" * 8000], 1)
    assert server.asked == {"x" * LONGEST_QUERY: 1} and found[0] == found[1]
    retriever(server, tmp_path).search(["x" * 7000], 1)
    assert sum(server.asked.values()) == 1  # pinned as it was sent


def test_a_lock_that_is_waited_for_holds_up_that_search_alone(
    server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = retriever(server, tmp_path)
    monkeypatch.setattr(web.cache, "spend", lambda name, most: time.sleep(1.0) or True)
    pending, started = web.submit("cats", 1), time.monotonic()
    time.sleep(0.2)  # it waits now
    web.caller.begin(asyncio.sleep(0)).result(5)
    assert time.monotonic() - started < 0.9 and len(pending.result(5)) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["abc\u201c", "abc def\nX: y"])
def test_a_key_that_no_header_takes_is_an_error_without_it(
    server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    monkeypatch.setenv("SEARCH_API_KEY", bad)
    with pytest.raises(ConfigError, match="key in SEARCH_API_KEY has characters that no HTTP header takes") as caught:
        retriever(server, tmp_path)
    assert "abc" not in str(caught.value)


def test_an_address_with_a_password_is_refused() -> None:
    with pytest.raises(ValueError, match="would be logged with the settings"):
        WebSearch(api="serper", url="https://user:secret@example.org/search")
    assert WebSearch(api="serper", url="https://example.org/search/@home").url.endswith("@home")


def refusal(**settings: Any) -> str:
    """Why these settings of a search are refused; "" where they are taken."""
    try:
        WebSearch.model_validate({"api": "serper", "url": "https://example.org/search", **settings})
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("url", ["https://h/?token=hush", "https://h/s?key=hush", "https://h?", "https://h/#hush"])
@pytest.mark.parametrize("api", ["serper", "bing", "retriever"])
def test_a_query_in_an_address_is_refused(url: str, api: str) -> None:
    """It would be logged with the settings."""
    assert "a query in an address" in refusal(url=url, api=api)


@pytest.mark.parametrize("name", ["api_key", "apiKey", "key", "subscription-key", "token", "client_secret", "password"])
def test_a_key_among_the_parameters_is_refused(name: str) -> None:
    assert f"parameters.{name}" in refusal(parameters={name: "hush"})
    assert refusal(parameters={"gl": "us", "hl": "en", "keywords": "x", "mkt": "en-US", "page": 2}) == ""


@pytest.mark.parametrize(
    "url", ["http://example.org/search", "http://192.0.2.7:8000/", "http://localhost.example.org/"]
)
def test_a_key_goes_by_https_or_within_the_machine(url: str) -> None:
    assert "in clear through the network" in refusal(url=url)
    assert refusal(url=url.replace("http:", "https:")) == "" and refusal(url=url, api="retriever") == ""
    for own in ("http://127.0.0.1:8000/", "http://127.1.2.3/", "http://localhost:9/s", "http://[::1]:8000/"):
        assert refusal(url=own) == ""


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "PATH", "HF_TOKEN", "KEY", "_API_KEY", "SEARCH_API_KEY_X"])
def test_no_other_variable_than_a_services_key_is_sent(name: str) -> None:
    """A preset of somebody else names both the variable and where it goes."""
    assert "_API_KEY" in refusal(key_variable=name) and refusal(key_variable="MY_OTHER_API_KEY") == ""
    judge = {"url": "https://example.org", "model": "m", "key_variable": name}
    taken = True
    try:
        JudgeSettings.model_validate(judge)
    except ValueError:
        taken = False
    assert not taken


@pytest.mark.parametrize("url", ["https://", "http:///path", "https://[::1/search"])
def test_an_address_without_a_host_is_refused(url: str) -> None:
    assert "https://<host>/<path>" in refusal(url=url)


def test_results_are_pinned_and_replayed_without_a_server(tmp_path: Path) -> None:
    with hostile_server() as server:
        config = settings(server)
        first = retriever(server, tmp_path).search(["cats", "dogs"], 3)
        assert retriever(server, tmp_path).search(["dogs", "cats"], 3) == first[::-1]
        assert server.asked == {"cats": 1, "dogs": 1}
        retriever(server, tmp_path).search(["cats"], 2)
        retriever(server, tmp_path, parameters={"gl": "de"}).search(["cats"], 3)
        assert server.asked["cats"] == 3  # another number of passages or language is another search
    replayed = WebRetriever(config.model_copy(update={"mode": "replay"}), tmp_path / "search.sqlite")
    assert replayed.search(["cats", "dogs"], 3) == first
    (failure,) = replayed.search(["birds"], 3)
    assert isinstance(failure, SearchFailure) and "not in the cache" in failure.reason
    assert (replayed.counts.cached, replayed.counts.failed, replayed.caller.calls) == (2, 1, 0)


def test_the_first_answer_stays(tmp_path: Path) -> None:
    store = Pinned(tmp_path / "c" / "search.sqlite")
    assert store.get("k") is None and store.pin("k", "q", [["1", "a"]]) == [["1", "a"]]
    assert store.pin("k", "q", ["other"]) == [["1", "a"]] == store.get("k")


def test_calls_are_counted_over_processes_and_stop_at_the_budget(
    server: Hostile, tmp_path: Path, monkeypatch: Any
) -> None:
    retriever(server, tmp_path, max_calls=3).search(["a", "b"], 1)
    other = retriever(server, tmp_path, max_calls=3)  # as another process would
    other.search(["a", "c"], 1)  # a is in the cache
    with pytest.raises(ServiceError, match=r"3 calls .* are spent.*IGPO_SEARCH_CALLS"):
        other.search(["d"], 1)
    monkeypatch.setenv("IGPO_SEARCH_CALLS", "4")
    assert len(other.search(["d"], 1)[0]) == 1  # type: ignore[arg-type]
    assert sum(server.asked.values()) == 4


def _take(path: Path, taken: Any) -> None:
    cache = Pinned(path)
    for _ in range(25):
        taken.put((cache.spend("budget", 60), cache.turn("rate", 0.05)))


def test_processes_share_budget_and_rate(tmp_path: Path) -> None:
    taken: Any = multiprocessing.get_context("fork").Queue()
    path = tmp_path / "search.sqlite"
    Pinned(path)
    started = time.monotonic()
    workers = [multiprocessing.get_context("fork").Process(target=_take, args=(path, taken)) for _ in range(4)]
    for worker in workers:
        worker.start()
    got = [taken.get(timeout=HANGS) for _ in range(100)]
    for worker in workers:
        worker.join(HANGS)
    assert sum(allowed for allowed, _ in got) == 60 == Pinned(path).spent("budget")
    # a hundred moments 50 ms apart begin before now: with none lost, the next one is so far away
    assert Pinned(path).turn("rate", 0.05) >= 100 * 0.05 - (time.monotonic() - started)


def test_searches_run_beside_each_other_up_to_a_limit(server: Hostile, tmp_path: Path) -> None:
    web = retriever(server, tmp_path, concurrency=4, timeout=3.0)
    started = time.monotonic()
    web.search([*(f"q{n}" for n in range(11)), "a little slow"], 1)
    assert server.peak <= 4
    pending = web.submit("a little slow", 2)  # a slow search holds up nobody
    assert len(web.search(["quick"], 2)[0]) == 2 and not pending.done()  # type: ignore[arg-type]
    assert len(pending.result(5)) == 2  # type: ignore[arg-type]
    assert time.monotonic() - started < 5


def test_a_rate_limit_spaces_calls(server: Hostile, tmp_path: Path) -> None:
    started = time.monotonic()
    retriever(server, tmp_path, rate=10).search([f"q{n}" for n in range(6)], 1)
    assert time.monotonic() - started >= 0.5


def test_hostile_text_is_cleaned_of_what_no_tokenizer_takes(server: Hostile, tmp_path: Path) -> None:
    ((passage,),) = retriever(server, tmp_path).search(["control"], 1)  # type: ignore[misc]
    assert "\x00" not in passage.text and "\ud800" not in passage.text
    passage.text.encode("utf-8")
    assert "<|im_end|>" in passage.text  # the protocol's part: tests/igpo_core/test_protocol.py


def test_threads_that_call_first_at_the_same_time_share_one_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the tools' threads of the continuous engine do: a semaphore and a client belong to one loop."""
    made: list[object] = []
    new = asyncio.new_event_loop
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: (time.sleep(0.05), made.append(0), new())[2])
    nowhere = JudgeSettings(url="http://127.0.0.1:1/", model="m")
    caller = Caller(nowhere, Pinned(tmp_path / "pinned.sqlite"), "meter", "BUDGET")
    barrier = threading.Barrier(8)

    async def loop() -> object:
        return asyncio.get_running_loop()

    def begin(_: int) -> object:
        barrier.wait()
        return caller.begin(loop()).result(30)

    with ThreadPoolExecutor(8) as pool:
        loops = set(pool.map(begin, range(8)))
    assert len(loops) == len(made) == 1


def test_what_another_thread_waits_for_is_asked_once(server: Hostile, tmp_path: Path) -> None:
    """The continuous engine's episodes each search in a thread: a paid call for each would be spent on one query."""
    server.slow = 1.0
    retriever = WebRetriever(settings(server), tmp_path / "pinned.sqlite")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: retriever.search(["slow"], 3)[0], range(8)))
    assert server.asked["slow"] == 1 and isinstance(found[0], list) and found == [found[0]] * 8
    assert retriever.search(["slow"], 3) == [found[0]] and server.asked["slow"] == 1  # from the file
    retriever.search(["bridge"], 3)
    assert len(retriever._pending) == 1  # a run asks for days: what is done is forgotten


def test_equal_searches_are_those_that_are_sent_alike(server: Hostile, tmp_path: Path) -> None:
    """In one form of Unicode, up to the longest query, and for as many passages."""
    retriever = WebRetriever(settings(server), tmp_path / "pinned.sqlite")
    long = "why " * 1000
    for queries in (("caf\u00e9", "cafe\u0301"), (long + "so?", long + "not?")):
        for pending in [retriever.submit(query, 3) for query in queries]:
            pending.result()
    assert sum(server.asked.values()) == 2
    three, one = [retriever.submit("bridge", k) for k in (3, 1)]
    assert one is not three
    three.result(), one.result()
