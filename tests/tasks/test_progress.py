"""What a sweep says of its progress, worked out by hand."""

from tasks.runs.progress import Progress


def test_what_is_left_comes_from_what_was_expected_then_from_what_was_seen() -> None:
    progress = Progress(warm_starts=2, runs=4, there=3, workers=2)
    assert progress.done("warm_start", 100.0) == "1 of 2 warm starts"  # nobody knows yet what a run takes
    progress.expect(warm_start=50.0, run=60.0)
    # no warm start is left, four runs of 60 s on two workers
    assert progress.done("warm_start", 300.0) == "2 of 2 warm starts · about 2 min left"
    # three runs of 600 s, two at a time
    assert progress.done("train", 600.0) == "4 of 7 runs · about 15 min left"
    # one that failed says nothing of the seconds: two of 600 s
    assert progress.done("train", None) == "5 of 7 runs · about 10 min left"
    # the mean of 600 and 200; the one that is left keeps one worker busy alone
    assert progress.done("train", 200.0) == "6 of 7 runs · about 7 min left"
    assert progress.done("train", 400.0) == "7 of 7 runs"


def test_warm_starts_that_are_left_count() -> None:
    progress = Progress(warm_starts=3, runs=3, there=0, workers=1)
    progress.expect(warm_start=100.0, run=50.0)
    assert progress.done("warm_start", 200.0) == "1 of 3 warm starts · about 9 min left"  # 2 x 200 + 3 x 50 = 550 s
