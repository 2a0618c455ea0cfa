"""Every random draw comes from a generator keyed by (run seed, purpose, step, index): the same key gives the same
numbers whatever was drawn before, so a resumed run, another batch size or another arm sees the same randomness."""

import hashlib
import random
from typing import Any


def derive(seed: int, purpose: str, *index: int | str) -> int:
    """A 64-bit integer that is a pure function of its arguments (SHA-256 of their text)."""
    key = "/".join([str(seed), purpose, *map(str, index)])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def python_rng(seed: int, purpose: str, *index: int | str) -> random.Random:
    """A Python generator for the key."""
    return random.Random(derive(seed, purpose, *index))


def numpy_rng(seed: int, purpose: str, *index: int | str) -> Any:
    """A NumPy generator for the key (typed Any: numpy is imported only when it is used)."""
    import numpy as np

    return np.random.Generator(np.random.Philox(key=derive(seed, purpose, *index)))
