"""Which seeds a night makes, and whether its check seeds moved: with numbers worked out by hand."""

from datetime import UTC, datetime
from math import comb

import pytest

from igpo_core.errors import ConfigError
from tasks.report import morning
from tasks.report.nights import Verdict
from tasks.report.standing import (
    Change,
    State,
    Study,
    Tonight,
    changes,
    spread_of_groups,
    standing_study,
    tonight,
    what_changed,
)

STUDY = Study("lookup", (200, 201, 202, 203, 204, 205, 206), a_night=3, checks=(200, 201))


def test_the_seeds_are_the_presets_and_then_the_numbers_after_them() -> None:
    study = standing_study("a", [200, 202, 201], compared=1, seeds=6, a_night=2, checks=3)
    assert study == Study("a", (200, 202, 201, 203, 204, 205), 2, (200, 202, 201))
    assert standing_study("a", [*range(10)], compared=1, seeds=6, a_night=2, checks=3).seeds == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(("compared", "seeds", "fewest"), [(1, 5, 6), (2, 6, 7), (11, 8, 9)])
def test_too_few_seeds_for_a_verdict(compared: int, seeds: int, fewest: int) -> None:
    """2^(1-n) must be .05 / compared at most: 1/32 for one, 1/64 for two, 1/256 for eleven."""
    with pytest.raises(ConfigError, match=f"set seeds to {fewest} or more"):
        standing_study("a", [0], compared=compared, seeds=seeds, a_night=1, checks=1)
    standing_study("a", [0], compared=compared, seeds=fewest, a_night=1, checks=1)


def test_more_check_seeds_than_two_groups_of_the_study_have() -> None:
    with pytest.raises(ConfigError, match="takes 8 seeds and not 7"):
        standing_study("a", [0], compared=1, seeds=7, a_night=1, checks=4)


def test_night_by_night() -> None:
    nights = []
    finished: set[int] = set()
    for _ in range(3):
        nights.append(tonight(STUDY, "new", State(frozenset(finished), "", False)))
        finished |= set(nights[-1].seeds)
    assert nights == [
        Tonight("study", (200, 201, 202)),
        Tonight("study", (203, 204, 205)),
        Tonight("study", (206,), last=True),
    ]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State(frozenset({201, 205}), "", False), Tonight("study", (200, 202, 203))),  # those that failed come again
        (State(frozenset(STUDY.seeds), "", False), Tonight("study", (), last=True)),  # the report alone is missing
        (State(frozenset(STUDY.seeds), "new", False), Tonight("nothing", ())),
        (
            State(frozenset(), "old", False),
            Tonight("check", (200, 201)),
        ),  # code, data or a package that computes changed
        (State(frozenset({200, 201}), "old", False), Tonight("check", (200, 201))),  # made, and not yet compared
        (State(frozenset({200, 201}), "old", True), Tonight("nothing", ())),
        (State(frozenset(), "new", True), Tonight("nothing", ())),  # back to the code of the verdict
    ],
)
def test_what_a_night_does(state: State, expected: Tonight) -> None:
    assert tonight(STUDY, "new", state) == expected


def test_what_two_groups_differ_by() -> None:
    """Of 0, 1, 2, 3 there are three ways to make two pairs, which differ by 2, 1 and 0: each has a third."""
    assert spread_of_groups([0, 1, 2, 3], 2, 0.95) == 2
    assert spread_of_groups([0, 1, 2, 3], 2, 0.6) == 1
    assert spread_of_groups([3, 0, 2, 1], 2, 0.3) == 0


def test_what_two_groups_of_many_differ_by() -> None:
    """Ten seeds at 0 and ten at 1. Single seeds are apart in 200 of 380 pairs, .526. Groups of seven are too many to count one
    by one: how many ones a group has is a hypergeometric draw."""
    split = [0.0] * 10 + [1.0] * 10
    assert spread_of_groups(split, 1, 0.47) == 0 and spread_of_groups(split, 1, 0.48) == 1

    def share(most: int) -> float:
        pairs = [(a, b) for a in range(8) for b in range(8) if abs(a - b) <= most and a + b <= 10 and a + b >= 4]
        ways = sum(comb(10, a) * comb(10, 7 - a) * comb(10 - a, b) * comb(3 + a, 7 - b) for a, b in pairs)
        return ways / (comb(20, 7) * comb(13, 7))

    assert share(7) == 1 and share(3) < 0.94 < 0.96 < share(4)
    assert spread_of_groups(split, 7, 0.95) == pytest.approx(4 / 7)


BEFORE = {
    "": {
        "base": {200: 0.1, 201: 0.2, 202: 0.1, 203: 0.2},
        "igpo": {200: 0.3, 201: 0.5, 202: 0.5, 203: 0.7},  # .2 .3 .4 .5 above
    }
}


def test_a_run_that_repeats_itself_is_said_to() -> None:
    now = {"": {arm: {seed: of[seed] for seed in (200, 201)} for arm, of in BEFORE[""].items()}}
    (change,) = changes(BEFORE, now, "base", (200, 201))
    assert change == Change("igpo", "", pytest.approx(0.25), pytest.approx(0.25), pytest.approx(0.2), identical=True)
    assert not change.moved


@pytest.mark.parametrize(
    ("igpo", "difference", "moved"),
    [((0.45, 0.55), 0.35, False), ((0.5, 0.71), 0.455, True), ((0.0, 0.2), -0.05, True)],
)
def test_a_change_within_what_groups_of_the_study_differ_by_is_no_move(
    igpo: tuple[float, float], difference: float, moved: bool
) -> None:
    """Pairs of the differences .2 .3 .4 .5 differ by .2, .1 and 0; the check seeds had .25 in the study."""
    now = {"": {"base": {200: 0.1, 201: 0.2}, "igpo": dict(zip((200, 201), igpo, strict=True))}}
    (change,) = changes(BEFORE, now, "base", (200, 201))
    assert change == Change(
        "igpo", "", pytest.approx(0.25), pytest.approx(difference), pytest.approx(0.2), identical=False
    )
    assert change.moved is moved


def test_the_share_left_out_is_divided_by_the_differences_looked_at() -> None:
    """Of 101 seeds one is 1 apart from the others. It is in a share 2 / 101 of the pairs of seeds: less than .05, and more than
    .05 / 3."""
    base = {seed: 0.0 for seed in range(101)}
    igpo = {**base, 100: 1.0}
    alone, three = {"": {"base": base, "a": igpo}}, {"": {"base": base, "a": igpo, "b": igpo, "c": igpo}}
    assert [change.limit for change in changes(alone, alone, "base", (0,))] == [0]
    assert [change.limit for change in changes(three, three, "base", (0,))] == [1, 1, 1]


def test_what_is_new_after_a_change() -> None:
    before = {"code": "aa", "data": ["d1"], "git": "c1", "python": "3.11.9", "platform": "Linux", "processors": 2,
              "computed_on": ["A"], "packages": {"numpy": "2.4.5", "torch": "2.13", "gone": "1"}}  # fmt: skip
    now = {**before, "code": "bb", "git": "c2", "computed_on": [], "processors": 8,
           "packages": {"numpy": "2.4.6", "torch": "2.13", "fresh": "2"}}  # fmt: skip
    assert what_changed(before, before) == []
    assert what_changed(before, now) == [
        "igpo_core aa → bb", "commit c1 → c2", "fresh absent → 2", "gone 1 → absent", "numpy 2.4.5 → 2.4.6"
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ messages

VERDICT = Verdict("r1", "http://m/r1", "lookup-old", "igpo is better than base.", datetime(2026, 11, 27, tzinfo=UTC))
NO_MOVE = Change("igpo", "", before=0.25, now=0.35, limit=0.2, identical=False)
MOVE = Change("igpo", "", before=0.25, now=0.55, limit=0.2, identical=False)


def test_an_interim_night_tells_no_difference() -> None:
    message = morning.progress(STUDY, "lookup-new", (200, 201, 202), done=3)
    assert message.subject == "lookup: 3 of 7 seeds"
    assert message.body.startswith(
        "Seeds 200, 201 and 202 were finished: 3 of 7 seeds of lookup-new are there. 2 more nights"
    )
    assert "1 more night to" in morning.progress(STUDY, "lookup-new", (203, 204, 205), done=6).body


def test_the_verdict_begins_with_its_sentence() -> None:
    message = morning.verdict(STUDY, "lookup-new", "igpo is better than base.", ["2 processors"], "http://m/r1")
    assert (
        message.body.startswith("igpo is better than base.\n\nWarning: 2 processors\n\n")
        and "http://m/r1" in message.body
    )
    assert "From now on a night runs seeds 200 and 201 again when" in message.body


def test_a_night_without_anything_to_do_repeats_the_verdict_and_its_check() -> None:
    alone = morning.nothing(STUDY, VERDICT, "")
    assert "nothing was run" in alone.body and "27 November 2026: igpo is better than base." in alone.body
    assert "The last check: THE VERDICT MOVED" in morning.nothing(STUDY, VERDICT, "THE VERDICT MOVED for igpo").body


@pytest.mark.parametrize(("change", "subject"), [(NO_MOVE, "the verdict stands"), (MOVE, "THE VERDICT MOVED")])
def test_a_check_says_whether_the_verdict_moved_and_how_to_go_on(change: Change, subject: str) -> None:
    said = morning.checked(STUDY, VERDICT, ["numpy 2.4.5 → 2.4.6"], [change], "make it again")
    message = morning.check(STUDY, VERDICT, [change], said)
    assert message.subject == f"lookup: {subject}"
    assert "these changed: numpy 2.4.5 → 2.4.6. Seeds 200 and 201 were run again." in message.body
    assert (
        f"was +0.250 in the study and is {change.now:+.3f}" in message.body and "differ by up to 0.200" in message.body
    )
    assert ("make it again" in message.body) is change.moved
    assert "igpo is better than base." in message.body


def test_scores_that_repeat_to_the_last_digit_are_said_to() -> None:
    same = Change("igpo", "", 0.25, 0.25, 0.2, identical=True)
    said = morning.checked(STUDY, VERDICT, ["commit c1 → c2"], [same], "again")
    assert "to the last digit" in said and "The verdict stands." in said


def test_a_failed_night_says_why_and_how_to_go_on() -> None:
    message = morning.failed("lookup", ConfigError("no such arm"), "prefect flow-run retry 7")
    assert message.subject == "lookup: the night FAILED"
    assert message.body.startswith("no such arm\n") and "prefect flow-run retry 7" in message.body


def test_the_words_of_another_librarys_error_are_not_sent() -> None:
    """They may hold an address with a password."""
    message = morning.failed("lookup", OSError("postgresql://lab:secret@db/x"), "prefect flow-run retry 7")
    assert message.body.startswith("OSError,") and "secret" not in message.body
