"""The search index of published passages, and how fast and how long its answers are."""

import time
from pathlib import Path
from typing import Any

import pandas

from igpo_core.config import DataConfig, DenseSearch, QuestionFiles, WebSearch
from igpo_core.environments.qa import NO_RESULTS, CorpusEnvironment
from igpo_core.retrieval import bm25, dense
from igpo_core.text import count_words

MEASURED = 200  # questions whose search is timed


def index_settings(config: DataConfig) -> dict[str, Any] | None:
    """What decides an index besides its corpus, the library's version included; None where there is no index."""
    if not isinstance(config, QuestionFiles) or isinstance(config.search, WebSearch):
        return None
    return dense.settings(config.search) if isinstance(config.search, DenseSearch) else bm25.SETTINGS


def build_index(config: QuestionFiles, corpus: pandas.DataFrame, folder: Path) -> Path:
    """The index's folder, bm25 or dense."""
    if isinstance(config.search, DenseSearch):
        dense.Dense.build(corpus, folder / "dense", config.search)
        return folder / "dense"
    bm25.BM25.build(corpus, folder / "bm25")
    return folder / "bm25"


def measure_search(config: QuestionFiles, folder: Path) -> dict[str, Any]:
    """What a policy will meet: speed of the search and words of its observations, over test questions as queries."""
    environment = CorpusEnvironment(config, folder)
    asked = environment.tasks("test")[:MEASURED]
    started = time.monotonic()
    found = [observation.text for observation in environment.search([question.text for question in asked])]
    seconds = time.monotonic() - started
    words = sorted(count_words(text) for text in found)
    lines = [line for text in found if text != NO_RESULTS for line in text.split("\n")]
    return {
        "queries": len(asked),
        "queries_per_second": round(len(asked) / seconds, 1),
        "without_results": found.count(NO_RESULTS),
        "observation_words_mean": round(sum(words) / len(words), 1),
        "observation_words_max": words[-1],
        "passages_shown": len(lines),
    }
