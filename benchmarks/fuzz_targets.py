"""What is fuzzed: for each place where something from outside comes in, its inputs, and what must hold of what becomes of them.

A check raises one of the product's own errors (the input is refused), Broken (an invariant does not hold), or nothing.
"""

import contextlib
import json
import math
import os
import re
import socket
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchmarks.fuzz_inputs as inputs
from igpo_core.errors import IgpoError

Check = Callable[[bytes], None]
MIB = 2**20
TOP_K = 3
LONGEST_TEXT = (
    10_000  # characters of a text that is encoded in ten ways; of turns, which are parsed alone, all are taken
)
MISSING = re.compile(r"nan|none|nat|null|<na>", re.IGNORECASE)


class Broken(Exception):
    """Something that must hold of a good result does not; its message says what."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(what)


@dataclass(frozen=True)
class Target:
    """seeds: valid inputs. inputs: from all that is worth damaging to a strategy. ready: makes the check, and ends what it needs.
    seconds: of processor time, and memory: in bytes, that one input may take."""

    name: str
    seeds: Callable[[], Sequence[bytes]]
    inputs: Callable[[Sequence[bytes]], inputs.Strategy]
    ready: Callable[[], AbstractContextManager[Check]]
    seconds: float = 5.0
    memory: int = 512 * MIB


# ---------------------------------------------------------------------------------------------------------------- tables


@contextlib.contextmanager
def loaders() -> Iterator[Check]:
    """A file is offered as questions and as passages; refused only where it is neither."""
    from igpo_core.data import load_corpus, load_questions

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "input"

        def check(content: bytes) -> None:
            path.write_bytes(content)
            refusals = []
            for load in (lambda: load_questions(path, split="train"), lambda: load_corpus(path)):
                try:
                    frame = load()
                except IgpoError as error:
                    require(str(path) in str(error), "a refusal does not name the file")
                    refusals.append(error)
                    continue
                check_frame(frame, content, path.with_name("round.parquet"))
            if len(refusals) == 2:
                raise refusals[0]

        yield check


@contextlib.contextmanager
def aliases() -> Iterator[Check]:
    """The table of names beside 2WikiMultihopQA's questions."""
    from igpo_core.data import load_questions

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "q.jsonl"
        path.write_bytes(inputs.as_lines([inputs.TWO_WIKI]))

        def check(content: bytes) -> None:
            (path.parent / "id_aliases.json").write_bytes(content)
            frame = load_questions(path, split="train")
            require(len(frame) == 1 and frame["answers"][0][0] == "Ida", "a table of names changes the main answer")
            check_frame(frame, content, path.with_name("round.parquet"))

        yield check


def check_frame(frame: Any, content: bytes, place: Path) -> None:
    """What every loaded table keeps, whatever its file was."""
    import pandas

    from igpo_core.data import CORPUS_SCHEMA, QUESTION_SCHEMA, content_hash, to_questions
    from igpo_core.text import one_form

    schema = QUESTION_SCHEMA if "question" in frame else CORPUS_SCHEMA
    require(list(frame.columns) == [*schema, "defect"], "other columns than the schema's")
    good = frame[frame["defect"].isna()].reset_index(drop=True)
    words = cache(partial(words_of, content))  # once: a large file may have many missing values
    for name, kind in schema.items():
        for value in good[name].tolist():
            for text in value if kind == "texts" else [value]:
                if kind == "flag" or (pandas.isna(text) and kind.startswith("optional")):
                    continue
                if kind == "optional integer":
                    require(1 <= text <= 1000, f"{name} is out of range")
                    continue
                require(type(text) is str, f"{name} is no text")
                require(text == one_form(text), f"{name} is not in one form")
                text.encode()
                if MISSING.fullmatch(text):  # a word of the file, or a missing value that became text
                    require(text in words(), f"{name}: a missing value is text")
    key = "id" if "question" in frame else "passage_id"
    require(all(good[key]), "an id is empty")
    if key == "passage_id" and good[key].str.fullmatch(r"p-[0-9a-f]{12}").any():
        require(bool(good.groupby(key)[["title", "text"]].nunique().le(1).all().all()), "one id for two passages")
    if zlib.crc32(content) % 8 == 0:  # takes ten times as long as the rest
        good.to_parquet(place, index=False)
        again = pandas.read_parquet(place)
        require(content_hash(again[list(schema)]) == content_hash(good), "a table read again is another one")
    if key == "id":
        made = to_questions(good[good["split"].notna()])
        require(
            all(item.text == text for item, text in zip(made, good["question"][good["split"].notna()], strict=True)),
            "questions differ",
        )


def words_of(content: bytes) -> str:
    """What a file holds as text, unpacked, without what one_form takes out."""
    from igpo_core.data.unpacking import unpacked
    from igpo_core.text import one_form

    found, _ = unpacked(Path("input"), content)
    if found.startswith(b"PAR1"):  # its pages may be packed
        return "nan none nat null <na> NaN None NaT Null NULL NONE NAN <NA>"
    return re.sub(r"\\u[0-9a-fA-F]{4}", "", one_form(found.decode("utf-8", "replace")))


# ------------------------------------------------------------------------------------------------------------------ YAML


@contextlib.contextmanager
def specification() -> Iterator[Check]:
    """One that is taken must be whole: every arm of every cell can be made, and nothing in it is no number."""
    from tasks.specification.presets import load_specification

    with _own_folder() as place:
        (place / "accelerate.yaml").write_bytes(inputs.as_yaml(inputs.ACCELERATE))

        def check(content: bytes) -> None:
            (place / "input.yaml").write_bytes(content.replace(b"HERE", bytes(place)))
            _whole(load_specification("./input.yaml"))

        yield check


@contextlib.contextmanager
def accelerate() -> Iterator[Check]:
    """The file of accelerate's that training.accelerate_config names."""
    from tasks.specification.presets import load_specification

    with _own_folder() as place:
        base = {"training": {"accelerate_config": str(place / "input.yaml")}}
        (place / "preset.yaml").write_bytes(inputs.as_yaml({**inputs.SPECIFICATION, "base": base, "processes": 1}))

        def check(content: bytes) -> None:
            (place / "input.yaml").write_bytes(content)
            _whole(load_specification("./preset.yaml"))

        yield check


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        try:
            yield Path(place)
        finally:
            os.chdir(before)


def _whole(found: Any) -> None:
    for cell, arm, seed in found.runs()[:50]:
        told = found.experiment(arm, seed, cell).model_dump(mode="json")
        _numbers(told, "")
        json.dumps(told, allow_nan=False, ensure_ascii=False).encode()
    found.sweep({})
    found.description.encode()


def _numbers(value: Any, name: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _numbers(item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            _numbers(item, name)
    elif isinstance(value, float):
        require(math.isfinite(value), f"{name} is no finite number")


# ----------------------------------------------------------------------------------------------------------- the grammar


@contextlib.contextmanager
def words() -> Iterator[Check]:
    from igpo_core.environments.searching import SEARCH_IN_A_WORLD, search_for
    from igpo_core.policies import word_tokenizer
    from igpo_core.protocol import WordProtocol
    from igpo_core.trajectory import Final

    protocol = WordProtocol(word_tokenizer(["who", "done", "F1", "x", "lake", "Orla", "I", "know"]), SEARCH_IN_A_WORLD)
    inner = protocol.control - {protocol.ids["<unk>"]}

    def check(content: bytes) -> None:
        text = content.decode("utf-8", "replace")
        require(not inner.intersection(protocol.prompt(text)[1:]), "text became a control word")
        require(not inner.intersection(protocol.observation(text)[1:-1]), "text became a control word")
        said = [protocol.ids.get(word, int.from_bytes(word.encode()[:2])) for word in re.findall(r"</?\w+>|\S+", text)]
        _parsed(protocol, said)
        if text.split():
            for action_of in (Final, search_for):
                turn, body = protocol.turn("done", action_of(text))
                written = protocol.decode(turn[body])
                if protocol.ids["<unk>"] not in turn:
                    require(protocol.parse(turn) == action_of(written), "a turn that was written is read as another")
            require(turn[protocol.call_tokens(turn)] == turn[body], "the query's tokens are others")

    yield check


@contextlib.contextmanager
def chat() -> Iterator[Check]:
    """Text from outside and turns of the policy's, with tokenizers that merge, normalise, and have letters as added tokens."""
    import unicodedata

    from igpo_core.environments.searching import search_for
    from igpo_core.protocol import MARKERS
    from igpo_core.text import one_form
    from igpo_core.trajectory import Final, ToolCall

    protocols = _chat_protocols()
    harmless = {
        name: [protocol._controls(part("x")) for part in (protocol.prompt, protocol.observation)]
        for name, protocol in protocols.items()
    }

    def check(content: bytes) -> None:
        raw = content.decode("utf-8", "replace").replace("\x00", " ")
        text = one_form(raw[:LONGEST_TEXT])
        for name, protocol in protocols.items():
            found = [protocol._controls(part(text)) for part in (protocol.prompt, protocol.observation)]
            require(found == harmless[name], "text became a control token")
            plain = protocol.neutralise(text)
            require(not any(marker in plain for marker in MARKERS), "a marker stays in text from outside")
            _parsed(protocol, [*protocol._encode(raw), *protocol.stop_ids])
            size = len(protocol.tokenizer) + 10
            _parsed(
                protocol,
                [
                    *(int.from_bytes(content[at : at + 2]) % size for at in range(0, min(len(content), 200), 2)),
                    *protocol.stop_ids,
                ],
            )
            if not text:
                continue
            turn, _ = protocol.turn(text, search_for(text))
            action = protocol.parse(turn)
            require(isinstance(action, ToolCall), "a turn that was written is not read")
            probe = protocol.probe(text)
            whole = [*probe.prefix_ids, *probe.answer_ids, *probe.suffix_ids]
            answering, _ = protocol.turn(protocol.interface.final_thought, Final(text))
            require(whole == answering, "a probe is not the turn that answers")
            if name != "folding":  # the others change no text but to NFC
                shown = unicodedata.normalize("NFC", plain)
                require(action == search_for(shown.strip()), "a query that was written is read as another")
                require(shown in protocol.decode(whole), "a probe's tokens do not give its text")
                start, stop = (
                    len(protocol.decode(probe.prefix_ids)),
                    len(protocol.decode([*probe.prefix_ids, *probe.answer_ids])),
                )
                require(
                    protocol.decode(whole).index(shown, start - 1) < stop, "a probe's answer lies outside its tokens"
                )

    yield check


def _parsed(protocol: Any, ids: Sequence[int]) -> None:
    """Any ids whatever are a search with a query, an answer with a text, or malformed with a reason."""
    from igpo_core.trajectory import Malformed, ToolCall

    action = protocol.parse(ids)
    if isinstance(action, Malformed):
        require(bool(action.reason), "malformed without a reason")
        return
    text = action.arguments["query"] if isinstance(action, ToolCall) else action.text
    require(bool(text.strip()) and text == text.strip(), "an action without a text")
    text.encode()
    if isinstance(action, ToolCall):
        found = protocol.call_tokens(ids)
        require(0 <= found.start <= found.stop <= len(ids), "the query's tokens lie outside the turn")


def _chat_protocols() -> dict[str, Any]:
    import copy

    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    from igpo_core.config import NewPolicy
    from igpo_core.environments.searching import SEARCH
    from igpo_core.policies import chat_tokenizer
    from igpo_core.protocol import ChatProtocol

    policy = NewPolicy.model_validate(
        {"architecture": "qwen2", "tokenizer": "chat", "vocabulary": 400, "key_value_heads": 2}
    )
    plain = chat_tokenizer(["Lake Orla lies north of Brenn.\n(Ida Holm)\n"] * 9, policy)
    letters = copy.deepcopy(plain)
    letters.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("ü", "日", "covid19", "  ")])
    content = json.loads(plain.backend_tokenizer.to_str())
    for token in content["added_tokens"]:
        token["normalized"] = True
    removed = {"type": "Replace", "pattern": {"Regex": "[\\u200b\\u00ad]"}, "content": ""}
    content["normalizer"] = {"type": "Sequence", "normalizers": [removed, {"type": "NFKC"}, {"type": "Lowercase"}]}
    folding = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    folding.chat_template = plain.chat_template
    tokenizers = {"plain": plain, "letters": letters, "folding": folding}
    return {name: ChatProtocol(tokenizer, SEARCH) for name, tokenizer in tokenizers.items()}


# --------------------------------------------------------------------------------------------------------- HTTP services


class Service:
    """Answers every request with the same bytes, and hangs up."""

    def __init__(self) -> None:
        self.content = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def end(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # ended
                return
            with connection, contextlib.suppress(OSError):  # the client may hang up first
                connection.settimeout(5)
                self._take(connection)
                connection.sendall(self.content)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(
                    MIB
                ):  # till the client has what it wants: closing at once could take back what was sent
                    pass

    def _take(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            found = connection.recv(65_536)
            if not found:
                return
            head += found
        start, _, body = head.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", start.lower())
        missing = int(length[1]) - len(body) if length else 0
        while missing > 0:
            missing -= len(connection.recv(65_536)) or missing


@contextlib.contextmanager
def _service() -> Iterator[Service]:
    service = Service()
    try:
        yield service
    finally:
        service.end()


def _shown(reason: str, *, keyed: bool = True) -> None:
    """keyed: whether the service was sent the key, so that it can repeat it."""
    require(not keyed or inputs.KEY not in reason, "a reason tells the key")
    require(reason.isprintable(), "a reason has characters that move a terminal's cursor")


def web(api: str) -> Callable[[], AbstractContextManager[Check]]:
    """At most k passages of clean text, or a failure with its reason; asked again, the same."""

    @contextlib.contextmanager
    def ready() -> Iterator[Check]:
        import sqlite3

        from igpo_core.config import WebSearch
        from igpo_core.http import clean_text
        from igpo_core.retrieval import Passage, SearchFailure
        from igpo_core.retrieval.web import WebRetriever

        os.environ["SEARCH_API_KEY"] = inputs.KEY
        with _service() as service, tempfile.TemporaryDirectory() as place:
            given = {
                "api": api,
                "url": f"{service.url}/{api}",
                "attempts": 1,
                "timeout": 20,
                "max_failure_share": 1.0,
                "max_bytes": 1_000_000,
            }
            cache = Path(place) / "search.sqlite"
            retriever = WebRetriever(WebSearch.model_validate({**given, "max_calls": 10**9}), cache)
            asked = 0

            def check(content: bytes) -> None:
                nonlocal asked
                service.content, asked = content, asked + 1
                if asked % 1000 == 0:  # a file that only grows
                    with contextlib.closing(sqlite3.connect(cache, isolation_level=None)) as database:
                        database.execute("delete from found")
                try:
                    (found,) = retriever.search([f"query {asked}"], TOP_K)
                except IgpoError as error:
                    _shown(str(error), keyed=api != "retriever")
                    raise
                if isinstance(found, SearchFailure):
                    _shown(found.reason, keyed=api != "retriever")
                    return
                require(len(found) <= TOP_K, "more passages than were asked for")
                for passage in found:
                    require(type(passage) is Passage and bool(passage.text), "a passage without a text")
                    for text in (passage.id, passage.title, passage.text):
                        require(type(text) is str and text == clean_text(text), "a passage's text is not clean")
                service.content = b""
                require(
                    list(retriever.search([f"query {asked}"], TOP_K)[0]) == list(found), "what was found does not stay"
                )

            yield check

    return ready


@contextlib.contextmanager
def judge() -> Iterator[Check]:
    from igpo_core.config import JudgeSettings
    from igpo_core.judge import Judge

    os.environ["JUDGE_API_KEY"] = inputs.KEY
    with _service() as service, tempfile.TemporaryDirectory() as place:
        given = {
            "url": f"{service.url}/v1/chat/completions",
            "model": "m",
            "attempts": 1,
            "timeout": 20,
            "max_bytes": 1_000_000,
            "max_calls": 10**9,
        }
        judging, asked = Judge(JudgeSettings.model_validate(given), Path(place) / "judge.sqlite"), 0

        def check(content: bytes) -> None:
            nonlocal asked
            service.content, asked = content, asked + 1
            try:
                (verdict,) = judging.verdicts([(f"Q{asked}?", ["a"], "b")])
            except IgpoError as error:
                _shown(str(error))
                raise
            require(verdict.correct in (True, False) or bool(verdict.reason), "no verdict and no reason")
            _shown(verdict.reason)

        yield check


@contextlib.contextmanager
def served() -> Iterator[Check]:
    """A rollout server's models, turns and likeliest tokens, each answered by the same bytes."""
    import torch

    from igpo_core.config import RolloutConfig, VllmEngine
    from igpo_core.environments.searching import SEARCH_IN_A_WORLD
    from igpo_core.policies import Policy, word_tokenizer
    from igpo_core.protocol import WordProtocol
    from igpo_core.rollout.rows import begin
    from igpo_core.rollout.served_engine import ServedEngine
    from igpo_core.trajectory import Question

    protocol = WordProtocol(word_tokenizer(["who", "done", "F1"]), SEARCH_IN_A_WORLD)
    model: Any = SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(len(protocol.ids), 2))
    policy = Policy(model, protocol, 100)
    config = RolloutConfig.model_validate({"max_new_tokens": 12, "max_tokens": 64})
    row = begin(policy, Question("q", "lookup", "train", "who", ("F1",)), 0, config)
    with _service() as service, tempfile.TemporaryDirectory() as place:
        service.content = inputs.answer(inputs.dumped(inputs.MODELS))
        given = VllmEngine.model_validate({"urls": [service.url], "weights": place, "attempts": 1, "timeout": 20})
        engine = ServedEngine(given, number=1)  # another than the first holds no locks

        def check(content: bytes) -> None:
            service.content = content
            refusals = []
            for ask in (
                lambda: engine._connection.served_model(service.url).encode("utf-8", "surrogatepass"),
                lambda: engine.require_processed_logprobs([2, 3]),
                lambda: _turn(engine._turn(policy, row, 1, config, "sampled")),
            ):
                try:
                    ask()
                except IgpoError as error:
                    require(service.url in str(error), "a refusal does not name the server")
                    require(str(error).isprintable(), "a refusal has characters that move a terminal's cursor")
                    refusals.append(error)
            if len(refusals) == 3:
                raise refusals[0]

        def _turn(found: tuple[list[int], list[float]]) -> None:
            ids, logprobs = found
            require(0 < len(ids) == len(logprobs) <= config.max_new_tokens, "a turn of another length")
            require(
                all(type(token) is int and 0 <= token < len(protocol.ids) for token in ids),
                "a token that the model has not",
            )
            require(all(math.isfinite(value) for value in logprobs), "a log-probability that is no number")
            struct.pack(f"{len(logprobs)}f", *logprobs)

        yield check


# ------------------------------------------------------------------------------------------------------------------- all


Ready = Callable[[], AbstractContextManager[Check]]


def _table(
    name: str, write: Callable[[Any, bool], bytes], samples: Sequence[dict[str, Any]], ready: Ready = loaders
) -> Target:
    seeds, made = inputs.tables(write, samples)
    return Target(name, lambda: seeds, made, ready)


def _copies(rows: Any, ascii_only: bool) -> bytes:
    """Copies come in all three containers; which one depends on nothing but the rows."""
    write = (inputs.as_array, inputs.as_lines, inputs.as_parquet)[len(str(rows)) % 3]
    return write(rows, ascii_only)


def _answers(name: str, samples: Sequence[Any], ready: Ready, memory: int = 96 * MIB) -> Target:
    seeds = [inputs.answer(inputs.dumped(tree)) for tree in [*samples, inputs.REFUSED]]
    return Target(name, lambda: seeds, inputs.answer_inputs(samples), ready, memory=memory)


def _yaml(name: str, samples: Sequence[Any], ready: Ready) -> Target:
    seeds = [inputs.as_yaml(sample) for sample in samples]
    return Target(
        name, lambda: seeds, inputs.yaml_inputs(samples), ready, seconds=30.0
    )  # PyYAML takes seconds for 200 kB


def _texts(name: str, ready: Ready) -> Target:
    return Target(name, lambda: [turn.encode() for turn in inputs.TURNS], inputs.text_inputs, ready, seconds=12.0)


FLAT = (inputs.PLAIN, inputs.PASSAGE)
ALL = (
    _table("json", inputs.as_array, FLAT),
    _table("jsonl", inputs.as_lines, FLAT),
    _table("csv", inputs.as_csv, FLAT),
    Target("parquet", inputs.parquet_seeds, inputs.parquet_inputs, loaders),
    Target("packed", inputs.packed_seeds, inputs.packed_inputs, loaders),
    _table("copies", _copies, inputs.COPIES),
    _table("aliases", inputs.as_lines, [inputs.ALIASES], aliases),
    _yaml("yaml", inputs.SPECIFICATIONS, specification),
    _yaml("accelerate", [inputs.ACCELERATE], accelerate),
    _texts("words", words),
    _texts("chat", chat),
    _answers("web-serper", [inputs.SERPER], web("serper")),
    _answers("web-bing", [inputs.BING], web("bing")),
    _answers("web-retriever", [inputs.RETRIEVER], web("retriever")),
    _answers("judge", [inputs.JUDGED, inputs.PARTS], judge),
    _answers("served", [inputs.MODELS, inputs.COMPLETION], served, memory=400 * MIB),
)
