"""What a sweep says of its progress, worked out by hand."""

from typing import Any

from tasks.runs.progress import Kind, Progress


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def progress(self, **counts: Any) -> Progress:
        return Progress(**counts, now=lambda: self.seconds)

    def make(self, progress: Progress, kind: Kind, seconds: float, failed: bool = False) -> str:
        """Make one, alone."""
        begun = progress.begin(kind)
        self.seconds += seconds
        return progress.done(kind, begun, failed)


def test_what_is_left_comes_from_what_was_expected_then_from_what_was_seen() -> None:
    clock = Clock()
    progress = clock.progress(warm_starts=2, runs=4, there=3, workers=2)
    assert clock.make(progress, "warm_start", 100.0) == "1 of 2 warm starts"  # nobody knows yet what a run takes
    progress.expect(warm_start=50.0, run=60.0)
    # no warm start is left, four runs of 60 s on two workers
    assert clock.make(progress, "warm_start", 300.0) == "2 of 2 warm starts · about 2 min left"
    # three runs of 600 s, two at a time
    assert clock.make(progress, "train", 600.0) == "4 of 7 runs · about 15 min left"
    # one that failed says nothing of the seconds: two of 600 s
    assert clock.make(progress, "train", 1.0, failed=True) == "5 of 7 runs · about 10 min left"
    # the mean of 600 and 200; the one that is left keeps one worker busy alone
    assert clock.make(progress, "train", 200.0) == "6 of 7 runs · about 7 min left"
    assert clock.make(progress, "train", 400.0) == "7 of 7 runs"


def test_warm_starts_that_are_left_count() -> None:
    clock = Clock()
    progress = clock.progress(warm_starts=3, runs=3, there=0, workers=1)
    progress.expect(warm_start=100.0, run=50.0)
    # 2 x 200 + 3 x 50 = 550 s
    assert clock.make(progress, "warm_start", 200.0) == "1 of 3 warm starts · about 9 min left"


def test_what_goes_on_is_left_in_part() -> None:
    """Of two runs that began together one was done after 79 s, and the other was said to take 79 s more."""
    clock = Clock()
    progress = clock.progress(warm_starts=0, runs=3, there=0, workers=2)
    progress.expect(warm_start=0.0, run=25.0)
    first, second = progress.begin("train"), progress.begin("train")
    clock.seconds = 60.0
    third = progress.begin("train")
    clock.seconds = 80.0
    # 80 s each: 60 s of the third, and of the second a tenth, for it takes longer than the first: 68 s on two workers
    assert progress.done("train", first) == "1 of 3 runs · about 34 s left"
    clock.seconds = 100.0
    # the mean is 90 s, of which the third has had 40
    assert progress.done("train", second) == "2 of 3 runs · about 50 s left"
    assert progress.done("train", third) == "3 of 3 runs"
