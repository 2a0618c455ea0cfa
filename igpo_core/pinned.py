"""What a service answered stays: one SQLite file that all processes of a sweep share, also over a network folder.

The first answer to a question is pinned: whoever asked at the same time gets it too, so that all arms and a repeated sweep
read the same. The file also holds what must be shared: the next free moment of a rate limit, calls spent.
"""

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

PATIENCE = 60.0  # seconds that a writer waits for another

TABLES = """
create table if not exists found (key text primary key, label text, value text);
create table if not exists meters (name text primary key, spent integer, free_at real);
"""


class Pinned:
    """Connections are opened for each call: the file is used from many threads and processes, and seldom."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as database:
            database.executescript(TABLES)

    def get(self, key: str) -> Any:
        """What is pinned under the key; None where nothing is."""
        with self._open() as database:
            row = database.execute("select value from found where key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def pin(self, key: str, label: str, value: Any) -> Any:
        """Keep a value that JSON can hold, unless another process was first; what stands there now. label: for people."""
        with self._open() as database:
            database.execute("insert or ignore into found values (?, ?, ?)", (key, label, json.dumps(value)))
        return self.get(key)

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
        """Return how much of a meter is used up; 0 for one that was never charged."""
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
