"""What users' own suites found in published data, in a folder beside it: the data themselves are the same without a suite.

`<home>/data/checked/<version>-<key>/` holds suites.json (by table: file, name, hash, entries and what is not met), suite_docs/
(Data Docs of our rules and the suites') and manifest.json. The key is a hash of all that was read and checked, the suites among
it: a folder is of one suite on one version, and is never written anew while it is whole.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from igpo_core.folders import checksums, fill_folder
from tasks.data.published import FORMAT, MANIFEST, is_whole

SUITES = "suites.json"
SUITE_DOCS = "suite_docs"
Told = Mapping[str, Mapping[str, Any]]  # of tasks/data/suites.py:suites_told


def checked_folder(home: Path, version: str, key: str) -> Path:
    """Return the folder of what suites found. key: of the inputs (tasks/data/publishing.py)."""
    return home / "data" / "checked" / f"{version}-{key}"


def keep_checked(told: Told, suite_docs: Path, folder: Path) -> None:
    """Write what suites found, whole or not at all. One that is there and whole is left as it is. Raises OSError."""
    if is_whole(folder):
        return

    def fill(path: Path) -> None:
        (path / SUITES).write_text(json.dumps(told, indent=1, ensure_ascii=False))
        shutil.copytree(suite_docs, path / SUITE_DOCS)
        (path / MANIFEST).write_text(json.dumps({"format": FORMAT, "sha256": checksums(path)}, indent=1))

    fill_folder(folder, fill)


def read_checked(folder: Path | None) -> dict[str, dict[str, Any]]:
    """Return what suites found, by table; nothing where there is no suite."""
    found: dict[str, dict[str, Any]] = {} if folder is None else json.loads((folder / SUITES).read_text())
    return found


def suite_warnings(told: Told) -> list[str]:
    """Return a line for each entry of severity `warning` that is not met."""
    return [
        f"{table}: {suite['file']}: {one['told']}"
        for table, suite in told.items()
        for one in suite["unmet"]
        if one["severity"] == "warning"
    ]


def suite_rows(told: Told) -> list[dict[str, Any]]:
    """Return rows {what, rows} of a summary: entries of each suite, and how many are not met."""
    rows = []
    for table, suite in told.items():
        rows.append({"what": f"{suite['file']} on {table}, entries", "rows": suite["entries"]})
        rows.append({"what": f"{suite['file']} on {table}, not met", "rows": len(suite["unmet"])})
    return rows
