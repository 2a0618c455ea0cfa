"""Read, validate, publish: from the data settings to a folder that training and evaluation open.

`<home>/data/<version>/` holds questions.parquet, and for files corpus.parquet, trajectories.parquet where some are given,
wholes.parquet (passages that the corpus has in parts) where data.open_words shows them, and bm25/ or dense/;
quarantine.jsonl; data_docs/;
summary.json (settings, content hashes, counts, warnings, seconds); and manifest.json with the SHA-256 of every other
file. The folder gets its name only when whole, and is found again while its files match the manifest. The version is a
hash of the good rows, of the data settings without paths and of this layout's number: where the files lie and what was
quarantined is not in it. What users' own suites found stands beside it (tasks/data/checked.py), and nothing here is touched.
"""

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas

from igpo_core.config import DataConfig, QuestionFiles, Suites, code_version, fingerprint
from igpo_core.data import SPLITS
from igpo_core.data.questions import ID_ALIASES
from igpo_core.data.schema import content_hash
from igpo_core.environments.qa import WHOLES
from igpo_core.errors import DataError
from igpo_core.folders import checksums, file_hash, fill_folder, write_json
from igpo_core.locks import held
from tasks.data.checked import SUITE_DOCS, checked_folder, keep_checked, read_checked, suite_rows, suite_warnings
from tasks.data.indexing import build_index, index_settings, measure_search
from tasks.data.published import FORMAT, MANIFEST, SUMMARY, is_whole
from tasks.data.reading import Tables, on_this_machine, read
from tasks.lab.secrets import provide

if TYPE_CHECKING:
    from tasks.data.validation import Validation

QUARANTINE = "quarantine.jsonl"
# what decides, with igpo_core, which rows are published, and how
CODE = (
    "checked",
    "columns",
    "data_docs",
    "entries",
    "indexing",
    "published",
    "publishing",
    "reading",
    "suites",
    "validation",
)
# settings that say where data lies, not what it is; users' own suites change no row: a receipt has them, and no version
PATHS = {"questions", "corpus", "evaluation", "trajectories", "expectations"}


@dataclass(frozen=True)
class PublishedData:
    """A published folder. counts: questions by split. reused: it was found whole, not made now.

    quarantined: rows that failed a rule, counted once each; quarantine_by_rule: by "table: rule", each rule on its own.
    seconds: of the stages read, validate, write and (files) index when it was made; index_bytes: 0 without a corpus.
    checked: the folder of what the user's own suites found (tasks/data/checked.py), None without one; warnings has theirs too.
    """

    version: str
    folder: Path
    counts: dict[str, int]
    reused: bool
    quarantined: int
    quarantine_by_rule: dict[str, int]
    warnings: list[str]
    seconds: dict[str, float]
    index_bytes: int
    checked: Path | None = None


def prepare(config: DataConfig, home: Path) -> PublishedData:
    """Read, validate and publish, or find published: the same settings and files are not read a second time.

    Raises DataError: a file that cannot be read, a suite of the user's that is none or is not met, fewer good rows than asked
    for, no space; ConfigError: a missing key.
    """
    found = find_published(config, home)
    if found is not None:
        return found
    config = on_this_machine(config)
    receipt = _receipt(config, home)
    with _writing(home), tempfile.TemporaryDirectory() as temporary:
        found = _found(receipt)  # another process may have published it while this one waited
        if found is not None:
            return found
        from tasks.data.suites import read_suites  # Great Expectations takes seconds
        from tasks.data.validation import validate

        suites = read_suites(config)
        started = time.monotonic()
        tables = read(config)
        seconds = {"read": time.monotonic() - started}
        started = time.monotonic()
        docs = Path(temporary) / "data_docs"
        validation = validate(tables.questions, tables.corpus, config, docs, tables.trajectories, suites)
        seconds["validate"] = time.monotonic() - started
        require_enough(validation, tables, config, home / "data" / "rejected")
        require_met(validation, home / "data" / "rejected")
        published = publish(validation, tables, config, home, seconds)
        if validation.suite_docs is not None:
            checked = checked_folder(home, published.version, receipt.stem)
            keep_checked(validation.suites, validation.suite_docs, checked)
            published = _with_checked(published, checked)
        receipt.parent.mkdir(exist_ok=True)
        write_json(receipt, {"version": published.version, "checked": published.checked is not None})
    return published


def find_published(config: DataConfig, home: Path) -> PublishedData | None:
    """What prepare would find published, if it is whole; None where it would read and validate.

    Raises ConfigError: a missing key; DataError: a file that cannot be read.
    """
    provide(config)
    return _found(_receipt(on_this_machine(config), home))


def _receipt(config: DataConfig, home: Path) -> Path:
    return home / "data" / "receipts" / f"{_inputs_key(config)}.json"


def _found(receipt: Path) -> PublishedData | None:
    """What was published from the same inputs before, if it is still whole."""
    if not receipt.is_file():
        return None
    made = json.loads(receipt.read_text())
    home, version = receipt.parents[2], made["version"]
    if not is_whole(home / "data" / version):
        return None
    published = _published(home / "data" / version, reused=True)
    checked = checked_folder(home, version, receipt.stem)
    if not made["checked"]:
        return published
    return _with_checked(published, checked) if is_whole(checked) else None


def _with_checked(published: PublishedData, checked: Path) -> PublishedData:
    """Published data, with what the user's own suites found."""
    warnings = [*published.warnings, *suite_warnings(read_checked(checked))]
    return replace(published, checked=checked, warnings=warnings)


def require_enough(validation: "Validation", tables: Tables, config: DataConfig, rejected: Path) -> None:
    """Raise DataError when a split or the corpus has fewer good rows than asked for, with the main reasons and remedies.

    The quarantine and the Data Docs are left in the folder `rejected`.
    """
    counts = _by_split(validation.questions)
    lacking = [f"{counts[s]} good {s} questions of {least}" for s, least in _least(config).items() if counts[s] < least]
    if validation.corpus is not None and validation.corpus.empty:
        lacking.append("0 good passages of 1")
    if validation.trajectories is not None and validation.trajectories.empty:
        lacking.append("0 good trajectories of 1")
    if not lacking:
        return

    fill_folder(rejected, lambda folder: _write_rejected(validation, folder))
    read_rows = f"{len(tables.questions)} questions were read"
    if tables.corpus is not None:
        read_rows += f" and {len(tables.corpus)} passages"
    left_out = [f"{count} left out: {reason}" for reason, count in tables.dropped.items() if count]
    reasons = [f"{n} quarantined: {name} ({validation.remedies[name]})" for name, n in validation.counts.items()]
    raise DataError(
        f"too few good rows: {', '.join(lacking)} asked for. {'; '.join([read_rows, *left_out, *reasons])}. "
        f"Every quarantined row is in {rejected / QUARANTINE}: repair them, add files, or ask for fewer rows "
        f"({', '.join(f'data.{name}' for name in _least_names(config))})"
    )


def require_met(validation: "Validation", rejected: Path) -> None:
    """Raise DataError, naming file and entry, where a table does not meet an entry of severity `critical` of its user's suite.

    The quarantine and the Data Docs are left in the folder `rejected`.
    """
    unmet = [
        f"{suite['file']} on {table}, {one['told']}"
        for table, suite in validation.suites.items()
        for one in suite["unmet"]
        if one["severity"] == "critical"
    ]
    if unmet:
        fill_folder(rejected, lambda folder: _write_rejected(validation, folder))
        raise DataError(
            f"your own expectations are not met: {'; '.join(unmet)}. Data Docs show them: "
            f'{rejected / SUITE_DOCS / "index.html"}. Mend the rows, or give the entry `"severity": "warning"`'
        )


def _least_names(config: DataConfig) -> list[str]:
    return [f"min_{split}" if isinstance(config, QuestionFiles) else split for split in SPLITS]


def _least(config: DataConfig) -> dict[str, int]:
    """Rows asked for by split."""
    return {split: getattr(config, name) for split, name in zip(SPLITS, _least_names(config), strict=True)}


def publish(
    validation: "Validation", tables: Tables, config: DataConfig, home: Path, seconds: dict[str, float]
) -> PublishedData:
    """Write the folder of this version, whole or not at all; one that is there, whole, and has the same quarantine is left
    as it is, whatever the user's suites are. seconds: of the stages before. Raises OSError when it cannot be written."""
    wholes = tables.wholes if isinstance(config, QuestionFiles) and config.open_words else None
    version = data_version(validation, config, wholes)
    folder = home / "data" / version
    if is_whole(folder) and _lines(validation.quarantine) == (folder / QUARANTINE).read_text():
        return _published(folder, reused=True)

    def fill(path: Path) -> None:
        started = time.monotonic()
        validation.questions.to_parquet(path / "questions.parquet", index=False)
        if validation.corpus is not None:
            validation.corpus.to_parquet(path / "corpus.parquet", index=False)
        if wholes is not None:
            wholes.to_parquet(path / WHOLES, index=False)
        if validation.trajectories is not None:
            validation.trajectories.to_parquet(path / "trajectories.parquet", index=False)
        _write_quarantine(validation, path)
        spent = {**seconds, "write": time.monotonic() - started}
        index_bytes, search = 0, None
        if isinstance(config, QuestionFiles) and validation.corpus is not None:
            started = time.monotonic()
            index = build_index(config, validation.corpus, path)
            spent["index"] = time.monotonic() - started
            index_bytes = sum(file.stat().st_size for file in index.iterdir())
            search = measure_search(config, path)
        summary = {
            "version": version,
            "config": config.model_dump(mode="json", exclude=PATHS),
            "content": validation.content,
            "counts": _by_split(validation.questions),
            "counts_by_source": _by_source(validation.questions),
            "passages": None if validation.corpus is None else len(validation.corpus),
            "trajectories": None if validation.trajectories is None else len(validation.trajectories),
            "read": {
                "questions": len(tables.questions) + sum(tables.dropped.values()),
                "passages": None if tables.corpus is None else len(tables.corpus),
            },
            "dropped": tables.dropped,
            "split": tables.split,
            "quarantined": validation.quarantined,
            "quarantined_by_rule": validation.counts,
            "warnings": validation.warnings,
            "seconds": {stage: round(value, 3) for stage, value in spent.items()},
            "index_bytes": index_bytes,
            "search": search,
        }
        (path / SUMMARY).write_text(json.dumps(summary, indent=1, ensure_ascii=False))
        manifest = {"format": FORMAT, "version": version, "sha256": checksums(path)}
        (path / MANIFEST).write_text(json.dumps(manifest, indent=1))

    fill_folder(folder, fill)
    return _published(folder, reused=False)


def data_version(validation: "Validation", config: DataConfig, wholes: pandas.DataFrame | None = None) -> str:
    """Twelve hex digits that change with the good rows, their order, the data settings, the way of indexing or the passages that
    are published besides their parts."""
    settings = config.model_dump(mode="json", exclude=PATHS)
    content = validation.content if wholes is None else {**validation.content, "wholes": content_hash(wholes)}
    return fingerprint(FORMAT, content, settings, index_settings(config))


def summary_rows(published: PublishedData) -> list[dict[str, Any]]:
    """Rows {what, rows} of a table: questions by source and split, passages, rows left out, quarantined by rule; then
    what the index and a search take."""
    summary = json.loads((published.folder / SUMMARY).read_text())
    rows = [
        {"what": f"questions, {source}, {split}", "rows": count}
        for source, counts in summary["counts_by_source"].items()
        for split, count in counts.items()
        if count
    ]
    if summary["passages"] is not None:
        rows.append({"what": "passages", "rows": summary["passages"]})
    if summary["trajectories"] is not None:
        rows.append({"what": "trajectories", "rows": summary["trajectories"]})
    passages, parts = summary["split"]
    if passages:
        rows.append(
            {"what": f"passages longer than {summary['config']['max_passage_words']} words, split", "rows": passages}
        )
        rows.append({"what": "parts of these", "rows": parts})
    rows += [{"what": f"left out, {reason}", "rows": count} for reason, count in summary["dropped"].items() if count]
    rows += [{"what": f"quarantined, {rule}", "rows": n} for rule, n in summary["quarantined_by_rule"].items()]
    rows.append({"what": "quarantined, all rules", "rows": summary["quarantined"]})
    rows += suite_rows(read_checked(published.checked))
    if summary["search"] is not None:
        rows.append({"what": "index, bytes", "rows": summary["index_bytes"]})
        rows += [{"what": f"search, {name.replace('_', ' ')}", "rows": n} for name, n in summary["search"].items()]
    return rows


def _published(folder: Path, *, reused: bool) -> PublishedData:
    summary = json.loads((folder / SUMMARY).read_text())
    same = {name: summary[name] for name in ("version", "counts", "quarantined", "warnings", "seconds", "index_bytes")}
    return PublishedData(folder=folder, reused=reused, quarantine_by_rule=summary["quarantined_by_rule"], **same)


def _inputs_key(config: DataConfig) -> str:
    """Changes with every byte that prepare depends on: settings, input files, this code, the way of indexing."""
    files: list[Path] = []
    splits: list[str | None] = []
    if isinstance(config, QuestionFiles):
        questions = [file.path for file in config.questions]
        questions += [config.evaluation] if config.evaluation else []
        files = [*questions, *(path.with_name(ID_ALIASES) for path in questions), *config.corpus, *config.trajectories]
        splits = [file.split for file in config.questions]
        suites = config.expectations or Suites()
        files += [path or Path() for path in (suites.questions, suites.corpus, suites.trajectories)]
    code = [Path(__file__).with_name(f"{name}.py") for name in CODE]
    hashes = [file_hash(path) if path.is_file() else None for path in [*files, *code]]
    settings = config.model_dump(mode="json", exclude=PATHS)
    return fingerprint(FORMAT, settings, splits, hashes, code_version(), index_settings(config))


def _by_split(questions: pandas.DataFrame) -> dict[str, int]:
    return {split: int((questions["split"] == split).sum()) for split in SPLITS}


def _by_source(questions: pandas.DataFrame) -> dict[str, dict[str, int]]:
    return {str(source): _by_split(rows) for source, rows in questions.groupby("source")}


def _write_quarantine(validation: "Validation", folder: Path) -> None:
    (folder / QUARANTINE).write_text(_lines(validation.quarantine))
    shutil.copytree(validation.data_docs, folder / "data_docs")


def _write_rejected(validation: "Validation", folder: Path) -> None:
    _write_quarantine(validation, folder)
    if validation.suite_docs is not None:
        shutil.copytree(validation.suite_docs, folder / SUITE_DOCS)


def _lines(quarantine: pandas.DataFrame) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in quarantine.to_dict("records"))


@contextlib.contextmanager
def _writing(home: Path) -> Iterator[None]:
    """One process publishes at a time; another that prepares the same data waits and then finds it.

    Raises DataError when the home cannot be written (no space, no permission).
    """
    try:
        (home / "data").mkdir(parents=True, exist_ok=True)
        with held(home / "data" / ".lock"):
            yield
    except OSError as error:
        # shutil.Error holds a list of (from, to, reason) in place of one reason.
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error
        raise DataError(
            f"{home / 'data'} cannot be written ({reason}): free space there or set IGPO_HOME to another folder; nothing "
            "half-written was published"
        ) from error
