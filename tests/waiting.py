"""Waiting for another process, thread or server: until it is ready or has died.

The limit is for what hangs. It is many times what a busy machine takes, for else it would measure the machine.
"""

import time
from collections.abc import Callable

HANGS = 600.0  # seconds


def wait_until(ready: Callable[[], object], alive: Callable[[], object] = lambda: True) -> None:
    """Return when ready() is true. Fail when alive() is false before, or after HANGS seconds."""
    deadline = time.monotonic() + HANGS
    while not ready():
        living = alive()  # asked before the last look: what ends well is ready by then
        if not living and not ready():
            raise AssertionError("it ended before it was ready")
        assert time.monotonic() < deadline, f"not ready after {HANGS:.0f} s"
        time.sleep(0.05)
