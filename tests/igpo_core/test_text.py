"""One Unicode form: composed letters, nothing that nobody sees, and nothing lost that is seen."""

import random
import re
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from igpo_core.data import load_corpus, load_questions
from igpo_core.data.schema import identity_key
from igpo_core.environments.searching import search_for
from igpo_core.retrieval import Passage
from igpo_core.rewards.outcome import exact_match, f1_score
from igpo_core.text import MARKS, composed, count_words, one_form, windows
from igpo_core.trajectory import Final, Malformed

UNSEEN = {
    "left-to-right mark": "\u200eBrenn", "zero-width space": "Brenn\u200b", "word joiner": "\u2060Brenn", "BOM": "\ufeffBrenn",
    "soft hyphen": "Bre\u00adnn", "joiner": "Bre\u200dnn", "joiner at the end": "Brenn\u200d", "non-joiner": "\u200cBrenn",
    "variation selector": "Brenn\ufe0f", "tags": "Brenn\U000e0041\U000e0042", "isolates": "\u2067Brenn\u2069", "NUL": "Brenn\x00",
    "delete": "Bre\x7fnn", "C1 control": "Brenn\x9c", "grapheme joiner": "Bre\u034fnn", "Hangul filler": "Brenn\u3164",
    "Braille blank": "\u2800Brenn", "object": "Brenn\ufffc", "no-break space": "\u00a0Brenn\u202f",
}  # fmt: skip
SEEN = {
    "Persian": "می\u200cخواهم", "Hindi": "क्\u200dष", "Malayalam": "ന്\u200d", "family": "👩\u200d👩\u200d👧🏽", "heart": "❤\ufe0f",
    "key": "1\ufe0f\u20e3", "England": "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "Han": "葛\U000e0100",
    "Thai": "กำ", "signs": "C++ ≠ C#", "line break": "a\nb",
}  # fmt: skip


@pytest.mark.parametrize("gold", UNSEEN.values(), ids=UNSEEN)
def test_what_nobody_sees_is_no_part_of_an_answer(gold: str) -> None:
    assert f1_score("Brenn", [gold]) == 1.0
    assert exact_match(gold, ["Brenn"]) == 1.0


@pytest.mark.parametrize("text", SEEN.values(), ids=SEEN)
def test_what_is_seen_stays(tmp_path: Path, text: str) -> None:
    import json

    row = {"id": "a", "question": f"What is {text}?", "answers": [text]}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    frame = load_questions(tmp_path / "q.jsonl", split="train")
    composed = unicodedata.normalize("NFC", text)
    assert (frame["question"][0], frame["answers"][0]) == (f"What is {composed}?", [composed])


@pytest.mark.parametrize(
    "text", ["\u200b", "\u200d", "\ufe0f", "\u3164", "\u2800\u200b", "\U000e0041", "\x00", "\u00a0\n"]
)
def test_an_answer_of_nothing_that_is_seen_is_no_answer(chat_policy: Any, text: str) -> None:
    chat = chat_policy.protocol
    for body in (
        f"<answer>{text}</answer>",
        f'<tool_call>{{"name": "search", "arguments": {{"query": "{text}"}}}}</tool_call>',
    ):
        ids = [*chat._encode(f"<think>\nx\n</think>\n{body}"), *chat.stop_ids]
        assert isinstance(chat.parse(ids), Malformed)


def test_what_a_policy_writes_is_read_in_the_one_form_and_its_tokens_stay(chat_policy: Any) -> None:
    chat = chat_policy.protocol
    for opening, closing, read in (
        ("<answer>", "</answer>", Final("Beyonc\u00e9")),
        ('<tool_call>{"name": "search", "arguments": {"query": "', '"}}</tool_call>', search_for("Beyonc\u00e9")),
    ):
        text = f"<think>\nx\n</think>\n{opening}\u200bBey\u00adonc\u00e9\u200e{closing}"
        ids = [*chat._encode(text), *chat.stop_ids]
        before = list(ids)
        assert chat.parse(ids) == read
        assert ids == before and "\u200b" in chat.decode(ids)


def test_titles_and_passages_are_in_the_one_form(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(
        '{"passage_id": "a", "title": "Cafe\\u0301\\u200b", "text": "Mu\\u0308n\\u00adchen \\ufeff"}'
    )
    frame = load_corpus(tmp_path / "c.jsonl")
    assert Passage("a", frame["title"][0], frame["text"][0]) == Passage("a", "Caf\u00e9", "M\u00fcnchen")


def test_blanks_inside_a_text_take_no_time() -> None:
    """A regular expression that looks for the end behind every blank took an hour for a long answer of a web search."""
    started = time.process_time()
    text = "é" + " " * 500_000 + "x"
    assert one_form(f"\u3164 {text}\u2800 ") == text
    assert time.process_time() - started < 5


def test_a_long_text_in_parts_that_overlap() -> None:
    """13 words in parts of 6 that share 2 or more: 7 words are beyond the first part, each further part brings at most 4, so two
    more parts, which begin at 0, 3 (7 by 2, rounded down) and 7."""
    words = [f"w{number}" for number in range(13)]
    found = windows("  ".join(words), 6, 2)
    assert found == [" ".join(words[:6]), " ".join(words[3:9]), " ".join(words[7:])]
    assert windows("a  b\nc", 3, 1) == ["a  b\nc"]
    with pytest.raises(ValueError, match="below"):
        windows("a b c", 2, 2)


@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_what_is_no_longer_than_the_overlap_and_one_word_stands_in_one_part(overlap: int) -> None:
    for count in range(1, 40):
        words = [f"w{number}" for number in range(count)]
        found = windows(" ".join(words), 5, overlap)
        for start in range(count - overlap):
            assert any(" ".join(words[start : start + overlap + 1]) in part for part in found)
        assert all(count_words(part) == min(5, count) for part in found)


def test_parts_of_a_script_without_spaces() -> None:
    """Nine words by two characters (the fifth is 部 with its comma); parts of four that share one begin at words 0, 2 and 5."""
    text = "黄山位于安徽省南部，是著名的旅游景点。"
    assert count_words(text) == 9
    assert windows(text, 4, 1) == ["黄山位于安徽省南", "安徽省南部，是著", "是著名的旅游景点。"]
    assert windows("abc 東京東京東京", 2, 1) == ["abc 東京", "東京東京", "東京東京"]


def test_marks_in_any_number_and_order_are_composed_in_linear_time() -> None:
    """Behind a letter each mark is moved past those of a higher class; 160,000 took 26 s, all of it in one call."""
    marks = [chr(code) for code in range(0x110000) if unicodedata.combining(chr(code))]
    assert not re.sub(f"[{MARKS}]", "", "".join(marks))
    draws = random.Random(0)
    others = ["a", "\u00e9", "\u0344", "\u093e", "\u0f73", "\u1e9b\u0323", "\ua69e", " "]
    for length in (1, 29, 30, 31, 32, 200):
        for _ in range(50):
            text = "q" + "".join(draws.choice([*draws.sample(marks, 8), draws.choice(others)]) for _ in range(length))
            assert composed(text) == unicodedata.normalize("NFC", text)
        runs = "\u00e9" + "".join(draws.choice(marks) for _ in range(length))
        assert composed(runs) == unicodedata.normalize("NFC", runs)
    started = time.monotonic()
    for read in (one_form, identity_key):
        assert len(read("q" + "\u0301\u05b0" * 80_000)) == 160_001
    assert time.monotonic() - started < 10
