"""Two different texts are never one where a leak is looked for, and one text is one however it is written."""

import json
import time
from pathlib import Path
from typing import Any

from igpo_core.config import QuestionFiles
from igpo_core.data import identity_key
from tasks.data.reading import read
from tasks.data.validation import Validation, validate

PASSAGES = [
    {"passage_id": "p1", "title": "Brenn", "text": "Brenn is a market town whose bridge was built by Ida Holm."}
]

DIFFERENT = [
    ("Who designed the language C?", "Who designed the language C++?"),
    ("Who designed the language C#?", "Who designed the language F#?"),
    ("What is 12 + 7?", "What is 12 - 7?"),
    ("What is (2+3)*4?", "What is 2+3*4?"),
    ("What is 5!?", "What is 5?"),
    ("What is 3.5 doubled?", "What is 35 doubled?"),
    ("How long is 5' in cm?", 'How long is 5" in cm?'),
    ("Which mission logged -40 degrees?", "Which mission logged 40 degrees?"),
    ("What costs €5?", "What costs £5?"),
    ("What does [] mean in Python?", "What does {} mean in Python?"),
    ("What does ! do in C?", "What does ? do in C?"),
    ("What is __init__ for?", "What is init for?"),
    ("What does A∪B have?", "What does A∩B have?"),
    ("What does 🦊 stand for in the app?", "What does 🐢 stand for in the app?"),
    ("What does 👍🏻 say?", "What does 👍🏿 say?"),
    ("Whose flag is 🇳🇴?", "Whose flag is 🇮🇸?"),
    ("कि का अर्थ?", "की का अर्थ?"),
    ("গান কী?", "গানা কী?"),
    ("தமிழ் எங்கே?", "தமிழி எங்கே?"),
    ("กา คืออะไร", "กำ คืออะไร"),
    ("かき とは", "がき とは"),
    ("Was ist die Maße?", "Was ist die Masse?"),
    ("What is a in physics?", "What is α in physics?"),
    ("Who was Ана?", "Who was Aнa?"),
    ("Qué es el ano?", "Qué es el año?"),
]
SAME = [
    ("Who designed the bridge?", "who designed the bridge"),
    ("Who  built “it” (then)?", 'who built "it" then'),
    ("Ｗｈｏ ｐａｉｄ？", "Who paid?"),
    ("Where is the Cafe\u0301?", "Where is the Caf\u00e9"),
    ("Qui a gagné ?", "Qui a gagné?"),
    ("दिल्ली कहाँ है।", "दिल्ली कहाँ है"),
    ("黄山在哪个省？", "黄山在哪个省?"),
    ("Who sank\u200b?", "Who sank?"),
]


def checked(tmp_path: Path, rows: list[dict[str, Any]]) -> Validation:
    for name, table in (("q.jsonl", rows), ("c.jsonl", PASSAGES)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in table))
    config = QuestionFiles.model_validate(
        {"questions": [{"path": str(tmp_path / "q.jsonl")}], "corpus": [str(tmp_path / "c.jsonl")]}
    )
    tables = read(config)
    return validate(tables.questions, tables.corpus, config, tmp_path / "docs")


def both_splits(pairs: list[tuple[str, str]], word: str) -> list[dict[str, Any]]:
    return [
        {"id": f"{word}{number}-{split}", "question": text, "answers": ["Ida Holm"], "split": split}
        for number, pair in enumerate(pairs)
        for split, text in zip(("train", "test"), pair, strict=True)
    ]


def test_different_questions_are_kept_and_a_repeat_is_not(tmp_path: Path) -> None:
    found = checked(tmp_path, [*both_splits(DIFFERENT, "d"), *both_splits(SAME, "s")])
    kept = set(found.questions["id"])
    assert [pair for number, pair in enumerate(DIFFERENT) if f"d{number}-train" not in kept] == []
    assert [pair for number, pair in enumerate(SAME) if f"s{number}-train" in kept] == []
    assert found.counts == {"questions: question in one split": len(SAME)}


def test_ids_that_differ_in_a_sign_are_two(tmp_path: Path) -> None:
    names = ["c", "C", "c++", "c#", "कि", "की", "🦊", "🐢", "а", "a", "1", "1.0", "-1"]
    rows = [
        {"id": name, "question": f"Who is number {number}?", "answers": ["Ida"], "split": "train"}
        for number, name in enumerate(names)
    ]
    found = checked(tmp_path, rows)
    assert found.questions["id"].tolist() == names and found.counts == {}


def test_an_answer_is_stated_only_by_its_own_text(tmp_path: Path) -> None:
    """(text of the question, answer, whether it is given out)."""
    cases = [
        ("Which was later? Answer: C++ came first", "C#", False),
        ("Which was later? Answer: C++", "C++", True),
        ("How cold? The answer is -40 or less", "40", False),
        ("How cold? The answer is -40 degrees", "-40", True),
        ("How much? Answer: 3.5", "3", False),
        ("Which animal? Answer: 🐢", "🦊", False),
        ("Which animal? Answer: 🦊", "🦊", True),
        ("Who? Answer: **Ida Holm**", "Ida Holm", True),
        ("कौन? Answer: की", "कि", False),
        ("谁？Answer: 黄山在安徽", "黄山", True),
    ]
    rows = [
        {"id": f"s{number}", "question": text, "answers": [answer], "split": "train"}
        for number, (text, answer, _) in enumerate(cases)
    ]
    found = checked(tmp_path, rows)
    kept = set(found.questions["id"])
    assert [f"s{number}" not in kept for number in range(len(cases))] == [stated for *_, stated in cases]


def test_answers_that_the_metric_makes_one_are_told(tmp_path: Path) -> None:
    """f1_score deletes signs: "C" earns all for "C#". The two rows of each pair are told of, and nothing else."""
    from igpo_core.rewards.outcome import exact_match

    pairs = [("C", "C#"), ("40", "-40"), ("3.5", "35"), ("1/2", "12"), ("vitamin", "vitamin A")]
    assert all(exact_match(first, [second]) == 1.0 for first, second in pairs)
    answers = [*(answer for pair in pairs for answer in pair), "Ida Holm", "ida holm."]
    rows = [
        {"id": f"a{number}", "question": f"What of {number}?", "answers": [answer], "split": "train"}
        for number, answer in enumerate(answers)
    ]
    found = checked(tmp_path, rows)
    told = [warning for warning in found.warnings if "name of its own" in warning]
    assert len(told) == 1 and told[0].startswith(f"questions: {2 * len(pairs)} rows")


def test_a_long_number_takes_no_time() -> None:
    started = time.process_time()
    assert identity_key("9" * 200_000 + "!") == "9" * 200_000 + "!"
    assert identity_key("9" * 200_000 + "a!") == "9" * 200_000 + "a"
    assert time.process_time() - started < 5
