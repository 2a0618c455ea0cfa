"""From the data settings to tables: files of the hub fetched, files read and chosen from, worlds generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas

from igpo_core.config import DataConfig, QuestionFiles, Source, WebSearch
from igpo_core.data import CORPUS_SCHEMA, load_corpus, load_questions
from igpo_core.data.schema import DEFECT
from igpo_core.data.trajectories import load_trajectories
from igpo_core.hub import fetched
from igpo_core.retrieval.web import search_key
from igpo_core.text import windows

OVERLAP = 4  # neighbouring parts of a long passage share a fourth of data.max_passage_words


@dataclass(frozen=True)
class Tables:
    """What was read. dropped: rows that were left out because they were not asked for, by reason. wholes: passages longer than
    data.max_passage_words, of which the corpus has parts: passage_id, title, text, and the ids of the parts."""

    questions: pandas.DataFrame
    corpus: pandas.DataFrame | None
    dropped: dict[str, int]
    wholes: pandas.DataFrame | None = None
    trajectories: pandas.DataFrame | None = None

    @property
    def split(self) -> tuple[int, int]:
        """Return how many passages were split, and into how many parts."""
        return (0, 0) if self.wholes is None else (len(self.wholes), int(self.wholes["parts"].map(len).sum()))


def on_this_machine(config: DataConfig) -> DataConfig:
    """Return the same with files of the hub fetched."""
    return config.placed(fetched) if isinstance(config, QuestionFiles) else config


def read(config: DataConfig) -> Tables:
    """All rows that are asked for: generated for a synthetic world, loaded and chosen for files."""
    if isinstance(config, QuestionFiles):
        return _read_files(config)
    return Tables(config.generate(), None, {})


def _read_files(config: QuestionFiles) -> Tables:
    questions = pandas.concat([load_questions(file.path, split=file.split) for file in config.questions])
    dropped: dict[str, int] = {}

    def keep(wanted: "pandas.Series[Any]", reason: str) -> None:
        nonlocal questions
        dropped[reason] = int((~wanted).sum())
        questions = questions[wanted]

    if config.only_answerable:
        keep(questions["answerable"], "marked as not answerable")
    if config.evaluation is not None:
        keep(questions["split"] != "test", "test row replaced by the evaluation file")
        evaluation = load_questions(config.evaluation, split="test").assign(split="test")
        # First, so that of two rows with one id the evaluation's is the one that stays.
        questions = pandas.concat([evaluation, questions])
    if config.sources:
        others = set(get_args(Source)) - set(config.sources)  # a source of no such name is left to the validation
        keep(~questions["source"].isin(others), "of another source")
    corpus, wholes = None, None
    if config.corpus:
        corpus, wholes = split_long(_read_corpus(config.corpus, dropped), config.max_passage_words)
    if isinstance(config.search, WebSearch):  # before any work: a missing key is an error now, not at the first search
        search_key(config.search)
    trajectories = None
    if config.trajectories:
        read_files = [load_trajectories(path, config.interface) for path in config.trajectories]
        trajectories = pandas.concat(read_files).reset_index(drop=True)
    return Tables(questions.reset_index(drop=True), corpus, dropped, wholes, trajectories)


def _read_corpus(paths: Sequence[Path], dropped: dict[str, int]) -> pandas.DataFrame:
    """The passages of all files; one that an earlier file has too, word for word, is counted in `dropped`."""
    corpus = load_corpus(paths[0])
    for path in paths[1:]:
        more = load_corpus(path)
        columns = list(CORPUS_SCHEMA)
        known = pandas.MultiIndex.from_frame(more[columns]).isin(pandas.MultiIndex.from_frame(corpus[columns]))
        reason = "passage of an earlier file"
        dropped[reason] = dropped.get(reason, 0) + int(known.sum())
        corpus = pandas.concat([corpus, more[~known]])
    return corpus.reset_index(drop=True)


def split_long(corpus: pandas.DataFrame, most: int) -> tuple[pandas.DataFrame, pandas.DataFrame | None]:
    """The passages with those of more than `most` words in parts that overlap, each under the passage's title; and those that
    were split, with the ids of their parts (Tables.wholes), None where there are none.

    The first part keeps the passage's id, the others are <id>#2, <id>#3, .., with as many # as it takes that no passage has such
    an id. A row that is quarantined, for a defect or as a copy of an id, stays whole.
    """
    rows: list[dict[str, Any]] = []
    wholes: list[dict[str, Any]] = []
    taken, seen = set(corpus["passage_id"]), set()
    for record in corpus.to_dict("records"):
        row = {str(column): value for column, value in record.items()}
        name = row["passage_id"]
        quarantined = pandas.notna(row[DEFECT]) or name in seen
        texts = [row["text"]] if quarantined else windows(row["text"], most, most // OVERLAP)
        if pandas.isna(row[DEFECT]):
            seen.add(name)
        if len(texts) == 1:
            rows.append(row)
            continue
        parts = _part_ids(name, len(texts), taken)
        taken.update(parts)
        rows += [{**row, "passage_id": part, "text": text} for part, text in zip(parts, texts, strict=True)]
        wholes.append({**{column: row[column] for column in CORPUS_SCHEMA}, "parts": parts})
    if not wholes:
        return corpus, None
    return pandas.DataFrame(rows, columns=corpus.columns).astype(corpus.dtypes), pandas.DataFrame(wholes)


def _part_ids(name: str, count: int, taken: set[str]) -> list[str]:
    mark = "#"
    while any(f"{name}{mark}{number}" in taken for number in range(2, count + 1)):
        mark += "#"
    return [name, *(f"{name}{mark}{number}" for number in range(2, count + 1))]
