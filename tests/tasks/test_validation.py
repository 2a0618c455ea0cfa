"""Validation: exact counts on a table with one row for each way to be bad, and which rows are asked for at all."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from igpo_core.config import LookupWorld, QuestionFiles
from igpo_core.data import load_corpus, load_questions
from tasks.data.reading import read
from tasks.data.validation import Validation, validate
from tests.tasks.tables import GOOD, PASSAGES, files, lines, row


def checked(folder: Path, config: QuestionFiles) -> Validation:
    tables = read(config)
    return validate(tables.questions, tables.corpus, config, folder / "docs")


# ------------------------------------------------------------------------------------------------ validation

# Each bad row with the rules that it must fail; rows around it are good.
BAD: list[tuple[Any, list[str]]] = [
    (row("b1", "train", question=None), ["readable"]),
    (row("b2", "train", answers={"not": "a list"}), ["readable"]),
    ("no object", ["readable"]),
    (row("g1", "train", question="Another with the first one's id?"), ["id unique"]),
    (row("b3", "train", source="wikipedia"), ["source known"]),
    (row("b4", "validation"), ["split known"]),
    (row("b5", None), ["split known"]),
    (row("b6", "train", question="  "), ["question not empty"]),
    (row("b7", "train", question=" ".join(["word"] * 21)), ["question length"]),
    (row("b8", "train", answers=[]), ["answers not empty"]),
    (row("b9", "train", answers=["", " "]), ["answers not empty"]),
    (row("b10", "train", answers=["one two three four five six"]), ["answer length"]),
    (row("b11", "train", supporting_titles=["Warsaw", "Lyon", "Nice"]), ["supporting titles in corpus"]),
    (row("b12", "train", supporting_titles=["Bergen"]), ["supporting titles in corpus"]),  # its passage is bad
    (row("b13", "train", question="question  G3"), ["question in one split"]),  # g3 of test, folded
    (row("b14", "dev", question="QUESTION g3!"), ["question in one split"]),
    (row("b15", "train", question="Question g2"), ["question in one split"]),  # g2 of dev
    (row("b16", "train", question="Who won? The answer is: ANN."), ["answer not stated"]),
    (row("b17", "train", question="Who? <answer>Ann</answer>"), ["answer not stated"]),
    (row("b18", "nowhere", source="x", answers=[]), ["source known", "split known", "answers not empty"]),
]
FINE = [
    row("f1", "train", supporting_titles=["Oslo"], question=" ".join(["word"] * 20)),
    row("f2", "train", answers=["one two three four five", "", "one two three four five six"]),  # one alias is left
    row("f3", "train", question="Is it so? Answer: yes or no", answers=["yes"]),  # options, nothing stated
    row("f4", "train", question="Ann or Bob: who is older?"),  # names its answer: a warning
    row("f5", "train", question="Annual question about Joanna?"),  # no whole word of it: no warning
    row("f6", "train", question="Question g1 ?"),  # repeats g1 within its split: a warning
    row("f7", "dev", question="???"),
    row("f8", "test", question="!"),  # no letters: equal to nothing
]
BAD_PASSAGES: list[tuple[Any, list[str]]] = [
    ({"passage_id": "p1", "title": "Lima", "text": "Repeats the id of a passage."}, ["id unique"]),
    ({"passage_id": "p4", "title": "Bergen", "text": "  "}, ["text not empty"]),
    ({"passage_id": "p5", "title": "", "text": "A text without a title here."}, ["title not empty"]),
    ({"passage_id": "p6", "title": "Rome", "text": 3}, ["readable"]),
]
FINE_PASSAGES = [
    {"passage_id": "p7", "title": "Stub", "text": "Four words are short."},
    {"passage_id": "p8", "title": "Twin", "text": "Oslo is the capital of Norway today."},
    {"passage_id": "p9", "title": "Long", "text": " ".join(f"w{n}" for n in range(13))},
]


@pytest.fixture(scope="module")
def defective(tmp_path_factory: pytest.TempPathFactory) -> Validation:
    folder = tmp_path_factory.mktemp("defective")
    config = files(
        folder,
        [*GOOD, *FINE[:4], *(bad for bad, _ in BAD), *FINE[4:]],
        [*PASSAGES, *(bad for bad, _ in BAD_PASSAGES), *FINE_PASSAGES],
        max_question_words=20,
        max_answer_words=5,
        max_passage_words=12,
    )
    return checked(folder, config)


def test_every_bad_row_is_quarantined_under_its_rules(defective: Validation) -> None:
    entries = [("corpus", rules) for _, rules in BAD_PASSAGES] + [("questions", rules) for _, rules in BAD]
    expected = Counter(f"{table}: {rule}" for table, rules in entries for rule in rules)
    assert defective.counts == dict(expected)
    assert defective.counts["questions: question in one split"] == 3
    assert defective.quarantined == len(BAD) + len(BAD_PASSAGES) == 24
    assert len(defective.quarantine) == expected.total() == 26  # b18 fails three rules
    named = {str(bad["id"]): set(rules) for bad, rules in BAD if isinstance(bad, dict) and bad["id"] != "g1"}
    found: dict[str, set[str]] = {}
    for entry in defective.quarantine[defective.quarantine["table"] == "questions"].itertuples():
        found.setdefault(str(entry.id), set()).add(str(entry.rule))
    assert {name: found[name] for name in named} == named
    assert found["q.jsonl line 10"] == {"readable"}  # the row without an id: its place


def test_good_rows_go_on_in_order(defective: Validation) -> None:
    assert defective.questions["id"].tolist() == [item["id"] for item in [*GOOD, *FINE]]
    assert defective.corpus is not None
    assert defective.corpus["passage_id"].tolist() == ["p1", "p2", "p3", "p7", "p8", "p9", "p9#2"]
    assert defective.corpus["title"][0] == "Warsaw"  # of two passages with one id the first stays
    answers = dict(zip(defective.questions["id"], defective.questions["answers"], strict=True))
    assert answers["f2"] == ["one two three four five"]
    assert "defect" not in defective.questions and "usable" not in defective.questions


def test_the_quarantine_says_what_and_why(defective: Validation) -> None:
    entries = {(e["id"], e["rule"]): e for e in defective.quarantine.to_dict("records")}
    assert entries["b11", "supporting titles in corpus"] == {
        "table": "questions", "id": "b11", "field": "supporting_titles", "rule": "supporting titles in corpus",
        "value": "['Warsaw', 'Lyon', 'Nice']", "found": "missing_titles = 2",
    }  # fmt: skip
    assert entries["b13", "question in one split"]["found"] == "shared_with = test"
    assert entries["b15", "question in one split"]["found"] == "shared_with = dev"
    unreadable = entries["b1", "readable"]
    assert (unreadable["field"], unreadable["found"]) == ("question", "question: is missing [q.jsonl line 8]")
    assert entries["b10", "answer length"]["value"] == "['one two three four five six']"


def test_warnings_are_counted_and_keep_their_rows(defective: Validation) -> None:
    counted = {warning.split("'")[1]: warning.split(" rows")[0] for warning in defective.warnings}
    assert counted == {
        "text not a stub": "corpus: 1",
        "text unique": "corpus: 1",
        # f4, and the two that also state it
        "answer not named in question": "questions: 3",
        "question asked once": "questions: 1",
        # f2 drops two, b9 both, b10 its only one
        "no alias dropped": "questions: 3",
    }


def test_data_docs_show_both_tables(defective: Validation) -> None:
    assert (defective.data_docs / "index.html").is_file()
    pages = sorted(path.name for path in defective.data_docs.glob("validations/**/*.html"))
    assert pages == ["corpus-corpus.html", "questions-questions.html"]
    text = next(defective.data_docs.glob("validations/questions/**/*.html")).read_text()
    assert "question in one split" in text


def test_tables_of_bad_rows_alone(tmp_path: Path) -> None:
    found = checked(tmp_path, files(tmp_path, [row("a", "train", question=3)], [{**PASSAGES[0], "text": 3}]))
    assert found.counts == {"corpus: readable": 1, "questions: readable": 1}
    assert found.questions.empty and found.corpus is not None and found.corpus.empty


def test_a_distractor_that_names_the_answer_is_refused(tmp_path: Path) -> None:
    frame = read(LookupWorld(hops=2, distractors=1, train=3, dev=1, test=1)).questions
    frame.at[1, "distractors"] = [f"boss of F1 is {frame['answers'][1][0]} ."]
    found = validate(frame, None, LookupWorld(hops=2), tmp_path / "docs")
    assert found.counts == {"questions: no distractor names an answer": 1}
    assert found.questions["id"].tolist() == frame["id"].drop(index=1).tolist()


def test_a_generated_task_may_name_its_answer(tmp_path: Path) -> None:
    """7 is a part of "3 + 4 of 7", and no leak."""
    frame = read(LookupWorld(hops=2, train=3, dev=1, test=1)).questions
    frame.at[1, "question"] += f" and {frame['answers'][1][0]} ?"
    found = validate(frame, None, LookupWorld(hops=2), tmp_path / "docs")
    assert found.counts == {} and not [line for line in found.warnings if "named" in line]


def test_fifty_thousand_rows_take_seconds(tmp_path: Path) -> None:
    import time

    one = load_questions(lines(tmp_path / "q.jsonl", [row("q", "train")]))
    frame = one.loc[[0] * 50_000].reset_index(drop=True)
    frame["id"] = frame["question"] = [f"question {number}" for number in range(50_000)]
    corpus = load_corpus(lines(tmp_path / "c.jsonl", PASSAGES))
    started = time.process_time()  # not the clock: other work on the machine does not count
    found = validate(frame, corpus, files(tmp_path / "x", GOOD), tmp_path / "docs")
    assert time.process_time() - started < 20
    assert len(found.questions) == 50_000


# --------------------------------------------------------------------------------------------- choice of rows


def test_rows_that_are_not_asked_for_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        *GOOD,
        row("u", "train", answerable=False, supporting_titles=["Lyon"]),
        row("other", "train", source="popqa"),
        row("odd", "train", source="no such source"),
    ]
    tables = read(files(tmp_path, rows, sources=["nq"]))
    assert tables.questions["id"].tolist() == ["g1", "g2", "g3", "odd"]  # the odd one is left to validation
    assert tables.dropped == {"marked as not answerable": 1, "of another source": 1}
    everything = read(files(tmp_path, rows, only_answerable=False))
    assert len(everything.questions) == 6
    found = validate(everything.questions, everything.corpus, files(tmp_path, rows), tmp_path / "docs")
    assert found.counts == {"questions: source known": 1}  # a row marked not answerable needs no titles


def test_evaluation_rows_become_the_test_split(tmp_path: Path) -> None:
    evaluation = [
        row("e1", "dev", question="Question g2"),  # asked in dev, too: the dev row goes
        row("e2", "train", answerable=False, supporting_titles=["Lyon"]),  # kept, whatever only_answerable says
        # An id of another file's row, and a title that no passage has: evaluation rows need not be answerable.
        row("g4", "dev", supporting_titles=["Lyon"]),
    ]
    more = [*GOOD, row("g4", "train", question="Something else?"), row("g5", "dev")]
    config = files(tmp_path, more, evaluation=lines(tmp_path / "e.jsonl", evaluation))
    tables = read(config)
    assert tables.dropped == {"marked as not answerable": 0, "test row replaced by the evaluation file": 1}
    found = validate(tables.questions, tables.corpus, config, tmp_path / "docs")
    assert found.questions[["id", "split"]].to_numpy().tolist() == [
        ["e1", "test"], ["e2", "test"], ["g4", "test"], ["g1", "train"], ["g5", "dev"]
    ]  # fmt: skip
    assert found.counts == {"questions: question in one split": 1, "questions: id unique": 1}


def test_each_file_gives_its_own_split_to_rows_without_one(tmp_path: Path) -> None:
    several = [
        {"path": lines(tmp_path / "one.jsonl", [row("a", None), row("b", "dev")]), "split": "train"},
        {"path": lines(tmp_path / "two.jsonl", [row("c", None)]), "split": "test"},
    ]
    config = QuestionFiles.model_validate({"questions": several, "corpus": [lines(tmp_path / "c.jsonl", PASSAGES)]})
    assert read(config).questions[["id", "split"]].to_numpy().tolist() == [["a", "train"], ["b", "dev"], ["c", "test"]]


def test_a_passage_of_two_files_is_read_once(tmp_path: Path) -> None:
    """p2 is the same in both; p3 has another text there, which validation then finds under a used id."""
    other = [PASSAGES[1], {**PASSAGES[2], "text": "Oslo was called Christiania."}]
    several = [lines(tmp_path / "one.jsonl", PASSAGES), lines(tmp_path / "two.jsonl", other)]
    config = files(tmp_path, [*GOOD], corpus=several)
    tables = read(config)
    assert tables.corpus is not None
    assert tables.corpus["passage_id"].tolist() == ["p1", "p2", "p3", "p3"]
    assert tables.dropped["passage of an earlier file"] == 1
    assert checked(tmp_path, config).counts == {"corpus: id unique": 1}
