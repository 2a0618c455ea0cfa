"""What makes two runs the same run: settings and code."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel


def fingerprint(*parts: Any) -> str:
    """Twelve hex digits that change when any part does. Parts are JSON values or settings."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def code_on_disk() -> str:
    """A hash of igpo_core's source files as they are now, and of the versions of what it computes with."""
    digest = hashlib.sha256()
    for library in ("torch", "transformers"):  # another version may give other bits
        digest.update(version(library).encode() + b"\0")
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


_IMPORTED = code_on_disk()


def code_version() -> str:
    """code_on_disk when this process imported igpo_core: what computes a result is part of its identity."""
    return _IMPORTED
