"""Great Expectations over question and passage tables: errors quarantine a row with its reason, warnings are reported.

Every rule looks at a plain derived column (word counts, copies, missing titles), so that tables of 50,000 rows and more
take seconds. Rows that could not be read fail the rule `readable` alone: their derived columns are null, which every
other rule passes over.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import pandas

from igpo_core.config import BM25Search, DataConfig, QuestionFiles, Source
from igpo_core.data import CORPUS_SCHEMA, QUESTION_SCHEMA, SPLITS
from igpo_core.data.schema import DEFECT, TRAJECTORY_SCHEMA, content_hash
from igpo_core.protocol import MARKERS
from tasks.data.checked import SUITE_DOCS
from tasks.data.columns import derive_corpus, derive_questions, derive_trajectories
from tasks.data.data_docs import EXCERPT, as_text, open_context, shown, write_pages
from tasks.data.suites import Suite, Unmet, columns_of, forget, keep_escaped, suite_name, suites_told, unmet_entries

SHORT_PASSAGE = 5  # words; fewer are a heading or a stub


@dataclass(frozen=True)
class Rule:
    """One expectation. name: what is expected; field: the field of the table that a failing row shows; column: the
    derived column that is looked at; allowed: (least, most), or a set of values, or None for "null". remedy: what to do."""

    name: str
    field: str
    column: str
    allowed: tuple[int | None, int | None] | frozenset[str] | None
    remedy: str
    severity: Literal["error", "warning"] = "error"


@dataclass(frozen=True)
class Validation:
    """Good rows, and what was wrong with the others.

    quarantine: one row for each rule that a row fails, with table, id, field, rule, value, found.
    counts: quarantined rows by "table: rule". quarantined: distinct rows. data_docs: folder with index.html.
    suites: by table, what its user's own suite found (tasks/data/suites.py:suites_told). suite_docs: folder with index.html of
    Data Docs that have the suites too, None without one.
    """

    questions: pandas.DataFrame
    corpus: pandas.DataFrame | None
    quarantine: pandas.DataFrame
    counts: dict[str, int]
    quarantined: int
    warnings: list[str]
    remedies: dict[str, str]
    data_docs: Path
    trajectories: pandas.DataFrame | None = None
    suites: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    suite_docs: Path | None = None

    @functools.cached_property
    def content(self) -> dict[str, str]:
        """The content hash of each table, computed once: it walks every value."""
        tables = {"questions": self.questions, "corpus": self.corpus, "trajectories": self.trajectories}
        return {name: content_hash(table) for name, table in tables.items() if table is not None}


QUARANTINE_COLUMNS = ["table", "id", "field", "rule", "value", "found"]


def validate(
    questions: pandas.DataFrame,
    corpus: pandas.DataFrame | None,
    config: DataConfig,
    data_docs: Path,
    trajectories: pandas.DataFrame | None = None,
    suites: Mapping[str, Suite] | None = None,
) -> Validation:
    """Check the tables (see the module docstring) and write Data Docs into the folder `data_docs`. suites: users' own, by table;
    Data Docs that have them too go beside that folder.

    Passages are checked first: a supporting title counts as present only if a good passage has it. Aliases that are
    empty or longer than max_answer_words are dropped from good rows.
    """
    context = open_context()
    entries: list[dict[str, str]] = []
    warnings: list[str] = []
    remedies: dict[str, str] = {}
    quarantined = 0
    suites, unmet = suites or {}, {}

    def check(name: str, table: pandas.DataFrame, derived: pandas.DataFrame, rules: Sequence[Rule]) -> pandas.DataFrame:
        """The good rows of a table."""
        nonlocal quarantined
        bad: set[int] = set()
        found, unmet[name] = _run(context, name, table, derived, rules, suites.get(name))
        for rule, failing in found:
            if rule.severity == "warning":
                if failing:
                    first = table["id" if "id" in table else "passage_id"].iloc[failing[0][0]]
                    warnings.append(
                        f"{name}: {len(failing)} rows fail '{rule.name}' ({rule.remedy}), the first is {shown(first)}"
                    )
                continue
            remedies[f"{name}: {rule.name}"] = rule.remedy
            bad.update(row for row, _ in failing)
            entries.extend(_entry(name, table.iloc[row], rule, found) for row, found in failing)
        quarantined += len(bad)
        return table.drop(index=table.index[sorted(bad)]).reset_index(drop=True)

    titles: set[str] | None = None
    if corpus is not None:
        corpus = check("corpus", corpus, derive_corpus(corpus), _corpus_rules(config))[list(CORPUS_SCHEMA)]
        titles = set(corpus["title"])
    longest = config.max_answer_words if isinstance(config, QuestionFiles) else None
    derived, usable = derive_questions(questions, titles, longest, config)
    good = check("questions", questions.assign(usable=usable), derived, _question_rules(config))
    good["answers"] = good["usable"]
    if trajectories is not None:
        columns = derive_trajectories(trajectories, good)
        trajectories = check("trajectories", trajectories, columns, _trajectory_rules(config))[list(TRAJECTORY_SCHEMA)]
    _write_docs(context, data_docs, suites)
    quarantine = pandas.DataFrame(entries, columns=QUARANTINE_COLUMNS, dtype="str")
    return Validation(
        good[list(QUESTION_SCHEMA)], corpus, quarantine, _counts(quarantine), quarantined, warnings, remedies, data_docs,
        trajectories, suites_told(suites, unmet), data_docs.with_name(SUITE_DOCS) if suites else None,
    )  # fmt: skip


def _counts(quarantine: pandas.DataFrame) -> dict[str, int]:
    names = quarantine["table"] + ": " + quarantine["rule"]
    return {str(name): int(count) for name, count in names.value_counts().items()}


def _write_docs(context: Any, data_docs: Path, suites: Mapping[str, Suite]) -> None:
    """Data Docs of our rules, the same with a suite and without one; with one, those of rules and suites beside them."""
    if suites:
        write_pages(context, data_docs.with_name(SUITE_DOCS))
        forget(context, [suite_name(table) for table in suites])
    write_pages(context, data_docs)


# --------------------------------------------------------------------------------------------------------- rules


def _question_rules(config: DataConfig) -> list[Rule]:
    files = isinstance(config, QuestionFiles)
    sources = frozenset(get_args(Source)) if files else frozenset({config.kind})
    rules = [
        Rule("readable", "row", "defect", None, "repair the field that is named"),
        Rule("id unique", "id", "id_copy", (None, 0), "give every row an id of its own; the first row of an id is kept"),
        Rule("source known", "source", "source", sources, f"use one of {sorted(sources)}"),
        Rule(
            "split known", "split", "split", frozenset(SPLITS),
            f"name one of {list(SPLITS)} in a column split, or give the file its split: data.questions[..].split",
        ),
        Rule("question not empty", "question", "question_words", (1, None), "give the question's text"),
        Rule("answers not empty", "answers", "aliases_given", (1, None), "give at least one answer"),
        Rule(
            "question in one split", "question", "shared_with", None,
            "a question of test must be in no other split, one of dev not in train: remove it there",
        ),
        Rule("answer not stated", "question", "answer_stated", (None, 0), "take the answer out of the question's text"),
        Rule(
            "no distractor names an answer", "distractors", "answer_in_distractors", (None, 0),
            "a search would give the answer away: take it out of the distractors",
        ),
        Rule(
            "answer has a word", "answers", "bare_answers", (None, 0),
            "SQuAD's normalisation leaves nothing of an answer: it is compared as it stands, and paper_f1 can never be "
            "earned with one that has no letter or digit", "warning",
        ),
        Rule(
            "answer can be given", "answers", "answers_not_given", (None, 0),
            f"an answer holds a tag of the protocol ({MARKERS[0]}, {MARKERS[-1]}, ..), which no turn can give as text, or a "
            "character that was lost (U+FFFD): nobody earns the reward for it as it stands", "warning",
        ),
        Rule(
            "answer has a name of its own", "answers", "answers_alike", (None, 0),
            "SQuAD's normalisation makes answers of several rows one, as C and C#: either is scored as right", "warning",
        ),
    ]  # fmt: skip
    if isinstance(config, QuestionFiles):
        rules += [
            Rule(
                "answer not named in question", "question", "answer_named", (None, 0),
                "comparison questions do; of others it would be a leak", "warning",
            ),
            Rule(
                "question length", "question", "question_words", (None, config.max_question_words),
                "shorten it or raise data.max_question_words",
            ),
            Rule(
                "answer length", "answers", "aliases_usable", (1, None),
                "every alias is longer than data.max_answer_words: shorten one or raise it",
            ),
            Rule(
                "supporting titles in corpus", "supporting_titles", "missing_titles", (None, 0),
                "add the passages to the corpus, or mark the row answerable = false",
            ),
            Rule("question asked once", "question", "asked_before", (None, 0), "it counts more than once", "warning"),
            Rule("no alias dropped", "answers", "aliases_dropped", (None, 0), "aliases dropped: empty or too long",
                 "warning"),
        ]  # fmt: skip
    return rules


def _corpus_rules(config: DataConfig) -> list[Rule]:
    rules = [
        Rule("readable", "row", "defect", None, "repair the field that is named"),
        Rule("id unique", "passage_id", "id_copy", (None, 0), "give every passage an id; the first of an id is kept"),
        Rule("title not empty", "title", "title_words", (1, None), "give the passage a title"),
        Rule("text not empty", "text", "text_words", (1, None), "give the passage a text"),
        Rule("text not a stub", "text", "words_of_text", (SHORT_PASSAGE, None), "a heading or a stub", "warning"),
        Rule("text unique", "text", "text_copy", (None, 0), "a repeated text takes two places in results", "warning"),
    ]
    if isinstance(config, QuestionFiles) and isinstance(config.search, BM25Search):
        rules.append(
            Rule(
                "script has spaces between words", "text", "unspaced", (None, 0),
                "bm25 searches languages as Chinese, Japanese or Thai by pairs of characters: search.kind=dense with a model of "
                "the language may find more", "warning",
            )
        )  # fmt: skip
    return rules


def _trajectory_rules(config: DataConfig) -> list[Rule]:
    most = config.max_answer_words if isinstance(config, QuestionFiles) else None
    return [
        Rule("readable", "row", "defect", None, "repair the message that is named"),
        Rule("id unique", "id", "id_copy", (None, 0), "give every trajectory an id of its own; the first of an id is kept"),
        Rule("question of train", "question", "asked_in", None, "a question of dev or test would be learnt: take it out"),
        Rule("answer length", "answer", "answer_words", (None, most), "answer in fewer words, or raise data.max_answer_words"),
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------- Great Expectations


def _run(
    context: Any,
    name: str,
    table: pandas.DataFrame,
    derived: pandas.DataFrame,
    rules: Sequence[Rule],
    own: Suite | None,
) -> tuple[list[tuple[Rule, list[tuple[int, str]]]], list[Unmet]]:
    """Each rule with its failing rows, (position in the table, what was found), in table order; and what the user's own suite, in
    the same checkpoint, does not find met."""
    import great_expectations as gx

    batch = context.data_sources.add_pandas(name).add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
    suites = [context.suites.add(gx.ExpectationSuite(name=name, expectations=[_expectation(rule) for rule in rules]))]
    # Every rule gets a column of its name, which is what Data Docs show.
    columns = {rule.name: as_text(derived[rule.column]) for rule in rules}
    if own is not None:
        suites.append(context.suites.add(gx.ExpectationSuite(name=suite_name(name), expectations=list(own.entries))))
        columns |= {str(column): values for column, values in columns_of(name, table).reset_index(drop=True).items()}
    definitions = [
        context.validation_definitions.add(gx.ValidationDefinition(name=suite.name, data=batch, suite=suite))
        for suite in suites
    ]
    checkpoint = gx.Checkpoint(
        name=name,
        validation_definitions=definitions,
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["row"]},
    )
    frame = pandas.DataFrame({"row": derived["row"].reset_index(drop=True), **columns})
    run = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": frame})
    results = {found.suite_name: found for found in run.run_results.values()}
    ours = [(rule, _failing(name, rule, results[name], derived)) for rule in rules]
    if own is None:
        return ours, []
    names = table["id" if "id" in table else "passage_id"].tolist()
    unmet = unmet_entries(own, suites[1].expectations, results[suites[1].name], names)
    keep_escaped(context, suites[1])
    return ours, unmet


def _failing(name: str, rule: Rule, results: Any, derived: pandas.DataFrame) -> list[tuple[int, str]]:
    result = next(one for one in results.results if one.expectation_config.kwargs["column"] == rule.name)
    if "unexpected_index_list" not in result.result:
        raise RuntimeError(f"expectation {rule.name!r} on {name} was not evaluated: {result.exception_info}")
    rows = sorted(int(item["row"]) for item in result.result["unexpected_index_list"])
    return [(row, str(derived[rule.column].iloc[row])) for row in rows]


def _expectation(rule: Rule) -> Any:
    from great_expectations.expectations.core.expect_column_values_to_be_between import ExpectColumnValuesToBeBetween
    from great_expectations.expectations.core.expect_column_values_to_be_in_set import ExpectColumnValuesToBeInSet
    from great_expectations.expectations.core.expect_column_values_to_be_null import ExpectColumnValuesToBeNull

    common: dict[str, Any] = {
        "column": rule.name,
        "severity": "critical" if rule.severity == "error" else "warning",
        "notes": f"{rule.name} ({rule.severity}; field {rule.field}): {rule.remedy}",
    }
    if rule.allowed is None:
        return ExpectColumnValuesToBeNull(**common)
    if isinstance(rule.allowed, frozenset):
        return ExpectColumnValuesToBeInSet(value_set=sorted(rule.allowed), **common)
    return ExpectColumnValuesToBeBetween(min_value=rule.allowed[0], max_value=rule.allowed[1], **common)


def _entry(table: str, row: "pandas.Series[Any]", rule: Rule, found: str) -> dict[str, str]:
    """A line of the quarantine. An unreadable row names the field itself."""
    readable = rule.column != DEFECT
    return {
        "table": table,
        "id": str(row["id" if "id" in row else "passage_id"]),
        "field": rule.field if readable else found.split(":")[0],
        "rule": rule.name,
        "value": str(row[rule.field])[:EXCERPT] if readable else "",
        "found": f"{rule.column} = {found}" if readable else found,
    }
