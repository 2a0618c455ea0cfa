"""Which rooms of the library know of which world: nothing outside an environment says search or F1."""

import re
from pathlib import Path

import pytest

import igpo_core

LIBRARY = Path(igpo_core.__file__).parent
SAID = re.compile(r"search|(?<![a-z0-9])f1(?![a-z0-9])", re.IGNORECASE)
# Python's own words for looking through a text, a sorted list or folders
OF_PYTHON = re.compile(r"\.search\(|\bsearchsorted\b|\bsubmodule_search_locations\b")
ROOMS = ("environments", "retrieval")
# file -> what it may say, and why. Patterns, of the line without OF_PYTHON; each is needed.
EXCEPTIONS: dict[str, tuple[str, ...]] = {
    "rewards/outcome.py": (r"f1|F1",),  # the door f1_score, and its parts
    "config/__init__.py": (
        r"\b(BM25|Dense|Web)Search\b",
        r"\bSearchConfig\b",
    ),  # the door to the settings of every world
    "training.py": (r"time/search",),  # a metric's name that stays: sweeps of older commits have it
    "rewards/gains.py": (r"\bIG-Search\b",),  # a paper
    "config/variants.py": (r"\bIG-Search\b",),
    "data/questions.py": (r"\bSearch-R1\b", r"\bOF_SEARCH_R1\b", r"\bsearchR1_"),  # a data set, whose tables are read
}


def sayings(file: str, source: str) -> list[str]:
    """The lines of a file that say search or F1 and may not."""
    allowed = re.compile("|".join(f"(?:{pattern})" for pattern in EXCEPTIONS.get(file, ())) or r"(?!)")
    lines = enumerate(source.splitlines(), start=1)
    left = ((number, line, allowed.sub("", OF_PYTHON.sub("", line))) for number, line in lines)
    return [f"{file}:{number}: {line.strip()}" for number, line, rest in left if SAID.search(rest)]


def test_nothing_outside_an_environment_says_search_or_f1() -> None:
    files = {path.relative_to(LIBRARY).as_posix(): path for path in LIBRARY.rglob("*.py")}
    outside = {file: path for file, path in files.items() if not file.startswith(tuple(f"{room}/" for room in ROOMS))}
    assert len(outside) > 60 and outside.keys() >= EXCEPTIONS.keys()
    found = [line for file, path in outside.items() for line in sayings(file, path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_no_exception_is_left_over() -> None:
    for file, patterns in EXCEPTIONS.items():
        for pattern in patterns:
            assert re.search(pattern, (LIBRARY / file).read_text(encoding="utf-8")), (file, pattern)


@pytest.mark.parametrize(
    ("line", "is_said"),
    [
        ("max_searches: int = 2", True),
        ("class WebSearch(Settings):", True),
        ('scores["f1"]', True),
        ("best_f1 = 0.0", True),
        ("# lowers every F1 unseen", True),
        ("found = PATTERN.search(text)", False),
        ("torch.searchsorted(sums, target)", False),
        ("PATTERN.search(text)  # a search", True),
        ("key = 'af1b2'", False),
    ],
)
def test_what_counts_as_said(line: str, is_said: bool) -> None:
    assert bool(sayings("thing.py", line)) is is_said
