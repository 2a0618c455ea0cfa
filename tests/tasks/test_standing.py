"""Which seeds a night makes, and whether its check seeds moved: with numbers worked out by hand."""

from datetime import UTC, datetime

import pytest

from igpo_core.errors import ConfigError
from tasks.report import morning
from tasks.report.nights import Progress, Verdict
from tasks.report.standing import Change, State, Study, Tonight, changes, standing_study, tonight, what_changed

STUDY = Study("lookup", (200, 201, 202, 203, 204, 205, 206), a_night=3, checks=(200, 201))


def test_the_seeds_begin_behind_the_presets_largest_one() -> None:
    """The preset's own were looked at: of the default preset they are 220 to 226, and the study's 227 to 246."""
    study = standing_study("a", [200, 202, 201], compared=1, cells=1, seeds=7, a_night=2, checks=6)
    assert study == Study("a", (203, 204, 205, 206, 207, 208, 209), 2, (203, 204, 205, 206, 207, 208))
    default = standing_study("b", range(220, 227), compared=2, cells=1, seeds=20, a_night=4, checks=8)
    assert (default.seeds[0], default.seeds[-1], len(default.seeds)) == (227, 246, 20)


@pytest.mark.parametrize(("compared", "seeds", "fewest"), [(1, 5, 6), (2, 6, 7), (11, 8, 9)])
def test_too_few_seeds_for_a_verdict(compared: int, seeds: int, fewest: int) -> None:
    """2^(1-n) must be .05 / compared at most: 1/32 for one, 1/64 for two, 1/256 for eleven."""
    with pytest.raises(ConfigError, match=f"set seeds to {fewest} or more"):
        standing_study("a", [0], compared=compared, cells=1, seeds=seeds, a_night=1, checks=fewest)
    standing_study("a", [0], compared=compared, cells=1, seeds=fewest, a_night=1, checks=fewest)


@pytest.mark.parametrize(("cells", "checks", "fewest"), [(1, 5, 6), (1, 3, 6), (5, 7, 8)])
def test_check_seeds_that_could_show_no_change_are_refused(cells: int, checks: int, fewest: int) -> None:
    """The same rule for as many differences as are looked at: 1/128 for five."""
    with pytest.raises(ConfigError, match=f"could show no change of {cells} difference.* check_seeds to {fewest} or"):
        standing_study("a", [0], compared=1, cells=cells, seeds=20, a_night=1, checks=checks)
    standing_study("a", [0], compared=1, cells=cells, seeds=20, a_night=1, checks=fewest)


def test_more_check_seeds_than_the_study_has() -> None:
    with pytest.raises(ConfigError, match="more than the 7 seeds"):
        standing_study("a", [0], compared=1, cells=1, seeds=7, a_night=1, checks=8)


def test_night_by_night() -> None:
    nights = []
    finished: set[int] = set()
    for _ in range(3):
        nights.append(tonight(STUDY, "new", State(frozenset(finished), "")))
        finished |= set(nights[-1].seeds)
    assert nights == [
        Tonight("study", (200, 201, 202)),
        Tonight("study", (203, 204, 205)),
        Tonight("study", (206,), last=True),
    ]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State(frozenset({201, 205}), ""), Tonight("study", (200, 202, 203))),  # those that failed come again
        (State(frozenset(STUDY.seeds), ""), Tonight("study", (), last=True)),  # the report alone is missing
        (State(frozenset(STUDY.seeds), "new"), Tonight("nothing", ())),
        (State(frozenset(), "old"), Tonight("check", (200, 201))),  # code, data or a package that computes changed
        (State(frozenset({200, 201}), "old"), Tonight("check", (200, 201))),  # made, and not yet compared
        (State(frozenset({200, 201}), "old", "not moved"), Tonight("nothing", ())),
        (State(frozenset({200, 201}), "old", "moved"), Tonight("study", (202, 203, 204))),  # made anew
        (State(frozenset(STUDY.seeds[:6]), "old", "moved"), Tonight("study", (206,), last=True)),
        (State(frozenset(STUDY.seeds), "new", "moved"), Tonight("nothing", ())),  # its own verdict is there since
        (State(frozenset(), "new", "not moved"), Tonight("nothing", ())),  # back to the code of the verdict
    ],
)
def test_what_a_night_does(state: State, expected: Tonight) -> None:
    assert tonight(STUDY, "new", state) == expected


SIX = (200, 201, 202, 203, 204, 205)


def scores(**arms: tuple[float, ...]) -> dict[str, dict[str, dict[int, float]]]:
    """Of seeds 200, 201 and so on."""
    return {"": {arm: {200 + place: value for place, value in enumerate(values)} for arm, values in arms.items()}}


# of the default comparison: docs/results.md, "The default comparison" and "Which part of it does the work"
PUBLISHED = scores(
    outcome_only=(0.393, 0.345, 0.298, 0.070, 0.483, 0.366, 0.383, 0.404),
    igpo_rms=(0.616, 0.420, 0.470, 0.622, 0.602, 0.512, 0.456, 0.528),
)
ON_AVX512 = {"": {arm: {seed: of[seed] for seed in of if seed < 207} for arm, of in PUBLISHED[""].items()}}
ON_AVX2 = scores(
    outcome_only=(0.353, 0.298, 0.323, 0.307, 0.452, 0.379, 0.300),
    igpo_rms=(0.594, 0.462, 0.534, 0.638, 0.605, 0.457, 0.489),
)


def test_a_run_that_repeats_itself_stands() -> None:
    now = {"": {arm: {seed: of[seed] for seed in SIX} for arm, of in PUBLISHED[""].items()}}
    (change,) = changes(PUBLISHED, now, "outcome_only", SIX)
    assert change.identical and change.stands and not change.moved
    assert (change.low, change.high) == (0, 0)


def test_an_effect_that_is_gone_is_no_verdict_that_stands() -> None:
    """Differences before: .223 .075 .172 .552 .119 .146 .073 .124, of which the first six have mean .2145, all .1855. They are
    zero in the mean now, and every one is below: with six seeds and one arm the interval is the range of the changes."""
    base, gone = PUBLISHED[""]["outcome_only"], (0.05, -0.05, 0.03, -0.03, 0.0, 0.0)
    now = {"": {"outcome_only": base, "igpo_rms": {seed: base[seed] + gone[seed - 200] for seed in SIX}}}
    (change,) = changes(PUBLISHED, now, "outcome_only", SIX)
    assert (change.effect, change.before) == (pytest.approx(0.1855), pytest.approx(0.2145))
    assert change.now == pytest.approx(0)
    assert (change.low, change.high) == (pytest.approx(-0.582), pytest.approx(-0.119))  # seeds 203 and 204
    assert change.moved and not change.stands


def test_an_effect_that_may_be_gone_is_no_verdict_that_stands() -> None:
    """Two of six seeds rise, so that no change is shown; the changes are -.523 +.125 -.372 -.352 -.219 +.054, and their range
    holds -.1855, which would be all of the effect."""
    base, new = PUBLISHED[""]["outcome_only"], (-0.3, 0.2, -0.2, 0.2, -0.1, 0.2)
    now = {"": {"outcome_only": base, "igpo_rms": {seed: base[seed] + new[seed - 200] for seed in SIX}}}
    (change,) = changes(PUBLISHED, now, "outcome_only", SIX)
    assert (change.now, change.by) == (pytest.approx(0), pytest.approx(-0.2145))
    assert (change.low, change.high) == (pytest.approx(-0.523), pytest.approx(0.125))
    assert change.unseen == pytest.approx(0.2145 + 0.125)
    assert not change.moved and not change.stands
    said = morning.checked(Study("a", SIX, 2, SIX), VERDICT, ["numpy 2.4.5 → 2.4.6"], [change])
    assert "The verdict stands" not in said and "No change was shown" in said


def test_another_processor_leaves_the_published_verdict_standing() -> None:
    """It draws everything anew. The changes of igpo_rms are +.018 +.089 +.039 -.221 +.034 -.068 +.116. Of the 128 parts that the
    means of their subsets make the interval leaves three out on each side: the third smallest is (-.221 + .018) / 2, the third
    largest .089. The effect was 1.36 / 7 = .194."""
    (change,) = changes(ON_AVX512, ON_AVX2, "outcome_only", range(200, 207))
    assert (change.effect, change.by) == (pytest.approx(1.36 / 7), pytest.approx(0.001))
    assert (change.low, change.high) == (pytest.approx(-0.1015), pytest.approx(0.089))
    assert change.unseen == pytest.approx(0.1025)
    assert change.stands and not change.moved and not change.identical


def test_a_change_to_the_better_moves_the_verdict_too() -> None:
    """Changes of +.1 +.2 +.1 +.2 +.1 +.2."""
    base = (0.1,) * 6
    before, now = scores(base=base, igpo=(0.2,) * 6), scores(base=base, igpo=(0.3, 0.4, 0.3, 0.4, 0.3, 0.4))
    (change,) = changes(before, now, "base", SIX)
    assert (change.low, change.high) == (pytest.approx(0.1), pytest.approx(0.2)) and change.moved


def test_a_change_of_the_baseline_counts_like_one_of_the_arm() -> None:
    """The baseline rises by .2 where the arm stays: the difference of +.1 becomes -.1."""
    before = scores(base=(0.1,) * 6, igpo=(0.2,) * 6)
    (change,) = changes(before, scores(base=(0.3,) * 6, igpo=(0.2,) * 6), "base", SIX)
    assert (change.before, change.now) == (pytest.approx(0.1), pytest.approx(-0.1)) and change.moved


def test_the_level_is_shared_by_the_differences_looked_at() -> None:
    """Seven changes, one of them downwards. Of 128 parts .05 / 2 leaves three out on each side for one difference, and the third
    smallest subset mean is (-.1 + .4) / 2; .025 / 2 leaves one out for two, and the smallest is -.1."""
    base, up = (0.1,) * 7, (0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # changes: -.1, .3, .4, .5, .6, .7, .8
    before, now = scores(base=base, a=base), scores(base=base, a=up)
    (alone,) = changes(before, now, "base", range(200, 207))
    assert alone.low == pytest.approx(0.15) and alone.moved
    two, of_two = changes(scores(base=base, a=base, b=base), scores(base=base, a=up, b=up), "base", range(200, 207))
    assert two.low == of_two.low == pytest.approx(-0.1) and not two.moved


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
NO_MOVE = Change("igpo", "", effect=0.3, before=0.25, now=0.35, low=-0.1, high=0.2, identical=False)
UNTOLD = Change("shuffled", "", effect=0.04, before=0.05, now=0.02, low=-0.13, high=0.1, identical=False)
MOVE = Change("igpo", "", effect=0.3, before=0.25, now=0.0, low=-0.4, high=-0.1, identical=False)


def test_an_interim_night_tells_no_difference() -> None:
    message = morning.progress(STUDY, "lookup-new", (200, 201, 202), done=3, anew="")
    assert message.subject == "lookup: 3 of 7 seeds"
    assert message.body.startswith(
        "Seeds 200, 201 and 202 were finished: 3 of 7 seeds of lookup-new are there. 2 more nights"
    )
    assert "1 more night to" in morning.progress(STUDY, "lookup-new", (203, 204, 205), done=6, anew="").body


def test_the_verdict_begins_with_its_sentence() -> None:
    message = morning.verdict(
        STUDY, "lookup-new", "igpo is better than base.", ["2 processors"], "http://m/r1", anew=""
    )
    assert (
        message.body.startswith("igpo is better than base.\n\nWarning: 2 processors\n\n")
        and "http://m/r1" in message.body
    )
    assert "From now on a night runs seeds 200 and 201 again when" in message.body


def test_a_night_without_anything_to_do_repeats_the_verdict_and_its_check() -> None:
    alone = morning.nothing(STUDY, VERDICT, "")
    assert "nothing was run" in alone.body and "27 November 2026: igpo is better than base." in alone.body
    assert "The last check: THE VERDICT MOVED" in morning.nothing(STUDY, VERDICT, "THE VERDICT MOVED for igpo").body


CHANGED = ["numpy 2.4.5 → 2.4.6"]


def test_a_verdict_that_moved_is_made_anew() -> None:
    said = morning.checked(STUDY, VERDICT, CHANGED, [MOVE, UNTOLD])
    message = morning.check(STUDY, VERDICT, [MOVE, UNTOLD], said)
    assert message.subject == "lookup: THE VERDICT MOVED"
    assert "these changed: numpy 2.4.5 → 2.4.6. Seeds 200 and 201 were run again." in message.body
    assert (
        "igpo: its difference in the test score on these seeds was +0.250 in the study and is +0.000. Seed by seed it changed by "
        "-0.250 (97.5% interval -0.400 to -0.100): more than chance does."
    ) in message.body
    assert (
        "THE VERDICT MOVED for igpo and may hold no longer. From the next night on the study is made anew on what is there now, "
        "3 seeds a night; 2 of 7 are there."
    ) in message.body
    assert "igpo is better than base." in message.body and "prefect deployment" not in message.body


def test_a_verdict_stands_where_a_change_as_large_as_its_effect_is_ruled_out() -> None:
    """The interval -.1 to +.2 about +.1 is .2 wide on the left: a change below .2 is not seen. The effect is .3."""
    said = morning.checked(STUDY, VERDICT, CHANGED, [NO_MOVE])
    assert morning.check(STUDY, VERDICT, [NO_MOVE], said).subject == "lookup: the verdict stands"
    assert (
        "(95% interval -0.100 to +0.200). No change was shown, and one below 0.200 cannot be seen on these seeds; that the "
        "study's difference of +0.300 is gone is ruled out.\n\nThe verdict stands."
    ) in said


def test_a_check_that_cannot_tell_says_so() -> None:
    """The interval -.13 to +.1 about -.03 is .13 wide on the right."""
    said = morning.checked(STUDY, VERDICT, CHANGED, [UNTOLD])
    message = morning.check(STUDY, VERDICT, [UNTOLD], said)
    assert message.subject == "lookup: no change shown"
    assert (
        "No change was shown, and one below 0.130 cannot be seen on these seeds: the study's difference of +0.040 may be gone."
    ) in message.body
    assert (
        "cannot tell whether the verdict stands for shuffled." in message.body and "verdict stands." not in message.body
    )


def test_one_arm_that_stands_does_not_answer_for_another() -> None:
    said = morning.checked(STUDY, VERDICT, CHANGED, [NO_MOVE, UNTOLD])
    assert morning.check(STUDY, VERDICT, [NO_MOVE, UNTOLD], said).subject == "lookup: no change shown"
    assert "The verdict stands." not in said and "for shuffled." in said


def test_scores_that_repeat_to_the_last_digit_are_said_to() -> None:
    same = Change("igpo", "", effect=0.3, before=0.25, now=0.25, low=0, high=0, identical=True)
    said = morning.checked(STUDY, VERDICT, ["commit c1 → c2"], [same])
    assert "to the last digit" in said and "The verdict stands." in said


def test_a_study_that_begins_anew_says_why() -> None:
    """A change of code after 12 of 20 seeds: four are there the next morning."""
    before = Progress("c", "lookup-old", 12, {})
    why = morning.restarted(before, 20, ["igpo_core aa → bb"])
    assert why == (
        "The study BEGINS ANEW: the 12 of 20 seeds of lookup-old that were there after the last night do not count any more, for "
        "these changed: igpo_core aa → bb."
    )
    assert "folders in runs/ are gone" in morning.restarted(before, 20, [])
    assert morning.progress(STUDY, "lookup-new", (200, 201, 202), done=3, anew=why).body.startswith(
        f"{why}\n\nSeeds 200"
    )
    done = morning.verdict(STUDY, "lookup-new", "igpo is better than base.", [], "http://m/r1", anew=why).body
    assert done.startswith("igpo is better than base.") and why in done


def test_a_failed_night_says_why_and_how_to_go_on() -> None:
    message = morning.failed("lookup", ConfigError("no such arm"), "prefect flow-run retry 7")
    assert message.subject == "lookup: the night FAILED"
    assert message.body.startswith("no such arm\n") and "prefect flow-run retry 7" in message.body


def test_the_words_of_another_librarys_error_are_not_sent() -> None:
    """They may hold an address with a password."""
    message = morning.failed("lookup", OSError("postgresql://lab:secret@db/x"), "prefect flow-run retry 7")
    assert message.body.startswith("OSError,") and "secret" not in message.body
