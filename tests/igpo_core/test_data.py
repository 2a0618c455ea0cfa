"""Every format in, one schema out; what is wrong with a file raises, what is wrong with a row is noted on the row."""

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_core.data import CORPUS_SCHEMA, QUESTION_SCHEMA, content_hash, load_corpus, load_questions
from igpo_core.errors import DataError


def write(path: Path, content: Any) -> Path:
    """JSON for a list, JSON Lines for a tuple, else the text or bytes as they are."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif isinstance(content, tuple):
        path.write_text("\n".join(json.dumps(row) for row in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def only(frame: pandas.DataFrame) -> dict[str, Any]:
    """The one row of a frame, lists as lists and missing values as None."""
    assert len(frame) == 1
    row = frame.iloc[0].to_dict()
    return {k: list(v) if isinstance(v, list) else None if pandas.isna(v) else v for k, v in row.items()}


# --------------------------------------------------------------------------------------------- formats, by hand

HOTPOT = {
    "_id": "5a8b",
    "question": " Which river flows past the birthplace of Marie Curie? ",
    "answer": "Vistula",
    "supporting_facts": [["Marie Curie", 0], ["Warsaw", 0], ["Warsaw", 1]],
    "context": [["Marie Curie", ["She was born in Warsaw.", " She won twice."]], ["Warsaw", ["On the Vistula."]]],
    "type": "bridge",
    "level": "hard",
}
MUSIQUE = {
    "id": "3hop1__1_2_3",
    "question": "Q?",
    "answer": "US",
    "answer_aliases": ["United States", "US"],
    "answerable": False,
    "paragraphs": [
        {"idx": 0, "title": "A", "paragraph_text": "Text a.", "is_supporting": True},
        {"idx": 1, "title": "B", "paragraph_text": "Text b.", "is_supporting": False},
    ],
    "question_decomposition": [],
}
AUTHORS = {
    "data_source": "tq",
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}],
    "ability": "search",
    "reward_model": {"ground_truth": "Ann<|answer_split|>Anna<|answer_split|>Ann", "style": "unknown"},
    "extra_info": {"index": "tq_bt_3133", "split": "dev"},
}


def test_hotpotqa(tmp_path: Path) -> None:
    for name, content in (("a.json", [HOTPOT]), ("b.json", (HOTPOT,)), ("c.txt", [HOTPOT])):
        row = only(load_questions(write(tmp_path / name, content), split="train"))
        assert row == {
            "id": "5a8b", "source": "hotpotqa", "split": "train", "answers": ["Vistula"], "hops": 2,
            "question": "Which river flows past the birthplace of Marie Curie?", "answerable": True,
            "supporting_titles": ["Marie Curie", "Warsaw"], "facts": None, "distractors": [], "defect": None,
        }  # fmt: skip


def test_hotpotqa_passages(tmp_path: Path) -> None:
    again = {**HOTPOT, "_id": "other"}
    corpus = load_corpus(write(tmp_path / "a.json", [HOTPOT, again]))  # the same two paragraphs twice
    assert corpus["title"].tolist() == ["Marie Curie", "Warsaw"]
    assert corpus["text"].tolist() == ["She was born in Warsaw. She won twice.", "On the Vistula."]
    assert corpus["passage_id"].is_unique and corpus["defect"].isna().all()


@pytest.mark.parametrize(("kind", "hops"), [("bridge_comparison", 4), ("compositional", 2), ("inference", 2)])
def test_2wikimultihopqa(tmp_path: Path, kind: str, hops: int) -> None:
    content = {**HOTPOT, "type": kind, "evidences": [["Marie Curie", "place of birth", "Warsaw"]]}
    row = only(load_questions(write(tmp_path / "a.json", [content])))
    assert (row["source"], row["hops"], row["split"]) == ("2wikimultihopqa", hops, None)


def test_2wikimultihopqas_names_of_entities(tmp_path: Path) -> None:
    """What the official evaluation v1.1 accepts: the answer, and aliases and demonyms of its answer_id."""
    two_wiki = {**HOTPOT, "answer": "Poland", "evidences": [["Warsaw", "country", "Poland"]]}
    rows = [
        {**two_wiki, "_id": "a", "answer_id": "Q36"},
        {**two_wiki, "_id": "b", "answer_id": "Q1"},  # no other names
        {**two_wiki, "_id": "c", "answer_id": None},  # a date or a number is no entity
        {**two_wiki, "_id": "d"},
    ]
    path = write(tmp_path / "dev.json", rows)
    assert load_questions(path)["answers"].tolist() == [["Poland"]] * 4  # the file of names is not there
    names = {"Q_id": "Q36", "aliases": ["Republic of Poland", "Poland"], "demonyms": ["Pole", "Polish"]}
    write(tmp_path / "id_aliases.json", ({"Q_id": "Q2", "aliases": ["x"], "demonyms": []}, names))
    found = load_questions(path)
    assert found["answers"].tolist() == [["Poland", "Republic of Poland", "Pole", "Polish"], *[["Poland"]] * 3]
    assert found["defect"].isna().all()
    hotpot = write(tmp_path / "hotpot.json", [{**HOTPOT, "answer_id": "Q36"}])
    assert load_questions(hotpot)["answers"].tolist() == [["Vistula"]]
    write(tmp_path / "id_aliases.json", (names, {**names, "aliases": 7}))
    with pytest.raises(DataError, match=r"id_aliases.json: aliases: is int 7, not a list of texts \[.* line 2\]"):
        load_questions(path)


def test_musique(tmp_path: Path) -> None:
    path = write(tmp_path / "musique_ans_v1.0_dev.jsonl", (MUSIQUE, {**MUSIQUE, "id": "2hop__4_5"}))
    frame = load_questions(path, split="dev")
    assert frame["hops"].tolist() == [3, 2]
    row = only(frame[:1])
    assert row["answers"] == ["US", "United States"]
    assert (row["supporting_titles"], row["answerable"], row["source"]) == (["A"], False, "musique")
    assert load_corpus(path)["text"].tolist() == ["Text a.", "Text b."]


def test_the_hubs_parquet_form_is_read_as_the_official_file(tmp_path: Path) -> None:
    def columns(pairs: list[list[Any]], second: str) -> dict[str, list[Any]]:
        return {"title": [first for first, _ in pairs], second: [other for _, other in pairs]}

    official = [HOTPOT, {**HOTPOT, "_id": "other"}]
    hub = [
        {
            "id": row["_id"],
            **{name: value for name, value in row.items() if name != "_id"},
            "context": columns(row["context"], "sentences"),
            "supporting_facts": columns(row["supporting_facts"], "sent_id"),
        }
        for row in official
    ]
    pandas.DataFrame(hub).to_parquet(tmp_path / "hub.parquet")
    path = write(tmp_path / "official.json", official)
    for load in (load_questions, load_corpus):
        assert content_hash(load(tmp_path / "hub.parquet")) == content_hash(load(path))
    broken = [{**hub[0], "context": {"title": ["A"], "sentences": []}}]
    pandas.DataFrame(broken).to_parquet(tmp_path / "broken.parquet")
    assert "context: is dict, not a list" in load_corpus(tmp_path / "broken.parquet")["defect"][0]


def test_the_authors_parquet(tmp_path: Path) -> None:
    rows = [AUTHORS, AUTHORS, {**AUTHORS, "data_source": "2wiki"}, {**AUTHORS, "data_source": "Bamboogle"}]
    pandas.DataFrame(rows).to_parquet(tmp_path / "test.bin")
    frame = load_questions(tmp_path / "test.bin")
    assert frame["id"].tolist() == ["tq_bt_3133", "tq_bt_3133#2", "tq_bt_3133#3", "tq_bt_3133#4"]
    assert frame["source"].tolist() == ["triviaqa", "triviaqa", "2wikimultihopqa", "bamboogle"]
    row = only(frame[:1])
    assert (row["question"], row["answers"], row["split"]) == ("Who?", ["Ann", "Anna"], "dev")
    # extra_info.split is where the row was drawn from: a split that is asked for wins
    assert load_questions(tmp_path / "test.bin", split="test")["split"].unique().tolist() == ["test"]


def test_plain_files_of_every_container_are_one_table(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "question": "Where?", "answers": ["Here", "There"], "hops": 2, "supporting_titles": ["T"]},
        {"id": "b", "question": "Is NA text, too?", "answers": ["NA"]},
    ]
    pandas.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    text = 'id,question,answers,hops,supporting_titles\na,Where?,Here|There,2,"[""T""]"\nb,"Is NA text, too?",NA,,\n'
    frames = [
        load_questions(path)
        for path in (
            write(tmp_path / "a.json", rows),
            write(tmp_path / "a.jsonl", tuple(rows)),
            write(tmp_path / "lines.json", tuple(rows)),
            write(tmp_path / "a.csv", text),
            write(tmp_path / "windows.csv", b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()),
            tmp_path / "a.parquet",
        )
    ]
    assert len({content_hash(frame) for frame in frames}) == 1
    for frame in frames:
        assert list(frame.columns) == [*QUESTION_SCHEMA, "defect"]
        assert frame["defect"].isna().all()
        assert frame["answers"].tolist() == [["Here", "There"], ["NA"]]
        assert frame["hops"].tolist() == [2, pandas.NA]
        assert frame["source"].tolist() == ["custom", "custom"]


def test_a_line_separator_inside_a_json_string_is_no_line_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": 1, "question": "One\u2028two?", "answers": ["x"]}\n\n')
    row = only(load_questions(path))
    assert (row["question"], row["id"]) == ("One\u2028two?", "1")


def test_plain_corpus(tmp_path: Path) -> None:
    rows = [{"passage_id": "p", "title": "T", "text": "x" * 200_000}]  # longer than the csv module's usual limit
    frames = [
        load_corpus(write(tmp_path / "a.jsonl", tuple(rows))),
        load_corpus(write(tmp_path / "a.csv", f"passage_id,title,text\np,T,{'x' * 200_000}\n")),
    ]
    assert [list(frame.columns) for frame in frames] == [[*CORPUS_SCHEMA, "defect"]] * 2
    assert content_hash(frames[0]) == content_hash(frames[1])


# ------------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ("[]", "holds no rows"),
        ("id,question,answers\n", "holds no rows"),
        ("[1, 2]", "none of its 2 rows is an object"),
        ('{"id": 1, "question": "q", "answers": ["a"]}\n{"id": 2,', "line 2: malformed JSON"),
        ('[{"id": 1},\n{"id" 2}]', "line 2: malformed JSON array"),
        ("[" * 100_000, "malformed JSON array"),
        ('id,question,answers\n1,"open', "line 2: malformed CSV"),
        ("id,question,id\n1,2,3\n", "repeated column names"),
        (b"\xff\xfe\x00a", "neither parquet nor UTF-8 text (byte 0)"),
        (b"PAR1 and then nothing of the kind", "damaged parquet"),
        ("id,question\n1,q\n", "needs the columns ['answers'], which are missing; it has ['id', 'question']"),
        ([{"id": 1, "question": "q", "answers": ["a"], "anwser": 1}], "unknown columns ['anwser']"),
        ([{k: v for k, v in HOTPOT.items() if k != "answer"}], "files without answers cannot be used"),
        ([{k: v for k, v in MUSIQUE.items() if k != "answer"}], "files without answers cannot be used"),
        ([{"data_source": "nq", "prompt": []}], "needs the columns ['reward_model']"),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "needs the columns ['answers', 'id', 'question']",
        ),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path / "given", content)
    with pytest.raises(DataError) as raised:
        load_questions(path)
    assert message in str(raised.value) and str(path) in str(raised.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            load_questions(path)
        with pytest.raises(DataError, match="cannot be read"):
            load_corpus(path)


def test_a_bad_corpus_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs the columns \['text', 'title'\]"):
        load_corpus(write(tmp_path / "a.csv", "passage_id\n1\n"))
    with pytest.raises(DataError, match=r"unknown columns \['url'\]"):
        load_corpus(write(tmp_path / "b.csv", "passage_id,title,text,url\n1,a,b,c\n"))


# -------------------------------------------------------------------------------------------------- bad rows

GOOD = {"id": "good", "question": "Q?", "answers": ["A"]}


@pytest.mark.parametrize(
    ("row", "defect"),
    [
        ({"id": "x", "answers": ["A"]}, "question: is missing"),
        ({"id": "x", "question": None, "answers": ["A"]}, "question: is missing"),
        ({"question": "Q?", "answers": ["A"]}, "id: is missing"),
        ({"id": "  ", "question": "Q?", "answers": ["A"]}, "id: is empty"),
        ({"id": True, "question": "Q?", "answers": ["A"]}, "id: is bool True, not text"),
        ({"id": "x", "question": 7, "answers": ["A"]}, "question: is int 7, not text"),
        ({"id": "x", "question": "Q?", "answers": {"a": 1}}, "answers: is dict {'a': 1}, not a list of texts"),
        ({"id": "x", "question": "Q?", "answers": ["A", 3]}, "answers[1]: is int 3, not text"),
        ({"id": "x", "question": "Q?", "answers": "[A"}, "answers: begins with [ but is no JSON list: str '[A'"),
        ({"id": "x", "question": "\ud800?", "answers": ["A"]}, "question: holds half of a character"),
        ({"id": "x", "question": "Q?", "answers": ["A"], "hops": 0}, "hops: is int 0, not a whole number from 1"),
        ({"id": "x", "question": "Q?", "answers": ["A"], "hops": 1e999}, "hops: is float inf, not a whole number"),
        ({"id": "x", "question": "Q?", "answers": ["A"], "answerable": "perhaps"}, "answerable: is str 'perhaps'"),
        ({"id": "x", "question": "Q?", "answers": ["A"], "facts": "[]"}, "facts: is no JSON object"),
        ([1, 2], "row: holds list [1, 2], not an object with named fields"),
    ],
)
def test_a_bad_row_is_kept_with_its_defect(tmp_path: Path, row: Any, defect: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps(item) for item in (GOOD, row)))
    frame = load_questions(path)
    assert frame["defect"].isna().tolist() == [True, False]
    assert frame["defect"][1].startswith(defect) and frame["defect"][1].endswith("[q.jsonl line 2]")
    assert frame["id"][1]  # a row without an id is known by its place


def test_a_csv_record_of_another_width_is_a_bad_row(tmp_path: Path) -> None:
    frame = load_questions(write(tmp_path / "q.csv", "id,question,answers\n1,Q?,A\n2,Q, and so on?,B\n3,R?,C\n"))
    assert frame["defect"].isna().tolist() == [True, False, True]
    assert "q.csv line 3" in frame["defect"][1]


@pytest.mark.parametrize(
    ("change", "defect"),
    [
        ({"supporting_facts": "none"}, "supporting_facts: is str, not a list"),
        ({"supporting_facts": [["T", 0], 5]}, "supporting_facts[1]: is not [title, sentence number]"),
        ({"answer": None}, "answer: is missing"),
    ],
)
def test_a_bad_official_row(tmp_path: Path, change: dict[str, Any], defect: str) -> None:
    frame = load_questions(write(tmp_path / "q.json", [HOTPOT, {**HOTPOT, **change}]))
    assert frame["defect"].isna().tolist() == [True, False]
    assert frame["defect"][1].startswith(defect)


@pytest.mark.parametrize(
    ("change", "defect"),
    [
        ({"prompt": []}, "prompt: has no user message"),
        ({"prompt": "Who?"}, "prompt: is str, not a list"),
        ({"reward_model": {"ground_truth": None}}, "reward_model.ground_truth: is NoneType None, not text"),
        ({"reward_model": None}, "reward_model: is missing"),
    ],
)
def test_a_bad_row_of_the_authors(tmp_path: Path, change: dict[str, Any], defect: str) -> None:
    frame = load_questions(write(tmp_path / "q.jsonl", (AUTHORS, {**AUTHORS, **change})))
    assert frame["defect"].isna().tolist() == [True, False]
    assert defect in frame["defect"][1]


def test_bad_paragraphs_leave_the_good_ones(tmp_path: Path) -> None:
    rows = [
        {**HOTPOT, "context": [["T", ["Good."]], ["no sentences"], ["U", [3]]]},
        {**HOTPOT, "context": "none"},
    ]
    corpus = load_corpus(write(tmp_path / "q.json", rows))
    assert corpus["defect"].isna().tolist() == [True, False, False, False]
    assert corpus["text"][0] == "Good."
    assert corpus["defect"][2] == "sentence 0: is int 3, not text [q.json row 1 context[2]]"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text(st.characters(categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["id", "question", "answers", "split", "hops", "supporting_titles", "answerable", "facts", "distractors"]
few = settings(max_examples=40, deadline=None)  # each writes and reads files
OFFICIAL = ["_id", "question", "answer", "supporting_facts", "context", "type"]


@few
@given(rows=st.lists(st.dictionaries(st.sampled_from(NAMES), values), min_size=1, max_size=4))
def test_any_plain_row_is_read_or_noted(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    check_any(tmp_path_factory, [GOOD, *rows])


@few
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(OFFICIAL), values), min_size=1, max_size=4),
    evidences=st.booleans(),
)
def test_any_official_row_is_read_or_noted(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], evidences: bool
) -> None:
    path = check_any(tmp_path_factory, [{**HOTPOT, **({"evidences": []} if evidences else {})}, *rows])
    corpus = load_corpus(path)
    corpus.to_parquet(path.with_suffix(".parquet"))
    assert corpus["defect"].isna().tolist()[:2] == [True, True]


@few
@given(rows=st.lists(st.dictionaries(st.sampled_from(sorted(AUTHORS)), values), min_size=1, max_size=4))
def test_any_row_of_the_authors_is_read_or_noted(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    check_any(tmp_path_factory, [AUTHORS, *rows])


def check_any(factory: pytest.TempPathFactory, rows: list[Any]) -> Path:
    """No row is lost, the good first one is untouched, and what was read can be stored and hashed."""
    path = write(factory.mktemp("any") / "q.jsonl", tuple(rows))
    frame = load_questions(path)
    assert len(frame) == len(rows)
    assert pandas.isna(frame["defect"][0])
    for row in frame[frame["defect"].isna()].itertuples():
        assert isinstance(row.question, str) and all(isinstance(answer, str) for answer in row.answers)
    stored = path.with_suffix(".stored")
    frame.drop(columns="defect").to_parquet(stored)
    assert content_hash(pandas.read_parquet(stored)) == content_hash(frame)
    return path


@few
@given(text=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = write(tmp_path_factory.mktemp("any") / "file", b"id,question,answers\n" + text)
    try:
        frame = load_questions(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert len(frame) >= 1
