"""World `atlas`: the geography, hints that narrow, keys that are never taught, the demonstrator and the lessons."""

import json
import random
from collections import Counter

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_core.config import AtlasDemonstrations, AtlasWorld
from igpo_core.environments.atlas import (
    AtlasChain,
    AtlasEnvironment,
    Geography,
    generate,
    geography,
    possible_cities,
    vocabulary,
)
from igpo_core.environments.base import Demonstration, Lesson
from igpo_core.environments.synthetic import SPLITS, split_of
from igpo_core.trajectory import Final, Question, ToolCall
from tests.worlds import searched

SMALL = AtlasWorld(train=40, dev=20, test=20)

# Two continents of two countries of two cities: continent 0 is K0, K1; continent 1 is K2, K3.
HAND = Geography(
    country_of={"C0": "K0", "C1": "K0", "C2": "K1", "C3": "K1", "C4": "K2", "C5": "K2", "C6": "K3", "C7": "K3"},
    continent_of={"K0": 0, "K1": 0, "K2": 1, "K3": 1},
    key_of={"boss": "@4", "rival": "@0", "doctor": "@2"},
)
# The boss of F5 is F9 (in K3, of the answer's continent), whose rival is F1 (in K2), whose doctor is in C4 in K2.
CHAIN = AtlasChain(
    relations=("boss", "rival", "doctor"), people=("F5", "F9", "F1"), places=("K3", "K2", "K2"), city="C4"
)


def environment(world: AtlasWorld = SMALL) -> AtlasEnvironment:
    questions = [
        Question(
            id=row["id"],
            source=row["source"],
            split=row["split"],
            text=row["question"],
            answers=tuple(row["answers"]),
            hops=row["hops"],
            facts=json.loads(row["facts"]),
        )
        for row in generate(world).to_dict("records")
    ]
    return AtlasEnvironment(world, questions, max_turns=6)


def test_the_last_hop_alone_shows_the_answer() -> None:
    question = Question(id="q", source="atlas", split="train", text=CHAIN.text, answers=(CHAIN.answer,), hops=3)
    first, second, last = CHAIN.facts(HAND.key_of).values()
    assert last == "@2 of F1 is C4 in K2 ." and CHAIN.answer == "C4 K2"
    assert [environment().exposes(question, seen) for seen in (first, second, last)] == [False, False, True]


def demonstrations(shown: AtlasDemonstrations, count: int, world: AtlasWorld = SMALL) -> list[Demonstration]:
    made = AtlasEnvironment(world, [], 6).demonstrations(random.Random(0), count, shown)
    return [one for one in made if isinstance(one, Demonstration)]


def queries(demonstration: Demonstration) -> list[str]:
    return [turn.action.arguments["query"] for turn in demonstration.turns if isinstance(turn.action, ToolCall)]


def answer(demonstration: Demonstration) -> str:
    action = demonstration.turns[-1].action
    assert isinstance(action, Final)
    return action.text


def test_a_chain_by_hand() -> None:
    assert CHAIN.text == "question : where is the doctor of the rival of the boss of F5 ?"
    assert CHAIN.answer == "C4 K2"
    assert list(CHAIN.facts(HAND.key_of).items()) == [
        ("@4 of F5", "@4 of F5 is F9 in K3 ."),
        ("@0 of F9", "@0 of F9 is F1 in K2 ."),
        ("@2 of F1", "@2 of F1 is C4 in K2 ."),
    ]


def test_the_posterior_by_hand() -> None:
    assert possible_cities(HAND, CHAIN, 0) == ["C0", "C1", "C2", "C3", "C4", "C5", "C6", "C7"]
    assert possible_cities(HAND, CHAIN, 1) == ["C4", "C5", "C6", "C7"]  # the continent of K3
    assert possible_cities(HAND, CHAIN, 2) == ["C4", "C5"]  # K2
    assert possible_cities(HAND, CHAIN, 3) == ["C4"]
    short = AtlasChain(relations=("boss", "doctor"), people=("F5", "F1"), places=("K2", "K2"), city="C4")
    assert possible_cities(HAND, short, 1) == ["C4", "C5"]  # of two hops, the first names the country


@pytest.mark.parametrize("seed", [0, 1])
def test_the_geography_is_balanced_fixed_and_keys_are_distinct(seed: int) -> None:
    config = AtlasWorld(seed=seed, continents=3, branching=2, key_count=9)
    world = geography(config)
    assert sorted(Counter(world.country_of.values()).items()) == [(f"K{n}", 2) for n in range(6)]
    assert sorted(Counter(world.continent_of.values()).items()) == [(0, 2), (1, 2), (2, 2)]
    assert len(world.country_of) == 12
    assert len(set(world.key_of.values())) == len(world.key_of) == 6
    assert geography(config.model_copy(update={"train": 9, "hops": 2})) == world
    assert geography(config.model_copy(update={"seed": seed + 1})) != world


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), hops=st.integers(2, 5))
def test_trying_every_key_walks_to_the_answer_and_narrows(seed: int, hops: int) -> None:
    config = AtlasWorld(seed=seed, hops=hops, names=8, key_count=7, continents=3, branching=3, train=2, dev=2, test=2)
    tool, world = environment(config), geography(config)
    for question in (q for split in SPLITS for q in tool.tasks(split)):
        [gold] = question.answers
        city, country = gold.split()
        assert world.country_of[city] == country
        words = question.text.split()
        relations, person = list(reversed(words[5:-2:3])), words[-2]
        assert words[:4] == ["question", ":", "where", "is"] and len(set(relations)) == hops
        for hop, relation in enumerate(relations):
            seen = searched(tool, question, *(f"@{k} of {person}" for k in range(7)))
            found = [o for o in seen if o.label != "miss"]
            assert [o.label for o in found] == [f"hop_{hop + 1}"]  # one key alone hits
            key, _, asked, _, named, _, place, _ = found[0].text.split()
            assert (key, asked) == (world.key_of[relation], person)
            assert world.continent_of[place] == world.continent_of[country]
            assert hop < hops - 2 or place == country
            person = named
        assert (person, place) == (city, country)


def test_a_wrong_query_finds_nothing() -> None:
    tool = environment()
    question = tool.tasks("test")[0]
    relation = question.text.split()[-4]
    for query in (f"{relation} of {question.text.split()[-2]}", "", question.answers[0]):
        [observation] = searched(tool, question, query)
        assert (observation.text, observation.label) == ("no result .", "miss")


def test_the_table() -> None:
    table = generate(AtlasWorld(train=2, dev=1, test=1))
    assert table["id"].tolist() == ["atlas-train-00000", "atlas-train-00001", "atlas-dev-00000", "atlas-test-00000"]
    assert table["hops"].dtype == pandas.Int64Dtype() and table["hops"].tolist() == [3] * 4
    assert set(table["source"]) == {"atlas"} and table["answerable"].all()
    assert [list(row) for row in table["distractors"]] == [[]] * 4
    larger = generate(AtlasWorld(train=5, dev=3, test=2)).set_index("id").loc[table["id"]]
    pandas.testing.assert_frame_equal(larger, table.set_index("id"))


def test_texts_of_splits_and_warm_start_are_disjoint() -> None:
    config = AtlasWorld(hops=2, names=6, train=200, dev=60, test=60)  # the fewest texts that the settings allow
    table = generate(config)
    assert all(split_of(text) == split for text, split in zip(table["question"], table["split"], strict=True))
    texts = [d.question.text for d in demonstrations(AtlasDemonstrations(), 300, config)]
    assert len(set(texts)) > 50 and {split_of(text) for text in texts} == {"train"}


def test_every_word_is_in_the_vocabulary() -> None:
    config = AtlasWorld(continents=2, branching=2, train=100, dev=20, test=20)
    words = vocabulary(config)
    assert len(words) == len(set(words)) == 14 + 6 + 12 + 40 + 4 + 8
    used = set()
    for row in generate(config).to_dict("records"):
        used |= set(f"{row['question']} {row['answers'][0]} {' '.join(json.loads(row['facts']).values())}".split())
    for one in AtlasEnvironment(config, [], 6).demonstrations(
        random.Random(0), 100, AtlasDemonstrations(geography_lines=5)
    ):
        if isinstance(one, Lesson):
            used |= set(one.words)
            continue
        for turn in one.turns:
            action = turn.action.arguments["query"] if isinstance(turn.action, ToolCall) else answer(one)
            used |= set(
                f"{turn.thought} {action} {turn.observation or ''} {' '.join(w for w, _ in turn.target)}".split()
            )
    assert used == set(words)


def test_the_perfect_demonstrator_walks_the_chain_and_answers() -> None:
    shown = AtlasDemonstrations(right_history=(1.0, 1.0), stop_early=0.0, answer_when_done=1.0)
    for one in demonstrations(shown, 50):
        assert one.question.facts is not None
        assert queries(one) == list(one.question.facts)
        assert [turn.observation for turn in one.turns] == [*one.question.facts.values(), None]
        relations = one.question.text.split()[5:-2:3][::-1]
        people = [query.split()[2] for query in one.question.facts]
        thoughts = [f"{r} of {p}" for r, p in zip(relations, people, strict=True)]
        assert [turn.thought for turn in one.turns] == [*thoughts, "done"]
        assert answer(one) == one.question.answers[0]


def test_keys_of_the_history_are_right_at_their_rate() -> None:
    # Right by intention in half the cases, by chance in 1 of 12 of the others: 0.5 + 0.5 / 12 = 0.542.
    shown = AtlasDemonstrations(right_history=(0.5, 0.5), stop_early=0.0)
    right = [queries(one)[0] == next(iter(one.question.facts or {})) for one in demonstrations(shown, 2000)]
    assert abs(sum(right) / 2000 - 0.542) < 0.04


def test_each_demonstration_draws_its_own_rate() -> None:
    # Many keys make chance small: both of the first two right is the mean of p squared with p = u + (1 - u) / 64,
    # the integral of (1/64 + 63/64 u)^2 = (1 - 1/64^3) / (3 * 63/64) = 0.339; one rate of 1/2 would give 0.258.
    shown = AtlasDemonstrations(right_history=(0.0, 1.0), stop_early=0.0)
    made = demonstrations(shown, 3000, AtlasWorld(key_count=64))
    both = [queries(one)[:2] == list(one.question.facts or {})[:2] for one in made]
    assert abs(sum(both) / 3000 - 0.339) < 0.03


@pytest.mark.parametrize(
    ("right_key", "right", "wrong"), [(None, 1 / 12, 1 / 12), (0.34, 0.34, 0.06), (0.0, 0.0, 1 / 11)]
)
def test_the_target_of_the_key(right_key: float | None, right: float, wrong: float) -> None:
    world = geography(SMALL)
    for one in demonstrations(AtlasDemonstrations(right_key=right_key), 30):
        for turn in one.turns:
            if isinstance(turn.action, Final):
                assert turn.target == ()
                continue
            right_word = world.key_of[turn.thought.split()[0]]
            assert [word for word, _ in turn.target] == [f"@{k}" for k in range(12)]
            for word, probability in turn.target:
                assert probability == pytest.approx(right if word == right_word else wrong)
            assert sum(probability for _, probability in turn.target) == pytest.approx(1.0)


def test_guesses_agree_with_every_hint_seen() -> None:
    world = geography(SMALL)
    seen_hops: Counter[int] = Counter()
    for one in demonstrations(AtlasDemonstrations(stop_early=0.3), 1000):
        city, country = answer(one).split()
        assert world.country_of[city] == country
        hints = [t.observation.split()[-2] for t in one.turns if t.observation and t.observation != "no result ."]
        seen_hops[len(set(hints))] += 1
        assert all(world.continent_of[hint] == world.continent_of[country] for hint in hints)
        facts = list((one.question.facts or {}).values())
        observed = {turn.observation for turn in one.turns}
        if facts[1] in observed:
            assert country == facts[1].split()[-2]
        if facts[2] in observed:
            assert f"{city} {country}" == one.question.answers[0]
    assert len(seen_hops) > 1


def test_a_guess_without_results_is_uniform_over_cities_and_can_be_the_first_turn() -> None:
    made = demonstrations(AtlasDemonstrations(stop_early=1.0), 2000)
    assert {len(one.turns) for one in made} == {1}
    counts = Counter(answer(one).split()[0] for one in made)
    # 2000 / 64 = 31 expected, standard deviation 5.5.
    assert len(counts) == 64 and min(counts.values()) > 3 and max(counts.values()) < 60


def test_stopping_rates_and_the_last_turn() -> None:
    early = Counter(len(d.turns) for d in demonstrations(AtlasDemonstrations(stop_early=0.2), 2000))
    assert abs(early[1] / 2000 - 0.2) < 0.04
    perfect = AtlasDemonstrations(right_history=(1.0, 1.0), stop_early=0.0, answer_when_done=0.6)
    done = Counter(len(d.turns) for d in demonstrations(perfect, 2000))
    # Three searches, then an answer with 0.6; else again, and turn 6 must answer: 0.6, 0.24, 0.16.
    assert set(done) == {4, 5, 6}
    assert abs(done[4] / 2000 - 0.6) < 0.04 and abs(done[6] / 2000 - 0.16) < 0.03


def test_lessons_are_true_balanced_and_weigh_the_predictable_word_alone() -> None:
    world = geography(SMALL)
    shown = AtlasDemonstrations(geography_lines=200, geography_weight=3.0)
    made = AtlasEnvironment(SMALL, [], 6).demonstrations(random.Random(0), 2, shown)
    assert [type(one) for one in made] == [Demonstration] * 2 + [Lesson] * 200
    kinds: Counter[str] = Counter()
    for one in made[2:]:
        assert isinstance(one, Lesson)
        assert one.weights == (0.0, 0.0, 3.0, 0.0) * 6 and len(one.words) == 24
        for start in range(0, 24, 4):
            subject, kind, said, stop = one.words[start : start + 4]
            kinds[kind] += 1
            assert stop == "."
            if kind == "in":
                assert world.country_of[subject] == said
            elif kind == "has":
                assert world.country_of[said] == subject
            else:
                assert world.continent_of[subject] == world.continent_of[said]
    assert set(kinds) == {"in", "has", "near"} and min(kinds.values()) > 320  # 400 expected, standard deviation 16


def test_the_answer_of_a_demonstration_carries_the_geography_weight() -> None:
    for one in demonstrations(AtlasDemonstrations(geography_weight=2.5), 10):
        assert [turn.answer_weight for turn in one.turns] == [1.0] * (len(one.turns) - 1) + [2.5]


def test_demonstrations_are_a_function_of_the_generator_and_their_ids_differ() -> None:
    tool = AtlasEnvironment(SMALL, [], 6)
    first = tool.demonstrations(random.Random(7), 5, AtlasDemonstrations())
    assert tool.demonstrations(random.Random(7), 5, AtlasDemonstrations()) == first
    identities = [one.question.id for one in first if isinstance(one, Demonstration)]
    assert len(set(identities)) == 5
