"""Inputs of the fuzzer: valid ones to begin with, and strategies that write new ones or damage what is there.

Every input is bytes, as it would come from a disk or a network, so that a find is a file.
"""

import bz2
import csv
import functools
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import Any

import yaml
from hypothesis import strategies as st

Strategy = st.SearchStrategy[bytes]

# What has been read wrongly somewhere: words of other languages for missing values, forms of Unicode, markup, control tokens.
ODD_TEXTS = (
    "",
    " ",
    "\x00",
    "A",
    "null",
    "NaN",
    "nan",
    "None",
    "no",
    "true",
    "1",
    "01",
    "1e5",
    "[REC]",
    "[",
    "{",
    '["a"]',
    '{"a": 1}',
    "[1, null]",
    "Cafe\u0301",
    "\u200b",
    "\ufeff",
    "\u2028",
    "\u3164",
    "\ud83d",
    "C++",
    ".NET",
    "a|b",
    "|",
    "a<|answer_split|>b",
    "</think>",
    "<|im_end|>",
    "\uff1c|im_end|\uff1e",
    "<|IM_END|>",
    "<tool_call>",
    "</tool_response>",
    "<script>alert(1)</script>",
    "\x1b[2J",
    "Z\u0335\u0321",
    "\U0001f468\u200d\U0001f469",
    "answer: x ",
    "東京",
    "9" * 25,
    "1e999",
    "2hop__1_2",
    "bridge_comparison",
    "Infinity",
    "a\r\nb",
    '"',
    "'",
    "`",
    "\\",
    "\t",
    "..",
    "=1+1",
)
LONGEST = 200_000  # characters of a text that repeats another
COUNTS = (2, 30, 1000, 30_000)

# st.text() would first take seconds to write a table of all characters, in each process
characters = (st.integers(32, 126) | st.integers(0, 0x2FFF) | st.integers(0, 0x10FFFF)).map(chr)
odd_texts = st.sampled_from(ODD_TEXTS) | st.lists(characters, max_size=8).map("".join)


@st.composite
def repeated(draw: st.DrawFn) -> str:
    """A long text of one piece: what takes time or memory out of all proportion shows on it."""
    piece = "".join(draw(st.lists(odd_texts, min_size=1, max_size=3))) or "x"
    return (piece * draw(st.sampled_from(COUNTS)))[:LONGEST]


def _nested(inner: Any, depth: int) -> Any:
    for _ in range(depth):
        inner = [inner]
    return inner


texts = odd_texts | odd_texts | odd_texts | repeated()
odd_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-2, 1001) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts, inner, max_size=3),
    max_leaves=5,
) | st.builds(_nested, st.integers(), st.sampled_from([5, 400, 900, 990]))


def edited(tree: Any) -> st.SearchStrategy[Any]:
    """The tree with up to four values replaced, wrapped, unwrapped, dropped, added or doubled, at any depth."""

    @st.composite
    def edit(draw: st.DrawFn) -> Any:
        found = tree
        for _ in range(draw(st.integers(0, 4))):
            found = _edit(draw, found)
        return found

    return edit()


def _as_json(tree: Any) -> Any:
    """The tree with keys that JSON has. It does not call itself: trees are as deep as Python allows."""
    whole = [tree]
    places: list[dict[str, Any] | list[Any]] = [whole]
    while places:
        place: Any = places.pop()
        for key, value in list(place.items() if isinstance(place, dict) else enumerate(place)):
            if isinstance(value, dict | list):
                place[key] = {str(name): item for name, item in value.items()} if isinstance(value, dict) else [*value]
                places.append(place[key])
    return whole[0]


def _edit(draw: st.DrawFn, tree: Any) -> Any:
    deeper = isinstance(tree, dict | list) and tree and draw(st.integers(0, 4)) > 0
    if deeper and isinstance(tree, dict):
        key = draw(st.sampled_from(list(tree)))
        return {**tree, key: _edit(draw, tree[key])}
    if deeper:
        place = draw(st.integers(0, len(tree) - 1))
        return [*tree[:place], _edit(draw, tree[place]), *tree[place + 1 :]]
    match draw(st.sampled_from(["replace", "replace", "replace", "text", "wrap", "drop", "add", "twice"])):
        case "text" if isinstance(tree, str):
            place = draw(st.integers(0, len(tree)))
            return tree[:place] + draw(texts) + tree[place:]
        case "text":
            return json.dumps(_as_json(tree), ensure_ascii=False, default=str)
        case "wrap":
            return draw(
                st.sampled_from([[tree], {"value": tree}, [tree, None], {"title": [tree], "sentences": [tree]}])
            )
        case "drop" if isinstance(tree, dict) and tree:
            gone = draw(st.sampled_from(list(tree)))
            return {key: value for key, value in tree.items() if key != gone}
        case "drop" if isinstance(tree, list):
            return tree[: len(tree) // 2]
        case "add" if isinstance(tree, dict):
            return {**tree, draw(odd_texts): draw(odd_values)}
        case "add" if isinstance(tree, list):
            return [*tree, draw(odd_values)]
        case "twice" if isinstance(tree, list):
            return tree * draw(st.sampled_from([2, 50]))
    return draw(odd_values)


PIECES = (
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\n",
    b"\r",
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"NaN",
    b"1e999",
    b"\\ud800",
    b"'",
    b"- ",
    b": ",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!python/name:os.system ",
    b"\t",
    b"|",
    b"\xed\xa0\x80",
    b"\xc3",
    b"-1",
    b"9" * 5000,
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The same with up to six places flipped, cut, put in or repeated."""
    made = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(made)))
        length = draw(st.sampled_from([1, 2, 8, 100]))
        match draw(st.sampled_from(["flip", "flip", "cut", "end", "put", "put", "repeat"])):
            case "flip" if at < len(made):
                made[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del made[at : at + length]
            case "end":
                del made[at:]
            case "put":
                made[at:at] = draw(st.sampled_from(PIECES) | st.binary(max_size=4))
            case "repeat":
                made[at:at] = bytes(made[at : at + length]) * min(draw(st.sampled_from(COUNTS)), LONGEST // length)
    return bytes(made)


def from_corpus(corpus: Sequence[bytes], *written: Strategy) -> Strategy:
    """New ones as they are and damaged, and damaged ones of what has been tried with effect."""
    new = st.one_of(*written)
    return new | new | new.flatmap(damaged) | st.sampled_from(list(corpus)).flatmap(damaged)


# ---------------------------------------------------------------------------------------------------------------- tables

PLAIN = {
    "id": "q1",
    "question": "Who built the bridge?",
    "answers": ["Ida Holm", "I. Holm"],
    "source": "custom",
    "split": "train",
    "supporting_titles": ["Brenn"],
    "hops": 2,
    "answerable": True,
}
PASSAGE = {"passage_id": "p1", "title": "Lake Orla", "text": "Lake Orla lies north of Brenn."}
AUTHORS = {
    "data_source": "nq",
    "prompt": [{"role": "system", "content": "Search."}, {"role": "user", "content": "who built it?"}],
    "reward_model": {"ground_truth": "Ida<|answer_split|>I. Holm", "style": "rule"},
    "extra_info": {"index": 3, "split": "dev"},
}
SEARCH_R1 = {
    **AUTHORS,
    "reward_model": {"ground_truth": {"target": ["Ida", "I. Holm"]}},
    "id": "test_0",
    "golden_answers": ["Ida"],
}
HOTPOT = {
    "_id": "h1",
    "question": "Who?",
    "answer": "Ida",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": [["Brenn", 0]],
    "context": [["Brenn", ["A town.", "It has a bridge."]], ["Orla", ["A lake."]]],
}
TWO_WIKI = {**HOTPOT, "_id": "w1", "type": "comparison", "evidences": [["Brenn", "bridge", "Ida"]], "answer_id": "Q7"}
HUB = {
    "id": "h2",
    **{name: HOTPOT[name] for name in ("question", "answer", "type", "level")},
    "supporting_facts": {"title": ["Brenn"], "sent_id": [0]},
    "context": {"title": ["Brenn"], "sentences": [["A town."]]},
}
HUB_JSON = {**TWO_WIKI, **{name: json.dumps(TWO_WIKI[name]) for name in ("supporting_facts", "context", "evidences")}}
MUSIQUE = {
    "id": "2hop__1_2",
    "question": "Who?",
    "answer": "Ida",
    "answer_aliases": ["I. Holm"],
    "answerable": True,
    "paragraphs": [{"idx": 0, "title": "Brenn", "paragraph_text": "A town.", "is_supporting": True}],
}
COPIES: tuple[dict[str, Any], ...] = (AUTHORS, SEARCH_R1, HOTPOT, TWO_WIKI, HUB, HUB_JSON, MUSIQUE)
ALIASES = {"Q_id": "Q7", "aliases": ["Ida Maria Holm"], "demonyms": []}
OTHER_TYPES = (3.0, 7, float("nan"), None, "q2", "Cafe\u0301")


def several(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The row, and others with ids of other types."""
    name = next(name for name in ("id", "_id", "passage_id", "data_source", "Q_id") if name in row)
    return [row, *({**row, name: value} for value in OTHER_TYPES)]


def dumped(value: Any, ascii_only: bool = True) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only, default=str).encode("utf-8", "surrogatepass")


def as_array(rows: Any, ascii_only: bool = True) -> bytes:
    return dumped(rows, ascii_only)


def as_lines(rows: Any, ascii_only: bool = True) -> bytes:
    return b"\n".join(dumped(row, ascii_only) for row in rows) if isinstance(rows, list) else dumped(rows, ascii_only)


def as_csv(rows: Any, ascii_only: bool = True) -> bytes:
    """ascii_only is of the other kinds: a CSV has no escapes."""
    records = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    names = list(dict.fromkeys(name for row in records for name in row))
    target = io.StringIO(newline="")
    writer = csv.writer(target)
    writer.writerow(names)
    for row in records:
        values = [row.get(name) for name in names]
        writer.writerow([value if isinstance(value, str) else json.dumps(value, default=str) for value in values])
    return target.getvalue().encode("utf-8", "surrogatepass")


def rows_of(samples: Sequence[dict[str, Any]]) -> st.SearchStrategy[Any]:
    return st.sampled_from([several(row) for row in samples] + [[row] for row in samples]).flatmap(edited)


def tables(
    write: Callable[[Any, bool], bytes], samples: Sequence[dict[str, Any]]
) -> tuple[Sequence[bytes], Callable[[Sequence[bytes]], Strategy]]:
    """Seeds, and the strategy over them and what else was tried with effect."""
    seeds = [write(rows, True) for row in samples for rows in ([row], several(row))]

    def made(corpus: Sequence[bytes]) -> Strategy:
        return from_corpus(corpus, st.builds(write, rows_of(samples), st.booleans()))

    return seeds, made


# --------------------------------------------------------------------------------------------------------------- parquet


def as_parquet(rows: Any, ascii_only: bool = True) -> bytes:
    """A column that arrow has no type for holds JSON text, as copies on the hub do."""
    import pyarrow

    records = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    names = list(dict.fromkeys(name for row in records for name in row))
    columns = {_plain(name): _column([row.get(name) for row in records]) for name in names}
    return _stored(pyarrow.table(columns), {})


def _column(values: list[Any]) -> Any:
    import pyarrow

    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError, RecursionError):
        return pyarrow.array([json.dumps(value, default=str) for value in values])


def _plain(name: str) -> str:
    return str(name).encode("utf-8", "replace").decode()


def _stored(table: Any, options: dict[str, Any]) -> bytes:
    import pyarrow.parquet

    target = io.BytesIO()
    try:
        pyarrow.parquet.write_table(table, target, **options)
    except (pyarrow.ArrowException, OSError):  # parquet has no such type: an empty table is as good
        pyarrow.parquet.write_table(pyarrow.table({"id": ["q"]}), target)
    return target.getvalue()


@functools.cache
def odd_arrays() -> list[Any]:
    """Two values each, of types and values that Python has no object for, among others."""
    import decimal

    import pyarrow as pa

    beyond = pa.array([4_000_000, 0], pa.int32())
    moments = pa.array([2**62, 0], pa.int64())
    return [
        beyond.view(pa.date32()),
        pa.array([-(2**62), 0], pa.int64()).view(pa.date64()),
        *(moments.view(pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
        *(moments.view(pa.timestamp("us", zone)) for zone in ("UTC", "Mars/Olympus", "+99:99", "")),
        *(moments.view(pa.duration(unit)) for unit in ("s", "ns")),
        pa.array([2**60, 0], pa.int64()).view(pa.time64("ns")),
        pa.array([date(1871, 5, 2), None]),
        pa.array([datetime(1871, 5, 2, 3, 4), None]),
        pa.array([decimal.Decimal("1.50"), None]),
        pa.array([b"\xff\xfe", b"ok"]),
        pa.array([b"\xff\xfe", b"ok"]).view(pa.string()),
        pa.array([[b"\xff"], [b"a"]]).cast(pa.list_(pa.binary())),
        pa.array([b"12", b"ab"], pa.binary(2)),
        pa.array([1.5, float("nan")], pa.float16()) if hasattr(pa, "float16") else pa.nulls(2),
        pa.array([float("inf"), 3.0]),
        pa.array([2**63, 0], pa.uint64()),
        pa.nulls(2),
        pa.array(["a", "a"]).dictionary_encode(),
        pa.array([{"a": 1, "b": None}, None]),
        pa.array([{"title": ["Brenn"], "sentences": [["A town."]]}, {"title": [], "sentences": [["A"]]}]),
        pa.array([[("k", "v")], []], pa.map_(pa.string(), pa.string())),
        pa.array([[["x", None]], None]),
        pa.array([True, None]),
        pa.array(["Cafe\u0301\u200b", "\x00"], pa.large_string()),
    ]


@st.composite
def parquets(draw: st.DrawFn) -> bytes:
    """A table with the columns of a sample, some of them odd arrays, stored in one of many ways."""
    import pyarrow

    row = draw(st.sampled_from([PLAIN, PASSAGE, *COPIES]))
    columns: dict[str, Any] = {}
    for name, value in row.items():
        odd = draw(st.integers(0, 2)) == 0
        columns[name] = draw(st.sampled_from(odd_arrays())) if odd else _column([value, value])
    names = [*columns, draw(st.sampled_from(list(columns)))] if draw(st.integers(0, 9)) == 0 else list(columns)
    table = pyarrow.Table.from_arrays([columns[name] for name in names], names=names)
    options = {
        "compression": draw(st.sampled_from(["none", "snappy", "gzip", "zstd", "lz4", "brotli"])),
        "use_dictionary": draw(st.booleans()),
        "row_group_size": draw(st.sampled_from([1, 100])),
        "version": draw(st.sampled_from(["1.0", "2.6"])),
    }
    return _stored(table, options)


def parquet_inputs(corpus: Sequence[bytes]) -> Strategy:
    return from_corpus(corpus, parquets(), parquets(), st.builds(as_parquet, rows_of([PLAIN, PASSAGE])))


def parquet_seeds() -> list[bytes]:
    return [as_parquet([row, row]) for row in (PLAIN, PASSAGE, *COPIES)]


# ---------------------------------------------------------------------------------------------------------------- packed


def _zip(content: bytes, method: int, entries: int = 1) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for number in range(entries):
            # a date of its own: with the clock's, one draw would give two inputs, which hypothesis refuses
            archive.writestr(zipfile.ZipInfo(f"q{number}.jsonl", (2026, 1, 1, 0, 0, 0)), content, method)
    return target.getvalue()


def _zstd(content: bytes) -> bytes:
    import pyarrow

    target = io.BytesIO()
    with pyarrow.CompressedOutputStream(target, "zstd") as stream:
        stream.write(content)
        stream.flush()
        made = target.getvalue()
    return made if target.closed else target.getvalue()


def _encrypted(content: bytes) -> bytes:
    made = bytearray(_zip(content, zipfile.ZIP_STORED))
    made[6] |= 1  # the flag of the entry, and of its place in the directory
    made[made.index(b"PK\x01\x02") + 8] |= 1
    return bytes(made)


PACKERS: tuple[Callable[[bytes], bytes], ...] = (
    functools.partial(gzip.compress, compresslevel=1, mtime=0),
    functools.partial(bz2.compress, compresslevel=1),
    functools.partial(lzma.compress, preset=0),
    _zstd,
    functools.partial(_zip, method=zipfile.ZIP_DEFLATED),
    functools.partial(_zip, method=zipfile.ZIP_BZIP2),
    functools.partial(_zip, method=zipfile.ZIP_LZMA),
    functools.partial(_zip, method=zipfile.ZIP_STORED),
    functools.partial(_zip, method=zipfile.ZIP_DEFLATED, entries=2),
    _encrypted,
)


@functools.cache
def bombs() -> list[bytes]:
    """Half a gigabyte of one byte, packed by those that take a second or two for it."""
    return [pack(b" " * 2**29) for pack in (PACKERS[0], PACKERS[3], PACKERS[4])]


@st.composite
def packed(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 199)) == 0:
        return draw(st.sampled_from(bombs()))
    content = draw(
        st.sampled_from([as_lines(several(PLAIN)), as_lines([PASSAGE]), as_csv([PASSAGE]), b"", as_parquet([PLAIN])])
    )
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        content = draw(st.sampled_from(PACKERS))(content)
    if draw(st.integers(0, 5)) == 0:
        content += draw(st.sampled_from([content, b"\x00" * 8, b"x"]))
    return content


def packed_inputs(corpus: Sequence[bytes]) -> Strategy:
    return from_corpus(corpus, packed())


def packed_seeds() -> list[bytes]:
    return [pack(as_lines([row])) for pack in PACKERS for row in (PLAIN, PASSAGE)]


# ----------------------------------------------------------------------------------------------------------------- YAML

SPECIFICATION: dict[str, Any] = {
    "name": "y",
    "base": {"optimizer": {"learning_rate": 1e-6}, "rollout": {"group_size": 4}},
    "baseline": "outcome_only",
    "seeds": [0, 1],
    "arms": {
        "outcome_only": {"reward": "outcome_only"},
        "prob": {"gain": "prob_diff", "optimizer": {"dead_groups": "drop"}},
    },
}
WITH_FACTORS = {
    **SPECIFICATION,
    "factors": {"gamma": {"half": {"reward.gamma": 0.5}, "whole": {"reward.gamma": 1.0}}},
    "primary": "prob",
    "until": {"width": 0.1, "seeds": 4},
    "margin": 0.03,
    "processes": 2,
}
DERIVED = {**SPECIFICATION, "base": {"from": "lookup", "rollout.group_size": 4}}
ITSELF = {**SPECIFICATION, "base": {"from": "input.yaml"}}
FILES = {
    **SPECIFICATION,
    "base": {
        "data": {
            "kind": "files",
            "questions": [{"path": "q.jsonl", "split": "train"}],
            "search": {"kind": "web", "api": "serper", "url": "https://search.example/s", "parameters": {"gl": "de"}},
        },
        "policy": {"kind": "pretrained", "name": "Qwen/Qwen2.5-0.5B-Instruct", "revision": "a" * 40},
    },
}
ACCELERATED = {**SPECIFICATION, "base": {"training": {"accelerate_config": "HERE/accelerate.yaml"}}}
SPECIFICATIONS = (SPECIFICATION, WITH_FACTORS, DERIVED, ITSELF, FILES, ACCELERATED)
ACCELERATE = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "mixed_precision": "no",
    "num_machines": 1,
    "num_processes": 2,
    "machine_rank": 0,
    "use_cpu": False,
    "fsdp_config": {"fsdp_version": 2},
    "main_training_function": "main",
}
KEYS = (
    st.sampled_from([None, False, 1, 0.5, float("nan"), date(2026, 1, 1), "", "no", "prob+kl", "κ", "a" * 300, (1, 2)])
    | odd_texts
)


@st.composite
def renamed(draw: st.DrawFn, tree: Any) -> Any:
    """The same with a key of one of its mappings replaced by another one, of any type that YAML has."""
    if isinstance(tree, dict) and tree:
        chosen = draw(st.sampled_from(list(tree)))
        if draw(st.integers(0, 2)):
            return {**tree, chosen: draw(renamed(tree[chosen]))}
        return {(draw(KEYS) if key == chosen else key): value for key, value in tree.items()}
    return tree


def _short(tree: Any) -> Any:
    """The tree with texts of at most 2,000 characters: PyYAML takes seconds to write and to read longer ones."""
    if isinstance(tree, dict):
        return {_short(key): _short(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_short(item) for item in tree]
    return tree[:2000] if isinstance(tree, str) else tree


def as_yaml(tree: Any, flow: bool = False) -> bytes:
    try:
        written = yaml.dump(_short(tree), sort_keys=False, allow_unicode=True, default_flow_style=flow)
    except RecursionError:  # nested deeper than PyYAML writes
        written = f"base: {'[' * 5000}"
    return written.encode("utf-8", "surrogatepass")


def yaml_inputs(samples: Sequence[Any]) -> Callable[[Sequence[bytes]], Strategy]:
    sample = st.sampled_from(list(samples))
    written = [
        st.builds(as_yaml, sample.flatmap(edited), st.booleans()),
        st.builds(as_yaml, sample.flatmap(renamed).flatmap(edited), st.booleans()),
    ]
    return lambda corpus: from_corpus(corpus, *written)


# ------------------------------------------------------------------------------------------------------------ the grammar

TURNS = (
    '<think>\nx\n</think>\n<tool_call>\n{"name": "search", "arguments": {"query": "lake Orla"}}\n</tool_call>',
    "<think>\nI know\n</think>\n<answer>\nIda Holm\n</answer>",
    "<think> done </think> <answer> F1 </answer>",
    "1. Lake Orla: north of Brenn </tool_response><|im_end|>",
)
MARKS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<answer>",
    "</answer>",
    "<tool_response>",
    "<|im_end|>",
    "<|im_start|>system",
    '{"name": "search", "arguments": {"query": "',
    '"}}',
    "\\ud83d",
    "</think><tool_call>",
    "ü",
    "F1",
    "\n",
    "<\u200b|im_end|>",
    "ﬁ",
    "<",
)


@st.composite
def written_text(draw: st.DrawFn) -> bytes:
    pieces = draw(st.lists(st.sampled_from(MARKS) | texts, max_size=6))
    if draw(st.integers(0, 3)) == 0:
        piece = draw(st.sampled_from(MARKS))
        pieces.insert(
            draw(st.integers(0, len(pieces))), piece * min(draw(st.sampled_from(COUNTS)), LONGEST // len(piece))
        )
    text = "".join(pieces)
    if draw(st.booleans()):  # within a turn
        text = draw(st.sampled_from(TURNS)).replace("\n", text + "\n", 1)
    return text.encode("utf-8", "replace")


def text_inputs(corpus: Sequence[bytes]) -> Strategy:
    return from_corpus(corpus, written_text())


# ----------------------------------------------------------------------------------------------------------- HTTP answers

KEY = "hush-4711"  # a service that repeats it in its answer must not bring it into a message
SERPER = {
    "organic": [
        {"title": "Brenn", "link": "https://b.example", "snippet": "A town."},
        {"title": "Orla", "link": "l", "snippet": "A lake."},
    ]
}
BING = {"webPages": {"value": [{"name": "Brenn", "url": "https://b.example", "snippet": "A town."}]}}
RETRIEVER = {
    "result": [
        [
            {"document": {"id": "7", "contents": '"Brenn"\nA town.'}, "score": 0.7},
            {"id": 8, "title": "Orla", "text": "A lake."},
        ]
    ]
}
JUDGED = {"choices": [{"message": {"content": "<think>hm</think>Yes."}}]}
PARTS = {"choices": [{"message": {"content": [{"type": "text", "text": "no"}]}}]}
REFUSED = {"error": {"message": f"bad request with {KEY}", "code": 400}}
MODELS = {"data": [{"id": "served"}]}
COMPLETION = {
    "choices": [
        {
            "token_ids": [4, 13, 5, 10, 14, 11],
            "finish_reason": "stop",
            "logprobs": {"token_logprobs": [-0.5] * 6, "top_logprobs": [{"token_id:4": -0.5}] * 6},
        }
    ]
}
STATUSES = ("200 OK",) * 8 + (
    "400 Bad",
    "422 No",
    "401 No",
    "403 No",
    "404 No",
    "429 Slow",
    "500 Oops",
    "503 Busy",
    "302 Found",
    "101 Switch",
    "100 Go",
    "204 None",
    "206 Part",
    "999 What",
    "abc",
    "200",
)
HEADERS = (
    "Content-Encoding: identity",
    "Content-Encoding: deflate",
    "Content-Encoding: br",
    "Retry-After: 5",
    "Retry-After: ²",
    "Retry-After: -1",
    "Location: http://127.0.0.1:1/",
    "Content-Type: application/json; charset=utf-16",
    "Content-Type: x; charset=base64",
    "X: \xff",
    "Set-Cookie: a=b",
    "Content-Length: 5",
    "Content-Length: x",
    "Transfer-Encoding: gzip",
    "Content-Encoding: \xff",
)


def answer(body: bytes, status: str = "200 OK", headers: Sequence[str] = (), framing: str = "length") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers]
    if framing == "length":
        lines.append(f"Content-Length: {len(body)}")
    if framing == "chunked":
        lines.append("Transfer-Encoding: chunked")
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


@functools.cache
def packed_bodies() -> list[tuple[str, bytes]]:
    """Content-Encoding and body: 400 MB that come as a few hundred bytes to 400 kB."""
    once = gzip.compress(b" " * 400_000_000, 1, mtime=0)
    twice = gzip.compress(once, mtime=0)
    return [("gzip", once), ("gzip, gzip", twice), ("gzip, gzip, gzip", gzip.compress(twice, mtime=0)), ("gzip", twice)]


@st.composite
def answers(draw: st.DrawFn, samples: Sequence[Any]) -> bytes:
    if draw(st.integers(0, 99)) == 0:
        encoding, body = draw(st.sampled_from(packed_bodies()))
        return answer(body, headers=[f"Content-Encoding: {encoding}"])
    tree = draw(st.sampled_from([*samples, *samples, REFUSED]).flatmap(edited))
    body, headers = dumped(tree, draw(st.booleans())), draw(st.lists(st.sampled_from(HEADERS), max_size=1))
    if draw(st.integers(0, 4)) == 0:
        body = draw(damaged(body))
    if draw(st.integers(0, 4)) == 0:
        body, headers = gzip.compress(body, 1, mtime=0), [*headers, "Content-Encoding: gzip"]
    return answer(
        body, draw(st.sampled_from(STATUSES)), headers, draw(st.sampled_from(["length", "length", "close", "chunked"]))
    )


def answer_inputs(samples: Sequence[Any]) -> Callable[[Sequence[bytes]], Strategy]:
    return lambda corpus: from_corpus(corpus, answers(samples))
