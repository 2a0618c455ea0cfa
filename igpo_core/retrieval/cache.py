"""What was found for a query stays: one SQLite file that all processes of a sweep share, also over a network folder.

The first answer to a query is pinned: whoever asked at the same time gets it too, so that all arms and a repeated sweep
read the same observations. The file also holds what must be shared: the next free moment of a rate limit, calls spent.
"""

import json
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from igpo_core.retrieval import Passage

PATIENCE = 60.0  # seconds that a writer waits for another

TABLES = """
create table if not exists found (key text primary key, query text, passages text);
create table if not exists meters (name text primary key, spent integer, free_at real);
"""


class SearchCache:
    """Connections are opened for each call: the file is used from many threads and processes, and seldom."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as database:
            database.executescript(TABLES)

    def get(self, key: str) -> list[Passage] | None:
        """What is pinned under the key; None where nothing is."""
        with self._open() as database:
            row = database.execute("select passages from found where key = ?", (key,)).fetchone()
        return None if row is None else [Passage(*fields) for fields in json.loads(row[0])]

    def pin(self, key: str, query: str, passages: Sequence[Passage]) -> list[Passage]:
        """Keep passages, unless another process was first; what stands there now."""
        text = json.dumps([[passage.id, passage.title, passage.text] for passage in passages])
        with self._open() as database:
            database.execute("insert or ignore into found values (?, ?, ?)", (key, query, text))
        found = self.get(key)
        assert found is not None
        return found

    def turn(self, name: str, interval: float) -> float:
        """Seconds to wait for the next of the moments that lie `interval` seconds apart, for all processes together."""
        now = time.time()
        with self._open() as database:
            database.execute("begin immediate")
            database.execute("insert or ignore into meters values (?, 0, 0)", (name,))
            free_at = database.execute("select free_at from meters where name = ?", (name,)).fetchone()[0]
            at = max(now, free_at)
            database.execute("update meters set free_at = ? where name = ?", (at + interval, name))
            database.execute("commit")
        return float(at - now)

    def spend(self, name: str, most: int) -> bool:
        """Count one call; False, and nothing counted, where `most` are spent."""
        with self._open() as database:
            database.execute("begin immediate")
            database.execute("insert or ignore into meters values (?, 0, 0)", (name,))
            changed = database.execute("update meters set spent = spent + 1 where name = ? and spent < ?", (name, most))
            done = changed.rowcount == 1
            database.execute("commit")
        return done

    def spent(self, name: str) -> int:
        with self._open() as database:
            row = database.execute("select spent from meters where name = ?", (name,)).fetchone()
        return 0 if row is None else int(row[0])

    def _open(self) -> "_Closing":
        return _Closing(self.path)


class _Closing:
    """A connection that is closed at the end of its block (sqlite3's own only ends the transaction)."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)

    def __enter__(self) -> sqlite3.Connection:
        return self.connection

    def __exit__(self, *_: object) -> None:
        self.connection.close()
