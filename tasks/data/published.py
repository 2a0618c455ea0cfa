"""Published data folders: whether one is whole, and what a run needs of one. Light: sweeps and runs start with it."""

import json
import socket
from pathlib import Path

from igpo_core.config import DataConfig, fingerprint
from igpo_core.errors import DataError
from igpo_core.folders import checksums
from tasks.lab.secrets import provide

MANIFEST = "manifest.json"
SUMMARY = "summary.json"
FORMAT = 4  # of a folder's layout and of its summary.json: raise it when either changes


def count_questions(folder: Path) -> dict[str, int]:
    """Return the questions of each split of a published folder."""
    counts: dict[str, int] = json.loads((folder / SUMMARY).read_text())["counts"]
    return counts


def trajectory_turns(folder: Path) -> list[int]:
    """Return the turns of each expert trajectory of a published folder, the answer included."""
    import pyarrow.parquet

    turns = pyarrow.parquet.read_table(folder / "trajectories.parquet", columns=["turns"]).column("turns")
    return [len(json.loads(told.as_py())) for told in turns]


def is_whole(folder: Path) -> bool:
    """Whether a published folder has every file of its manifest, unchanged, and no other."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    try:
        expected = json.loads(manifest.read_text())
    except ValueError:
        return False
    found = {name: digest for name, digest in checksums(folder).items() if name != MANIFEST}
    return bool(expected.get("format") == FORMAT and expected.get("sha256") == found)


def provide_data(data: DataConfig, folder: Path, sweep: str) -> None:
    """See that published data are whole on this machine, once a sweep, and that this process has the key of their search.

    Raises DataError where they are damaged or not there.
    """
    provide(data)
    seen, manifest = _seen(folder, sweep), folder / MANIFEST
    if seen.is_file() and manifest.is_file() and manifest.stat().st_mtime <= seen.stat().st_mtime:
        return
    if not is_whole(folder):
        raise DataError(
            f"{folder} is not there or damaged: start the sweep again, which publishes it anew, and see that this machine has "
            "the IGPO_HOME of the one that planned the run"
        )
    mark_whole(folder, sweep)


def mark_whole(folder: Path, sweep: str) -> None:
    """Remember that this machine found a published folder whole for a sweep."""
    seen = _seen(folder, sweep)
    seen.parent.mkdir(parents=True, exist_ok=True)
    seen.touch()


def _seen(folder: Path, sweep: str) -> Path:
    """A machine keeps what it saw beside the data, in a file that has its name: machines share the folder, and not a cache."""
    machine = fingerprint(socket.gethostname())
    return folder.parents[1] / "seen" / f"{sweep}-{folder.name}-{machine}"
