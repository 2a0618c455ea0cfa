"""What both synthetic worlds share: the split of a text, bounded drawing, the search over a question's own facts."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest

from igpo_core.config import LookupWorld
from igpo_core.environments.synthetic import (
    SPLITS,
    SyntheticSearch,
    draw_in_split,
    nested_of,
    observe,
    rows,
    split_of,
)
from igpo_core.errors import ConfigError, DataError
from igpo_core.trajectory import Question
from tests.worlds import searched

QUESTION = Question(
    id="lookup-dev-00007",
    source="lookup",
    split="dev",
    text="question : who is the rival of the boss of F5 ?",
    answers=("F2",),
    hops=2,
    facts={"boss of F5": "boss of F5 is F9 .", "rival of F9": "rival of F9 is F2 ."},
    distractors=("father of F9 is F1 .", "sister of F3 is F5 .", "doctor of F1 is F3 ."),
)


@dataclass(frozen=True)
class OneText:
    text: str


def test_relations_are_nested_outermost_first() -> None:
    assert nested_of(("boss",), "F5") == "the boss of F5"
    assert nested_of(("boss", "rival", "doctor"), "F5") == "the doctor of the rival of the boss of F5"


# Last decimal digit of `printf %s TEXT | sha256sum`, by bc: six 0, eleven 1, abc 5, four 4.
@pytest.mark.parametrize(("text", "split"), [("six", "dev"), ("eleven", "test"), ("abc", "train"), ("four", "train")])
def test_the_split_of_a_text_is_fixed_across_processes(text: str, split: str) -> None:
    assert split_of(text) == split


def test_a_tenth_of_the_texts_is_dev_and_a_tenth_test() -> None:
    counts = Counter(split_of(f"question {number}") for number in range(5000))
    # Standard deviation of a count: sqrt(5000 * 0.1 * 0.9) = 21.
    assert abs(counts["dev"] - 500) < 85 and abs(counts["test"] - 500) < 85


def test_a_split_that_no_text_falls_into_is_an_error_with_a_remedy() -> None:
    only = OneText("question : who is the boss of F0 ?")
    home = split_of(only.text)
    assert draw_in_split(home, lambda: only, "data.names=1") is only
    for split in set(SPLITS) - {home}:
        with pytest.raises(ConfigError, match=rf"'{split}' cannot be filled.*data\.names=1.*raise data\.names"):
            draw_in_split(split, lambda: only, "data.names=1")


def test_drawing_goes_on_until_a_text_falls_into_the_split() -> None:
    texts = iter([OneText("abc"), OneText("eleven"), OneText("six"), OneText("never drawn")])
    assert draw_in_split("dev", lambda: next(texts), "").text == "six"
    assert next(texts).text == "never drawn"


def test_rows_come_split_by_split() -> None:
    expected = [("train", 0), ("train", 1), ("dev", 0), ("test", 0), ("test", 1)]
    assert list(rows(LookupWorld(train=2, dev=1, test=2))) == expected


def test_a_search_finds_its_own_fact_and_place_in_the_chain() -> None:
    tool = SyntheticSearch([QUESTION], seed=0)
    found = searched(tool, QUESTION, "rival of F9", "boss of F9", " boss  of F5 ")
    assert [(one.text, one.label) for one in found] == [
        ("rival of F9 is F2 .", "hop_2"),
        ("no result .", "miss"),
        ("boss of F5 is F9 .", "hop_1"),  # spacing does not count
    ]


def test_distractors_follow_the_best_match_and_depend_on_the_question_and_the_query_alone() -> None:
    shown = set()
    for query, first in [
        ("boss of F5", "boss of F5 is F9 ."),
        ("rival of F9", "rival of F9 is F2 ."),
        ("?", "no result ."),
    ]:
        for number in range(8):
            question = replace(QUESTION, id=str(number))
            text = observe(question, query, seed=0, distractors=2).text
            assert text == observe(question, query, seed=0, distractors=2).text
            facts = [f"{fact.strip()} ." for fact in text.split(".")[:-1]]
            assert facts[0] == first and len(set(facts)) == 3 and set(facts[1:]) < set(QUESTION.distractors)
            shown.add(tuple(facts[1:]))
    assert len(shown) > 1
    by_query = {observe(QUESTION, f"boss of F{n}", 0, 2).text.removeprefix("no result . ") for n in range(10, 20)}
    assert len(by_query) > 1


def test_a_question_without_facts_or_with_too_few_distractors_is_an_error() -> None:
    with pytest.raises(DataError, match=r"lookup-dev-00007.*carries no facts"):
        observe(replace(QUESTION, facts=None), "boss of F5", 0)
    with pytest.raises(DataError, match=r"carries 3 distractors, 4 are asked for: .*data\.distractors"):
        observe(QUESTION, "boss of F5", 0, distractors=4)


def test_questions_are_kept_by_split_in_order() -> None:
    first, second = replace(QUESTION, id="a"), replace(QUESTION, id="b", split="train")
    tool = SyntheticSearch([first, second, QUESTION], seed=0)
    assert list(tool.tasks("dev")) == [first, QUESTION] and list(tool.tasks("train")) == [second]
    assert list(tool.tasks("test")) == []
    with pytest.raises(KeyError, match="validation"):
        tool.tasks("validation")
