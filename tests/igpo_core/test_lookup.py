"""World `lookup`: the question table, chains that only searching reveals, distractors, the demonstrator's rates."""

import json
import random
from collections import Counter

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_core.config import LookupDemonstrations, LookupWorld
from igpo_core.environments.base import Demonstration
from igpo_core.environments.lookup import LookupChain, LookupEnvironment, generate, vocabulary
from igpo_core.environments.synthetic import SPLITS, split_of
from igpo_core.trajectory import Final, Question, ToolCall
from tests.worlds import searched

SMALL = LookupWorld(train=40, dev=20, test=20)
CAREFUL = LookupDemonstrations(right_query=(1.0, 1.0), stop_early=0.0, answer_when_done=1.0)


def questions_of(table: pandas.DataFrame) -> list[Question]:
    return [
        Question(
            id=row["id"],
            source=row["source"],
            split=row["split"],
            text=row["question"],
            answers=tuple(row["answers"]),
            hops=row["hops"],
            facts=json.loads(row["facts"]),
            distractors=tuple(row["distractors"]),
        )
        for row in table.to_dict("records")
    ]


def environment(world: LookupWorld = SMALL, max_turns: int = 6) -> LookupEnvironment:
    return LookupEnvironment(world, questions_of(generate(world)), max_turns)


def demonstrations(
    shown: LookupDemonstrations, count: int, world: LookupWorld = SMALL, max_turns: int = 6
) -> list[Demonstration]:
    made = LookupEnvironment(world, [], max_turns).demonstrations(random.Random(0), count, shown)
    return [one for one in made if isinstance(one, Demonstration)]


def queries(demonstration: Demonstration) -> list[str]:
    return [turn.action.arguments["query"] for turn in demonstration.turns if isinstance(turn.action, ToolCall)]


def answer(demonstration: Demonstration) -> str:
    action = demonstration.turns[-1].action
    assert isinstance(action, Final)
    return action.text


def named(demonstration: Demonstration) -> str:
    return demonstration.question.text.split()[-2]


def test_a_chain_by_hand() -> None:
    # The boss of F5 is F9, whose rival is F2.
    chain = LookupChain(relations=("boss", "rival"), people=("F5", "F9", "F2"))
    assert chain.text == "question : who is the rival of the boss of F5 ?"
    assert chain.answer == "F2"
    assert chain.facts == {"boss of F5": "boss of F5 is F9 .", "rival of F9": "rival of F9 is F2 ."}


def test_the_table_has_the_promised_columns_order_and_types() -> None:
    table = generate(LookupWorld(train=3, dev=2, test=1))
    assert table["id"].tolist() == [
        *("lookup-train-00000", "lookup-train-00001", "lookup-train-00002"),
        *("lookup-dev-00000", "lookup-dev-00001", "lookup-test-00000"),
    ]
    assert table["split"].tolist() == ["train"] * 3 + ["dev"] * 2 + ["test"]
    assert list(table.columns) == [
        *("id", "source", "split", "question", "answers", "supporting_titles", "hops", "facts", "distractors"),
        "answerable",
    ]
    assert table["hops"].dtype == pandas.Int64Dtype() and table["hops"].tolist() == [3] * 6
    assert set(table["source"]) == {"lookup"} and table["answerable"].all()
    assert [list(titles) for titles in table["supporting_titles"]] == [[]] * 6


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), hops=st.integers(1, 8), distractors=st.integers(0, 8))
def test_following_the_question_word_by_word_reaches_the_answer(seed: int, hops: int, distractors: int) -> None:
    world = LookupWorld(seed=seed, hops=hops, names=12, people=9, distractors=distractors, train=2, dev=2, test=2)
    tool = environment(world)
    for question in (q for split in SPLITS for q in tool.tasks(split)):
        words = question.text.split()
        assert words[:4] == ["question", ":", "who", "is"] and words[-1] == "?"
        relations, entity = (words[5:-2:3], words[-2])  # "the r3 of the r2 of the r1 of F5 ?"
        assert len(relations) == len(set(relations)) == hops
        visited = [entity]
        for hop, relation in enumerate(reversed(relations)):
            [observation] = searched(tool, question, f"{relation} of {entity}")
            first = observation.text.split()[:6]
            assert first[:4] == [relation, "of", entity, "is"] and first[5] == "."
            assert observation.label == f"hop_{hop + 1}"
            entity = first[4]
            visited.append(entity)
        assert question.answers == (entity,)
        assert len(set(visited)) == hops + 1


def test_a_query_off_the_chain_finds_nothing() -> None:
    tool = environment()
    question = tool.tasks("test")[0]
    assert question.facts is not None
    relation, _, person = next(iter(question.facts)).split()
    assert searched(tool, question, f"  {relation}  of {person} ")[0].label == "hop_1"  # spacing does not count
    for query in (
        "",
        person,
        f"{relation} {person}",
        f"{relation} of {person} now",
        f"{relation} of {question.answers[0]}",
    ):
        [observation] = searched(tool, question, query)
        assert (observation.text, observation.label) == ("no result .", "miss")


def test_distractors_follow_the_best_match_and_never_name_the_answer() -> None:
    world = LookupWorld(people=6, names=12, distractors=3, train=60, dev=10, test=10)
    tool = environment(world)
    shown: set[tuple[str, str]] = set()
    for question in tool.tasks("train"):
        assert question.facts is not None
        for query in [*question.facts, "boss of F0 F0"]:
            [observation] = searched(tool, question, query)
            assert observation == searched(tool, question, query)[0]
            facts = [fact.strip() + " ." for fact in observation.text.split(".")[:-1]]
            assert facts[0] == question.facts.get(query, "no result .")
            assert len(facts) == len(set(facts)) == 4 and set(facts[1:]) <= set(question.distractors)
            shown.update((question.id, fact) for fact in facts[1:])
            for fact in facts[1:]:
                relation, _, subject, _, found, _ = fact.split()
                assert question.answers[0] not in (subject, found) and subject != found
                assert f"{relation} of {subject}" not in question.facts
    assert len(shown) > 60 * 3  # different queries show different ones


def test_rows_depend_on_seed_split_and_index_alone() -> None:
    larger = generate(SMALL.model_copy(update={"train": 60, "dev": 25})).set_index("id")
    table = generate(SMALL).set_index("id")
    pandas.testing.assert_frame_equal(larger.loc[table.index], table)
    other = generate(SMALL.model_copy(update={"seed": 1})).set_index("id")
    assert (other["question"] != table["question"]).mean() > 0.9


def test_no_text_is_in_two_splits_of_any_seed_or_in_the_warm_start() -> None:
    texts: dict[str, set[str]] = {split: set() for split in SPLITS}
    for seed in range(3):
        table = generate(LookupWorld(seed=seed, hops=2, names=6, people=5, train=200, dev=60, test=60))
        for split in SPLITS:
            texts[split] |= set(table.loc[table["split"] == split, "question"])
    world = LookupWorld(hops=2, names=6, people=5)
    texts["train"] |= {d.question.text for d in demonstrations(LookupDemonstrations(), 300, world)}
    assert not texts["train"] & texts["dev"]
    assert not texts["train"] & texts["test"]
    assert not texts["dev"] & texts["test"]
    assert min(map(len, texts.values())) > 20


def test_the_smallest_world_fills_every_split() -> None:
    table = generate(LookupWorld(hops=1, names=4, people=4, train=30, dev=10, test=10))
    assert all(split_of(text) == split for text, split in zip(table["question"], table["split"], strict=True))


def test_every_word_is_in_the_vocabulary() -> None:
    world = LookupWorld(distractors=2, train=100, dev=20, test=20)
    words = vocabulary(world)
    assert len(words) == len(set(words)) == 11 + 8 + 40
    used = set()
    for question in questions_of(generate(world)):
        assert question.facts is not None
        for text in (
            question.text,
            *question.answers,
            *question.facts,
            *question.facts.values(),
            *question.distractors,
        ):
            used |= set(text.split())
    for demonstration in demonstrations(LookupDemonstrations(wrong_answer=0.5), 100, world):
        for turn in demonstration.turns:
            action = turn.action.arguments["query"] if isinstance(turn.action, ToolCall) else answer(demonstration)
            used |= set(f"{turn.thought} {action} {turn.observation or ''}".split())
    assert used == set(words)


def test_the_careful_demonstrator_walks_the_chain_and_answers() -> None:
    for one in demonstrations(CAREFUL, 50):
        assert one.question.facts is not None
        assert queries(one) == list(one.question.facts)
        assert [turn.observation for turn in one.turns] == [*one.question.facts.values(), None]
        assert [turn.thought for turn in one.turns] == [*one.question.facts, "done"]
        assert answer(one) == one.question.answers[0]


def test_demonstrations_are_a_function_of_the_generator() -> None:
    tool = LookupEnvironment(SMALL, [], 6)
    first = tool.demonstrations(random.Random(7), 5, LookupDemonstrations())
    assert tool.demonstrations(random.Random(7), 5, LookupDemonstrations()) == first
    assert tool.demonstrations(random.Random(8), 5, LookupDemonstrations()) != first


@pytest.mark.parametrize("max_turns", [1, 2, 6])
def test_the_last_allowed_turn_answers(max_turns: int) -> None:
    never = LookupDemonstrations(right_query=(0.0, 0.0), stop_early=0.0, answer_when_done=0.0, lazy_query=1.0)
    for one in demonstrations(never, 20, max_turns=max_turns):
        assert len(one.turns) == max_turns
        assert answer(one) == named(one)  # nothing was found


def test_right_and_lazy_queries_come_at_their_rates() -> None:
    shown = LookupDemonstrations(right_query=(0.5, 0.5), stop_early=0.0, lazy_query=1.0)
    right = 0
    for one in demonstrations(shown, 2000):
        assert one.question.facts is not None
        outermost = one.question.text.split()[5]
        first = queries(one)[0]
        right += first == next(iter(one.question.facts))
        assert first in (next(iter(one.question.facts)), f"{outermost} of {named(one)}")
        assert one.turns[0].thought == next(iter(one.question.facts))
    assert abs(right / 2000 - 0.5) < 0.04  # standard deviation 0.011


def test_each_demonstration_draws_its_own_rate() -> None:
    # Two right queries in a row: the mean of u squared over U(0, 1) is 1/3; one rate of 1/2 for all would give 1/4.
    shown = LookupDemonstrations(right_query=(0.0, 1.0), stop_early=0.0, lazy_query=1.0)
    both = [queries(one)[:2] == list(one.question.facts or {})[:2] for one in demonstrations(shown, 3000)]
    assert abs(sum(both) / 3000 - 1 / 3) < 0.03


def test_a_query_neither_right_nor_lazy_is_right_by_chance() -> None:
    # Half: a random relation of the one entity known, 1 of 8 right. Half: the current relation of a mentioned entity,
    # of which there is one, so always right. 0.5 / 8 + 0.5 = 0.5625.
    shown = LookupDemonstrations(right_query=(0.0, 0.0), stop_early=0.0, lazy_query=0.0)
    hit = [queries(one)[0] == next(iter(one.question.facts or {})) for one in demonstrations(shown, 2000)]
    assert abs(sum(hit) / 2000 - 0.5625) < 0.04


def test_stopping_early_spares_the_first_turn() -> None:
    shown = LookupDemonstrations(right_query=(0.0, 0.0), stop_early=0.3, lazy_query=1.0)
    lengths = Counter(len(one.turns) for one in demonstrations(shown, 2000))
    assert lengths[1] == 0
    assert abs(lengths[2] / 2000 - 0.3) < 0.04
    assert abs(lengths[3] / 2000 - 0.7 * 0.3) < 0.04


def test_an_early_answer_names_the_last_person_found() -> None:
    shown = LookupDemonstrations(right_query=(1.0, 1.0), stop_early=1.0)
    for one in demonstrations(shown, 20):
        assert one.turns[0].observation is not None and len(one.turns) == 2
        assert answer(one) == one.turns[0].observation.split()[4]


def test_after_the_last_hop_it_answers_at_its_rate() -> None:
    shown = LookupDemonstrations(right_query=(1.0, 1.0), stop_early=0.0, answer_when_done=0.25)
    lengths = Counter(len(one.turns) for one in demonstrations(shown, 2000, max_turns=20))
    assert abs(lengths[4] / 2000 - 0.25) < 0.04
    assert abs(lengths[5] / 2000 - 0.75 * 0.25) < 0.04


def test_a_wrong_answer_is_the_person_named_or_a_mention() -> None:
    # One hop, mentions: named (question), named and gold (result). Gold: half of the time, one mention of three: 1/6.
    world = LookupWorld(hops=1)
    shown = CAREFUL.model_copy(update={"wrong_answer": 1.0})
    made = demonstrations(shown, 2000, world)
    assert {answer(one) in (named(one), one.question.answers[0]) for one in made} == {True}
    assert abs(sum(answer(one) == one.question.answers[0] for one in made) / 2000 - 1 / 6) < 0.03
